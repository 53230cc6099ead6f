//! What is known of one route at one moment: all that its plan depends on.

use std::time::Duration;

use api::{ReadinessProbe, UnnamedProbe};
use interceptor_core::index::Problem;
use k8s_openapi::api::core::v1::PodSpec;
use tokio::time::Instant;

use crate::{
    object::{Object, Scaled},
    shadow::Seen,
};

/// A route with everything around it.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The route.
    pub object: Object,
    /// What the routing table finds wrong with it, in order.
    pub problems: Vec<Problem>,
    /// The ScaledObject that has the route's name.
    pub same_name: Option<Scaled>,
    /// The `ScaledObjects` with a trigger that names the route.
    pub naming: Vec<Scaled>,
    /// Whether KEDA's resource exists.
    pub keda: bool,
    /// The readiness probe of the workload's pods.
    pub probe: Probed,
    /// What there is to know of its shadow slices, if it has to do with any.
    pub shadow: Option<Seen>,
    /// After which time without demand interceptors have to be listed; `None` where KEDA leaves a replica.
    pub after: Option<Duration>,
    /// When to look again though nothing has changed.
    pub again: Option<Instant>,
}

/// The readiness probe of a workload's pods, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probed {
    /// There is no workload to read.
    #[default]
    Unknown,
    /// It could not be read: what was known before stays.
    Unreadable,
    /// It was read; `None` when there is none that an interceptor could run. With it, all probes that do not show that they are a
    /// kubelet's.
    Read(Option<ReadinessProbe>, Vec<UnnamedProbe>),
}

// === impl Observed ===

impl Observed {
    /// The ScaledObject that the operator made for this route.
    pub fn owned(&self) -> Option<&Scaled> {
        self.same_name.as_ref().filter(|scaled| scaled.is_owned_by(&self.object.subject, &self.object.meta.uid))
    }

    /// The ScaledObject that scales the route's workload.
    pub fn current(&self) -> Option<&Scaled> {
        self.owned().or_else(|| self.naming.first())
    }

    /// After which time without demand KEDA may take the last replica of a workload away, by whichever ScaledObject comes first.
    pub fn sleeps_after(&self, ahead: Duration) -> Option<Duration> {
        let all = self.owned().into_iter().chain(&self.naming);
        all.filter(|scaled| !scaled.paused).filter_map(|scaled| scaled.sleeps_after(ahead)).min()
    }

    /// Whether nobody counts what a pod takes; as it was while the route can't be read.
    pub fn is_uncounted(&self) -> bool {
        match &self.object.route {
            Ok(_) => self.shadow.as_ref().is_some_and(|seen| !seen.uncounted.is_empty()),
            Err(_) => self.object.status["uncounted"] == true,
        }
    }
}

// === impl Probed ===

impl Probed {
    /// What a pod template says, if there is one.
    pub fn of_pod(pod: Option<&PodSpec>) -> Self {
        Self::Read(pod.and_then(ReadinessProbe::of_pod), pod.map(UnnamedProbe::of_pod).unwrap_or_default())
    }
}
