//! A ScaledObject as the autoscaler needs it; also what an HTTPScaledObject stands for.

use std::{collections::BTreeMap, time::Duration};

use api::{
    HTTPScaledObject, ScaledObject, ScaledObjectSpec, names,
    scaled_object::{PAUSED_ANNOTATION, PAUSED_REPLICAS_ANNOTATION, Trigger as KedaTrigger, WorkloadRef},
};
use interceptor_core::ObjectKey;
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};
use kube::core::ObjectMeta;
use thiserror::Error;

use super::{
    hpa::{Behavior, Change, Policy, Rules, Select, TargetKind},
    keda::Limits,
};
use crate::cluster::RouteName;

/// KEDA's defaults, in seconds.
const POLLING: i32 = 30;
const COOLDOWN: i32 = 300;
const MAX_REPLICAS: i32 = 100;
/// What the operator writes into the ScaledObject of an HTTPScaledObject, in seconds.
const DERIVED_POLLING: i32 = 15;
/// Where the operator says the scaler is.
const SCALER_ADDRESS: &str = "keda-add-ons-http-external-scaler.keda:9090";

/// One ScaledObject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaledWorkload {
    /// Its name.
    pub key: ObjectKey,
    /// The Deployment that it scales.
    pub workload: ObjectKey,
    /// `pollingInterval`.
    pub polling: Duration,
    /// Replica counts and cool-down.
    pub limits: Limits,
    /// `advanced.horizontalPodAutoscalerConfig.behavior`.
    pub behavior: Behavior,
    /// Triggers that speak the external scaler protocol; others are reported and left out.
    pub triggers: Vec<Trigger>,
}

/// One trigger of type `external` or `external-push`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// `external-push`: `StreamIsActive` is used besides polling.
    pub push: bool,
    /// `scalerAddress`.
    pub address: String,
    /// All of the trigger's metadata, which the scaler gets to see.
    pub metadata: BTreeMap<String, String>,
    /// `metricType`.
    pub kind: TargetKind,
}

/// Why a ScaledObject does nothing here.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ScaledError {
    /// Only Deployments are run here.
    #[error("spec.scaleTargetRef.kind is {0}, expected Deployment: nothing else is run here")]
    Kind(String),
    /// Nothing that could be asked.
    #[error("spec.triggers has none of type external or external-push: no other is known here")]
    NoTrigger,
    /// A field that makes no sense.
    #[error("{field} is {value}, expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        expected: &'static str,
    },
}

