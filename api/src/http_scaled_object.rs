//! `http.keda.sh/v1alpha1` HTTPScaledObject: the older resource, which also tells what workload to scale.

#![expect(unreachable_pub, reason = "KubeSchema copies the types into functions, where pub reaches nobody")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    duration::GoDuration,
    interceptor_route::HeaderRule,
    names::PROBE_READINESS_ANNOTATION,
    readiness_probe::ReadinessProbe,
    schema::{self, one_minute, one_second},
};

/// Routes requests to a Service and scales the workload behind it. Use InterceptorRoute for new ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "http.keda.sh",
    version = "v1alpha1",
    kind = "HTTPScaledObject",
    plural = "httpscaledobjects",
    singular = "httpscaledobject",
    shortname = "httpso",
    namespaced,
    status = "HTTPScaledObjectStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"TargetWorkload","type":"string","jsonPath":".status.targetWorkload"}"#,
    printcolumn = r#"{"name":"TargetService","type":"string","jsonPath":".status.targetService"}"#,
    printcolumn = r#"{"name":"MinReplicas","type":"integer","jsonPath":".spec.replicas.min"}"#,
    printcolumn = r#"{"name":"MaxReplicas","type":"integer","jsonPath":".spec.replicas.max"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Active","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Active\")].status"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Accepted\")].reason"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].message"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct HTTPScaledObjectSpec {
    /// Where requests go when no replica gets ready in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("has(self.portName) != has(self.port)").message("must define either the 'portName' or the 'port'"))]
    pub cold_start_timeout_failover_ref: Option<FailoverRef>,
    /// Headers a request must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<HeaderRule>,
    /// Exact names, *.suffix, or * for all; none is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Time before the first scale to zero, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_cooldown_period: Option<i32>,
    /// Path prefixes in whole segments; none is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path_prefixes: Vec<String>,
    /// Bounds of the number of replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Replicas>,
    /// The workload and its Service.
    #[x_kube(validation = Rule::new("has(self.portName) != has(self.port)").message("must define either the 'portName' or the 'port'"))]
    pub scale_target_ref: ScaleTargetRef,
    /// Idle time before scaling to zero, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaledown_period: Option<i32>,
    /// How demand is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling_metric: Option<ScalingMetricSpec>,
    /// Requests in flight per replica. Use scalingMetric for new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_pending_requests: Option<i32>,
    /// Deadlines that replace the interceptor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<HTTPScaledObjectTimeouts>,
}

/// The workload to scale, with the Service before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleTargetRef {
    /// The workload's API version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// The workload's kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The workload's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Port number of the Service. Excludes portName.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// Port name of the Service. Excludes port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    /// Name of the Service.
    pub service: String,
}

/// Where requests go when no replica gets ready in time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailoverRef {
    /// Port number of the Service. Excludes portName.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// Port name of the Service. Excludes port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    /// Name of the Service.
    pub service: String,
    /// How long a request waits for a ready replica, in seconds.
    #[serde(default = "failover_seconds")]
    pub timeout_seconds: i32,
}

/// Bounds of the number of replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Replicas {
    /// At most so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i32>,
    /// At least so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i32>,
}

/// How demand is measured: one of both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingMetricSpec {
    /// By requests in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ConcurrencyMetricSpec>,
    /// By requests per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_rate: Option<RateMetricSpec>,
}

/// Demand by requests in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConcurrencyMetricSpec {
    /// Requests in flight per replica.
    #[serde(default = "hundred")]
    pub target_value: i32,
}

/// Demand by requests per second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateMetricSpec {
    /// Length of the buckets the window is divided into.
    #[serde(default = "one_second")]
    pub granularity: GoDuration,
    /// Requests per second and replica.
    #[serde(default = "hundred")]
    pub target_value: i32,
    /// Time over which the rate is averaged.
    #[serde(default = "one_minute")]
    pub window: GoDuration,
}

/// Deadlines; 0s takes the interceptor's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HTTPScaledObjectTimeouts {
    /// How long a request waits for a ready replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition_wait: Option<GoDuration>,
    /// How long a replica takes to begin its response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header: Option<GoDuration>,
}

/// What the operator found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HTTPScaledObjectStatus {
    /// Conditions by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The readiness probe of the workload's pods, for interceptors to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<ReadinessProbe>,
    /// Service and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_service: Option<String>,
    /// API version, kind and name of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_workload: Option<String>,
}

// === impl HTTPScaledObject ===

impl HTTPScaledObject {
    /// The probe by which interceptors may find out that a pod is ready, unless an annotation says that they shall not.
    pub fn readiness_probe(&self) -> Option<&ReadinessProbe> {
        self.status.as_ref().filter(|_| !self.refuses_probes())?.readiness_probe.as_ref()
    }

    /// Whether interceptors shall not find out by themselves that a pod is ready.
    pub fn refuses_probes(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(PROBE_READINESS_ANNOTATION)).is_some_and(|it| it == "false")
    }
}

fn hundred() -> i32 {
    100
}

fn failover_seconds() -> i32 {
    30
}
