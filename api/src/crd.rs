//! The CustomResourceDefinitions, as they are installed. Written to the chart by `operator crds`; the schemas come from the
//! types, and this takes out what a derive cannot know to be unwanted.

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::{HTTPScaledObject, InterceptorRoute};

/// All definitions, each with the name of the file it is committed in.
pub fn all() -> [(&'static str, Value); 2] {
    [
        ("crd-httpscaledobjects.yaml", definition::<HTTPScaledObject>(&[])),
        ("crd-interceptorroutes.yaml", definition::<InterceptorRoute>(&["metadata", "spec"])),
    ]
}

fn definition<T: CustomResourceExt>(required: &[&str]) -> Value {
    let mut crd = serde_json::to_value(T::crd()).expect("a definition is plain data");
    let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
    crd["spec"]["names"]["listKind"] = format!("{kind}List").into();
    let versions = crd["spec"]["versions"].as_array_mut().into_iter().flatten();
    for version in versions {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        clean(schema);
        top(schema, required);
    }
    crd
}

/// What every object has beside spec and status, and which of it must be there.
fn top(schema: &mut Value, required: &[&str]) {
    let description = schema["properties"]["spec"]["description"].clone();
    let Some(schema) = schema.as_object_mut() else { return };
    schema.remove("title");
    schema.remove("required");
    schema.insert("description".to_owned(), description);
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("apiVersion".to_owned(), json!({ "type": "string" }));
        properties.insert("kind".to_owned(), json!({ "type": "string" }));
        properties.insert("metadata".to_owned(), json!({ "type": "object" }));
    }
}

/// An absent value is written by leaving it out, never as null; bounds of integers are integers; a description is a line.
fn clean(value: &mut Value) {
    match value {
        Value::Object(map) => clean_map(map),
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Number(number) => {
            if let Some(whole) = whole(number) {
                *value = whole.into();
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn clean_map(map: &mut Map<String, Value>) {
    // A property may bear the name of a keyword; keywords hold values, properties hold schemas.
    if map.get("nullable").is_some_and(Value::is_boolean) {
        map.remove("nullable");
    }
    if let Some(Value::String(description)) = map.get_mut("description") {
        *description = description.replace('\n', " ");
    }
    map.values_mut().for_each(clean);
}

#[expect(clippy::cast_possible_truncation, reason = "the bounds of our schemas are small")]
fn whole(number: &serde_json::Number) -> Option<i64> {
    let float = number.as_f64().filter(|_| number.is_f64())?;
    (float.fract() == 0.0).then_some(float as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(crd: &Value) -> &Value {
        &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    }

    #[test]
    fn nothing_is_nullable_and_bounds_are_integers() {
        for (file, crd) in all() {
            let text = serde_json::to_string(&crd).unwrap();
            assert!(!text.contains("nullable") && !text.contains(".0,"), "{file}");
        }
    }

    #[test]
    fn an_http_scaled_object_needs_no_spec_and_a_route_does() {
        let [(_, scaled), (_, route)] = all();
        assert_eq!(schema(&scaled)["required"], Value::Null);
        assert_eq!(schema(&route)["required"], json!(["metadata", "spec"]));
        assert_eq!(route["spec"]["names"]["listKind"], "InterceptorRouteList");
    }

    #[test]
    fn a_description_is_for_the_user() {
        for (file, crd) in all() {
            let description = schema(&crd)["description"].as_str().unwrap();
            assert!(description.starts_with("Routes requests"), "{file}: {description}");
        }
    }

    #[test]
    fn every_duration_has_the_pattern_of_one() {
        fn durations(value: &Value) -> usize {
            match value {
                Value::Object(map) if map.get("pattern").is_some_and(|it| it == crate::duration::PATTERN) => 1,
                Value::Object(map) => map.values().map(durations).sum(),
                Value::Array(items) => items.iter().map(durations).sum(),
                _ => 0,
            }
        }
        let [(_, scaled), (_, route)] = all();
        assert_eq!((durations(&scaled), durations(&route)), (4, 8));
    }
}
