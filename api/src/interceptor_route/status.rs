//! What the operator writes into the status of an InterceptorRoute.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{readiness_probe::ReadinessProbe, schema, unnamed_probe::UnnamedProbe};

/// What the operator found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterceptorRouteStatus {
    /// Conditions by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The readiness probe of the workload's pods, for interceptors to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<ReadinessProbe>,
    /// How interceptors stand in for the target's Service, of a route with dataPath Direct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStatus>,
    /// Whether pods of a route with dataPath Direct are ready on nodes without an agent, so that nobody counts what they take: the
    /// workload is kept from zero.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncounted: bool,
    /// Probes of the workload's pods that do not show early that they are the kubelet's, for agents to leave out of the demand. Of more
    /// than 16, the others count; so do those with a path, host or User-Agent of more than 1,024 bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub unnamed_probes: Vec<UnnamedProbe>,
}

/// How interceptors stand in for a Service whose clients reach the pods without a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShadowStatus {
    /// After how many seconds without demand the Service's EndpointSlices list interceptors, so that they do when KEDA takes
    /// the last replica away; absent where KEDA never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub after_seconds: Option<i64>,
    /// The port of interceptors that stands for the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Whether the Service's EndpointSlices list interceptors.
    pub published: bool,
}
