//! Schemas and defaults that no derive can tell.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::duration::GoDuration;

/// `metav1.Condition` as the API machinery defines it, in a list that is merged by type.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    const _: fn(&Condition) -> &str = |condition| &condition.type_;
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "message": {"type": "string", "maxLength": 32768},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                "reason": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "type": {
                    "type": "string",
                    "maxLength": 316,
                    "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
                },
            },
        },
    })
}

pub(crate) fn one_minute() -> GoDuration {
    GoDuration("1m".to_owned())
}

pub(crate) fn one_second() -> GoDuration {
    GoDuration("1s".to_owned())
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt as _;
    use serde_json::Value;

    use crate::{HTTPScaledObject, InterceptorRoute};

    fn crd<T: kube::CustomResourceExt>() -> Value {
        serde_json::to_value(T::crd()).unwrap()
    }

    fn spec<'a>(crd: &'a Value, field: &str) -> &'a Value {
        let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
        field.split('.').fold(schema, |schema, name| match name {
            "[]" => &schema["items"],
            name => &schema["properties"][name],
        })
    }

    #[test]
    fn the_resources_have_the_names_that_users_know() {
        let route = InterceptorRoute::crd();
        assert_eq!(route.metadata.name.as_deref(), Some("interceptorroutes.http.keda.sh"));
        assert_eq!(route.spec.names.short_names, None);
        let columns =
            |crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
                let columns = crd.spec.versions[0].additional_printer_columns.clone().unwrap();
                columns.into_iter().map(|column| column.name).collect::<Vec<_>>()
            };
        let ours = ["TargetService", "Ready", "Reason", "Active", "Host", "ScaledObject", "Message", "Age"];
        assert_eq!(columns(route), ours);
        let scaled = HTTPScaledObject::crd();
        assert_eq!(scaled.metadata.name.as_deref(), Some("httpscaledobjects.http.keda.sh"));
        assert_eq!(scaled.spec.names.short_names.as_deref(), Some(["httpso".to_owned()].as_slice()));
        let expected = ["TargetWorkload", "TargetService", "MinReplicas", "MaxReplicas", "Age", "Ready"];
        assert_eq!(columns(scaled), [expected.as_slice(), &["Active", "Accepted", "Message"]].concat());
    }

    #[test]
    fn what_is_listed_without_wide_has_the_columns_of_the_add_on_alone() {
        let shown = |crd: Value| -> Vec<String> {
            let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap().iter();
            let narrow = columns.filter(|column| column["priority"].as_i64().unwrap_or_default() == 0);
            narrow.map(|column| column["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(shown(crd::<InterceptorRoute>()), ["TargetService", "Ready", "Age"]);
        let scaled = ["TargetWorkload", "TargetService", "MinReplicas", "MaxReplicas", "Age", "Ready"];
        assert_eq!(shown(crd::<HTTPScaledObject>()), scaled);
    }

    #[test]
    fn the_schema_says_what_the_api_server_checks() {
        let crd = crd::<InterceptorRoute>();
        let rule = |field: &str| spec(&crd, field)["x-kubernetes-validations"][0]["message"].clone();
        assert_eq!(rule("target"), "exactly one of 'port' or 'portName' must be set");
        assert_eq!(
            rule("scalingMetric"),
            "at least one of 'concurrency', 'requestRate', 'connections' or 'acceptQueue' must be set"
        );
        let cold_start = "at least one of 'fallback', 'placeholder', 'maxPendingRequests', 'maxRequestsPerPod' or 'probeReadiness' must be set";
        assert_eq!(rule("coldStart"), cold_start);
        assert_eq!(rule("coldStart.fallback.service"), "exactly one of 'port' or 'portName' must be set");
        let body = "at most one of 'body' or 'bodyFromConfigMap' may be set";
        assert_eq!(rule("coldStart.placeholder.response"), body);
        assert_eq!(rule("staticRoutes.[].response"), body);
        assert_eq!(spec(&crd, "target.port")["maximum"], 65535.0);
        assert_eq!(spec(&crd, "target.service")["minLength"], 1);
        assert_eq!(spec(&crd, "rules")["x-kubernetes-list-type"], "atomic");
        assert_eq!(spec(&crd, "rules.[].hosts")["x-kubernetes-list-type"], "set");
        assert_eq!(spec(&crd, "rules.[].headers")["x-kubernetes-list-map-keys"][0], "name");
        assert_eq!(spec(&crd, "scalingMetric.requestRate.window")["default"], "1m");
        assert_eq!(spec(&crd, "staticRoutes.[].responseMode")["default"], "WhenUnavailable");
        assert_eq!(spec(&crd, "staticRoutes.[].rules")["minItems"], 1);
    }
}
