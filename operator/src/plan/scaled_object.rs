//! The ScaledObject that a route wants.

use std::{collections::BTreeMap, time::Duration};

use api::{
    GoDuration, HTTPScaledObjectSpec, InterceptorRouteSpec,
    interceptor_route::ScalingSpec,
    names::{HTTP_SCALED_OBJECT_KEY, INTERCEPTOR_ROUTE_KEY},
};
use serde_json::{Map, Value, json};

use super::Settings;
use crate::object::{self, Object, Spec};

/// Seconds between KEDA's polls; demand that begins is pushed.
const POLLING_INTERVAL: i32 = 15;

/// Annotations of a route that are meant for KEDA.
const KEDA_ANNOTATIONS: &str = "autoscaling.keda.sh/";

/// As it should be, or why it can't be.
pub(super) fn desired(object: &Object, spec: &Spec, settings: &Settings) -> Result<Value, String> {
    let (spec, labels, annotations) = match spec {
        Spec::Http(spec) => {
            (http(object, spec, settings)?, object.meta.labels.clone(), object.meta.annotations.clone())
        }
        Spec::Route(spec) => {
            let annotations = object.meta.annotations.iter().filter(|(name, _)| name.starts_with(KEDA_ANNOTATIONS));
            let annotations = annotations.map(|(name, value)| (name.clone(), value.clone())).collect();
            (route(object, spec, settings)?, BTreeMap::new(), annotations)
        }
    };
    let subject = &object.subject;
    let mut metadata = json!({
        "name": subject.key.name(),
        "namespace": subject.key.namespace(),
        "ownerReferences": [{
            "apiVersion": subject.api_version(),
            "kind": subject.kind_name(),
            "name": subject.key.name(),
            "uid": object.meta.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    });
    for (field, texts) in [("labels", labels), ("annotations", annotations)] {
        if !texts.is_empty() {
            metadata[field] = json!(texts);
        }
    }
    Ok(json!({
        "apiVersion": object::keda_version(),
        "kind": "ScaledObject",
        "metadata": metadata,
        "spec": spec,
    }))
}

fn http(object: &Object, spec: &HTTPScaledObjectSpec, settings: &Settings) -> Result<Value, String> {
    let metric = spec.scaling_metric.as_ref();
    if metric.is_some_and(|metric| metric.concurrency.is_some() && metric.request_rate.is_some()) {
        return Err("spec.scalingMetric has both concurrency and requestRate: set one of them".to_owned());
    }
    let target = &spec.scale_target_ref;
    let bounds = spec.replicas.clone().unwrap_or_default();
    let mut out = given([
        ("cooldownPeriod", spec.scaledown_period),
        ("initialCooldownPeriod", spec.initial_cooldown_period),
        ("minReplicaCount", bounds.min),
        ("maxReplicaCount", bounds.max),
    ]);
    let parts = [("apiVersion", &target.api_version), ("kind", &target.kind), ("name", &target.name)];
    let parts = parts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.as_deref()?.into())));
    out.insert("scaleTargetRef".to_owned(), parts.collect::<Map<_, _>>().into());
    Ok(with_trigger(out, settings, HTTP_SCALED_OBJECT_KEY, object))
}

fn route(object: &Object, spec: &InterceptorRouteSpec, settings: &Settings) -> Result<Value, String> {
    let ScalingSpec { cooldown, initial_cooldown, max_replicas, min_replicas, scale_target_ref: _ } =
        spec.scaling.as_ref().ok_or("spec.scaling is absent")?;
    if max_replicas.is_some_and(|most| most < *min_replicas) {
        return Err("spec.scaling.minReplicas is above maxReplicas".to_owned());
    }
    let mut out = given([
        ("cooldownPeriod", seconds("cooldown", cooldown.as_ref())?),
        ("initialCooldownPeriod", seconds("initialCooldown", initial_cooldown.as_ref())?),
        ("minReplicaCount", Some(*min_replicas)),
        ("maxReplicaCount", *max_replicas),
    ]);
    let workload = object.workload().ok_or("spec.scaling names no workload")?;
    let target = json!({"apiVersion": workload.api_version, "kind": workload.kind, "name": workload.key.name()});
    out.insert("scaleTargetRef".to_owned(), target);
    Ok(with_trigger(out, settings, INTERCEPTOR_ROUTE_KEY, object))
}

fn given<const N: usize>(numbers: [(&str, Option<i32>); N]) -> Map<String, Value> {
    numbers.into_iter().filter_map(|(name, number)| Some((name.to_owned(), number?.into()))).collect()
}

fn with_trigger(mut spec: Map<String, Value>, settings: &Settings, field: &str, object: &Object) -> Value {
    let mut metadata = json!({"scalerAddress": settings.scaler_address});
    metadata[field] = object.subject.key.name().into();
    spec.insert("pollingInterval".to_owned(), POLLING_INTERVAL.into());
    // The workload is not left at zero when nobody is there any more to wake it.
    let advanced = json!({"restoreToOriginalReplicaCount": true, "scalingModifiers": {}});
    spec.insert("advanced".to_owned(), advanced);
    spec.insert("triggers".to_owned(), json!([{"type": "external-push", "metadata": metadata}]));
    spec.into()
}

/// Whole seconds, rounded up.
fn seconds(field: &str, duration: Option<&GoDuration>) -> Result<Option<i32>, String> {
    let Some(text) = duration else { return Ok(None) };
    let whole = |duration: Duration| duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    let seconds = text.parse().ok().and_then(|duration| i32::try_from(whole(duration)).ok());
    let seconds = seconds.ok_or_else(|| {
        let text: String = text.0.escape_debug().take(80).collect();
        format!("spec.scaling.{field} is \"{text}\": expected a duration such as 5m or 90s")
    })?;
    Ok(Some(seconds))
}
