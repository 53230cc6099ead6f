//! How an InterceptorRoute is scaled: by which demand, and by which ScaledObject.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    duration::GoDuration,
    schema::{one_minute, one_second},
};

/// How demand is measured; several may be set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingMetric {
    /// By connections that are held or that the pods have not accepted yet; needs dataPath Direct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_queue: Option<AcceptQueueTarget>,
    /// By requests in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ConcurrencyTarget>,
    /// By connections that are held or open; needs dataPath Direct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionsTarget>,
    /// By requests per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_rate: Option<RequestRateTarget>,
}

/// The ScaledObject that the operator writes for the route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingSpec {
    /// Idle time before scaling to zero; KEDA's 5m unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown: Option<GoDuration>,
    /// Idle time before the first scale to zero after the ScaledObject was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_cooldown: Option<GoDuration>,
    /// At most so many replicas; KEDA's 100 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_replicas: Option<i32>,
    /// At least so many replicas.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_replicas: i32,
    /// The workload; a Deployment with the name of the target's Service unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_target_ref: Option<ScalingTargetRef>,
}

/// A workload in the route's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingTargetRef {
    /// Its API version.
    #[serde(default = "apps_v1")]
    #[schemars(length(min = 1))]
    pub api_version: String,
    /// Its kind.
    #[serde(default = "deployment")]
    #[schemars(length(min = 1))]
    pub kind: String,
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// Demand by connections that wait to be accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptQueueTarget {
    /// Waiting connections per replica.
    #[schemars(range(min = 1))]
    pub target_value: i32,
}

/// Demand by requests in flight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConcurrencyTarget {
    /// Requests in flight per replica.
    #[schemars(range(min = 1))]
    pub target_value: i32,
}

/// Demand by connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionsTarget {
    /// Open connections per replica.
    #[schemars(range(min = 1))]
    pub target_value: i32,
}

/// Demand by requests per second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestRateTarget {
    /// Length of the buckets the window is divided into.
    #[serde(default = "one_second")]
    pub granularity: GoDuration,
    /// Requests per second and replica.
    #[schemars(range(min = 1))]
    pub target_value: i32,
    /// Time over which the rate is averaged.
    #[serde(default = "one_minute")]
    pub window: GoDuration,
}

fn apps_v1() -> String {
    "apps/v1".to_owned()
}

fn deployment() -> String {
    "Deployment".to_owned()
}