/// The ScaledObject that the operator would make of an HTTPScaledObject; `None` when it is told not to.
pub fn derive(object: &HTTPScaledObject) -> Option<ScaledObject> {
    let annotations = object.metadata.annotations.clone().unwrap_or_default();
    let told = |name: &str| annotations.get(name).is_some_and(|value| value == "true");
    if told(names::ORPHAN_ANNOTATION) || told(names::SKIP_ANNOTATION) {
        return None;
    }
    let spec = &object.spec;
    let name = object.metadata.name.clone().unwrap_or_default();
    let replicas = spec.replicas.clone().unwrap_or_default();
    let metadata = BTreeMap::from([
        ("scalerAddress".to_owned(), SCALER_ADDRESS.to_owned()),
        (names::HTTP_SCALED_OBJECT_KEY.to_owned(), name.clone()),
    ]);
    let trigger = KedaTrigger { type_: "external-push".to_owned(), metadata, ..KedaTrigger::default() };
    let workload = WorkloadRef {
        api_version: spec.scale_target_ref.api_version.clone(),
        kind: spec.scale_target_ref.kind.clone(),
        name: spec.scale_target_ref.name.clone().unwrap_or_default(),
    };
    let metadata = ObjectMeta {
        name: Some(name),
        namespace: object.metadata.namespace.clone(),
        labels: object.metadata.labels.clone(),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    let spec = ScaledObjectSpec {
        advanced: None,
        cooldown_period: spec.scaledown_period,
        idle_replica_count: None,
        initial_cooldown_period: spec.initial_cooldown_period,
        max_replica_count: replicas.max,
        min_replica_count: replicas.min,
        polling_interval: Some(DERIVED_POLLING),
        scale_target_ref: workload,
        triggers: vec![trigger],
    };
    Some(ScaledObject { metadata, spec })
}

// === impl ScaledWorkload ===

impl ScaledWorkload {
    /// Reads a ScaledObject; `None` while it is paused.
    pub fn parse(key: ObjectKey, object: &ScaledObject) -> Result<Option<Self>, ScaledError> {
        let annotations = object.metadata.annotations.iter().flatten();
        if annotations.into_iter().any(|(name, _)| name == PAUSED_ANNOTATION || name == PAUSED_REPLICAS_ANNOTATION) {
            return Ok(None);
        }
        let spec = &object.spec;
        let kind = spec.scale_target_ref.kind.as_deref().unwrap_or("Deployment");
        if !matches!(kind, "" | "Deployment") {
            return Err(ScaledError::Kind(kind.to_owned()));
        }
        let triggers = spec.triggers.iter().filter_map(Trigger::parse).collect::<Result<Vec<_>, _>>()?;
        if triggers.is_empty() {
            return Err(ScaledError::NoTrigger);
        }
        let limits = limits(spec)?;
        let behavior = spec.advanced.as_ref().and_then(|a| a.horizontal_pod_autoscaler_config.as_ref());
        let behavior = behavior.and_then(|config| config.behavior.as_ref());
        Ok(Some(Self {
            workload: ObjectKey::new(key.namespace(), spec.scale_target_ref.name.as_str()),
            key,
            polling: seconds("spec.pollingInterval", spec.polling_interval, POLLING)?.max(Duration::from_secs(1)),
            limits,
            behavior: behavior.map_or_else(Behavior::default, self::behavior),
            triggers,
        }))
    }

    /// Whether a trigger names this route.
    pub fn serves(&self, route: &RouteName) -> bool {
        let field = if route.kind == "InterceptorRoute" { "interceptorRoute" } else { "httpScaledObject" };
        let names = |trigger: &Trigger| trigger.metadata.get(field).is_some_and(|name| name == route.key.name());
        self.key.namespace() == route.key.namespace() && self.triggers.iter().any(names)
    }
}

// === impl Trigger ===

impl Trigger {
    fn parse(trigger: &KedaTrigger) -> Option<Result<Self, ScaledError>> {
        let push = match trigger.type_.as_str() {
            "external-push" => true,
            "external" => false,
            _ => return None,
        };
        let kind = match trigger.metric_type.as_deref().unwrap_or("") {
            "" | "AverageValue" => TargetKind::AverageValue,
            "Value" => TargetKind::Value,
            other => {
                let (field, expected) = ("metricType", "AverageValue or Value");
                return Some(Err(ScaledError::Field { field, value: other.to_owned(), expected }));
            }
        };
        let Some(address) = trigger.metadata.get("scalerAddress").cloned() else {
            let (field, expected) = ("scalerAddress", "host:port of the scaler");
            return Some(Err(ScaledError::Field { field, value: "missing".to_owned(), expected }));
        };
        Some(Ok(Self { push, address, metadata: trigger.metadata.clone(), kind }))
    }
}

fn limits(spec: &ScaledObjectSpec) -> Result<Limits, ScaledError> {
    let min = count("spec.minReplicaCount", spec.min_replica_count, 0)?;
    let max = count("spec.maxReplicaCount", spec.max_replica_count, MAX_REPLICAS)?;
    if max < min || max == 0 {
        let (field, expected) = ("spec.maxReplicaCount", "at least minReplicaCount, and at least 1");
        return Err(ScaledError::Field { field, value: max.to_string(), expected });
    }
    Ok(Limits {
        min,
        max,
        idle: spec.idle_replica_count.map(|idle| count("spec.idleReplicaCount", Some(idle), 0)).transpose()?,
        cooldown: seconds("spec.cooldownPeriod", spec.cooldown_period, COOLDOWN)?,
        initial_cooldown: seconds("spec.initialCooldownPeriod", spec.initial_cooldown_period, 0)?,
    })
}

fn count(field: &'static str, value: Option<i32>, default: i32) -> Result<u32, ScaledError> {
    let value = value.unwrap_or(default);
    let wrong = |_negative| ScaledError::Field { field, value: value.to_string(), expected: "zero or more" };
    u32::try_from(value).map_err(wrong)
}

fn seconds(field: &'static str, value: Option<i32>, default: i32) -> Result<Duration, ScaledError> {
    count(field, value, default).map(|seconds| Duration::from_secs(seconds.into()))
}

/// Fields that are not there keep their defaults, as in Kubernetes.
fn behavior(behavior: &HorizontalPodAutoscalerBehavior) -> Behavior {
    let default = Behavior::default();
    let merge = |rules: Option<&HPAScalingRules>, default: Rules| match rules {
        None => default,
        Some(given) => Rules {
            stabilization: given.stabilization_window_seconds.map_or(default.stabilization, whole_seconds),
            select: match given.select_policy.as_deref() {
                Some("Min") => Select::Min,
                Some("Disabled") => Select::Disabled,
                _ => Select::Max,
            },
            policies: given.policies.as_ref().filter(|all| !all.is_empty()).map_or(default.policies, |all| {
                let policy = |policy: &k8s_openapi::api::autoscaling::v2::HPAScalingPolicy| {
                    let value = u32::try_from(policy.value).unwrap_or(0);
                    let change = if policy.type_ == "Pods" { Change::Pods(value) } else { Change::Percent(value) };
                    Policy { change, period: whole_seconds(policy.period_seconds) }
                };
                all.iter().map(policy).collect()
            }),
        },
    };
    Behavior {
        up: merge(behavior.scale_up.as_ref(), default.up),
        down: merge(behavior.scale_down.as_ref(), default.down),
    }
}

fn whole_seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> Result<Option<ScaledWorkload>, ScaledError> {
        let yaml = format!("{{ metadata: {{ name: so, namespace: default }}, spec: {spec} }}");
        ScaledWorkload::parse(ObjectKey::new("default", "so"), &serde_yaml_ng::from_str(&yaml).unwrap())
    }

    const TRIGGER: &str =
        "triggers: [{ type: external-push, metadata: { scalerAddress: 's:1', interceptorRoute: hello } }]";

    #[test]
    fn what_is_not_said_is_kedas_default() {
        let scaled = parse(&format!("{{ scaleTargetRef: {{ name: app }}, {TRIGGER} }}")).unwrap().unwrap();
        assert_eq!(scaled.workload, ObjectKey::new("default", "app"));
        assert_eq!((scaled.polling.as_secs(), scaled.limits.cooldown.as_secs(), scaled.limits.max), (30, 300, 100));
        assert_eq!(scaled.behavior, Behavior::default());
        assert!(scaled.triggers[0].push);
        let route = |name: &str, kind| RouteName { key: ObjectKey::new("default", name), kind };
        assert!(scaled.serves(&route("hello", "InterceptorRoute")));
        assert!(!scaled.serves(&route("hello", "HTTPScaledObject")));
    }

    #[test]
    fn a_behavior_replaces_only_what_it_says() {
        let advanced = "advanced: { horizontalPodAutoscalerConfig: { behavior: { scaleDown: { stabilizationWindowSeconds: 3 } } } }";
        let scaled = parse(&format!("{{ scaleTargetRef: {{ name: app }}, {advanced}, {TRIGGER} }}")).unwrap().unwrap();
        let mut expected = Behavior::default();
        expected.down.stabilization = Duration::from_secs(3);
        assert_eq!(scaled.behavior, expected);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (spec, part) in [
            ("{ scaleTargetRef: { name: a, kind: StatefulSet }, triggers: [] }", "StatefulSet"),
            ("{ scaleTargetRef: { name: a }, triggers: [{ type: cron }] }", "none of type external"),
            ("{ scaleTargetRef: { name: a }, triggers: [{ type: external }] }", "scalerAddress is missing"),
            (&format!("{{ scaleTargetRef: {{ name: a }}, cooldownPeriod: -1, {TRIGGER} }}"), "cooldownPeriod is -1"),
            (&format!("{{ scaleTargetRef: {{ name: a }}, maxReplicaCount: 0, {TRIGGER} }}"), "maxReplicaCount is 0"),
        ] {
            let error = parse(spec).unwrap_err().to_string();
            assert!(error.contains(part), "{error:?} should name {part:?}");
        }
    }

    #[test]
    fn an_http_scaled_object_stands_for_the_scaled_object_the_operator_would_write() {
        let yaml = "
metadata: { name: old, namespace: default, annotations: {} }
spec:
  scaleTargetRef: { name: app, kind: Deployment, apiVersion: apps/v1, service: app, port: 80 }
  replicas: { min: 1, max: 4 }
  scaledownPeriod: 20
";
        let mut object: HTTPScaledObject = serde_yaml_ng::from_str(yaml).unwrap();
        let derived = derive(&object).unwrap();
        let scaled = ScaledWorkload::parse(ObjectKey::new("default", "old"), &derived).unwrap().unwrap();
        assert_eq!((scaled.polling.as_secs(), scaled.limits.cooldown.as_secs()), (15, 20));
        assert_eq!((scaled.limits.min, scaled.limits.max), (1, 4));
        assert!(scaled.serves(&RouteName { key: ObjectKey::new("default", "old"), kind: "HTTPScaledObject" }));
        object.metadata.annotations = Some(BTreeMap::from([(names::SKIP_ANNOTATION.to_owned(), "true".to_owned())]));
        assert_eq!(derive(&object), None);
    }
}
