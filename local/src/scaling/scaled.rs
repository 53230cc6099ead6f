//! A ScaledObject as the autoscaler needs it; also what an HTTPScaledObject stands for.

use std::{collections::BTreeMap, time::Duration};

use interceptor_core::ObjectKey;

use super::{
    hpa::{Behavior, TargetKind},
    keda::Limits,
};
use crate::cluster::RouteName;

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

// === impl ScaledWorkload ===

impl ScaledWorkload {
    /// Whether a trigger names this route.
    pub fn serves(&self, route: &RouteName) -> bool {
        let field = if route.kind == "InterceptorRoute" { "interceptorRoute" } else { "httpScaledObject" };
        let names = |trigger: &Trigger| trigger.metadata.get(field).is_some_and(|name| name == route.key.name());
        self.key.namespace() == route.key.namespace() && self.triggers.iter().any(names)
    }
}
