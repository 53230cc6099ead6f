//! What `/state` tells of the hold. Written by the hold's task.

use std::{collections::HashMap, mem, sync::Arc};

use interceptor_core::{ObjectKey, UpstreamId, frontends::Heat};
use parking_lot::Mutex;

/// What `/state` tells of the hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report(pub(super) Arc<Mutex<Known>>);

/// What is known of the hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Why nothing is held, if so.
    pub(crate) off: Option<String>,
    /// Why connections of the node itself are not held, if so.
    pub(crate) node_off: Option<String>,
    /// How the last of the held connections has reached its pod, or is to.
    pub(crate) way: Way,
    /// Names of the devices that have the programs.
    pub(crate) devices: Vec<String>,
    /// Devices that can't have them, and why.
    pub(crate) failed: Vec<(String, String)>,
    /// Services that are held while they are cold, and whether they are.
    pub(crate) services: HashMap<UpstreamId, Heat>,
    /// Services that the maps have no room for, and why.
    pub(crate) left_out: Vec<(ObjectKey, String)>,
}

/// How a held connection reaches its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Way {
    /// By an entry of ours in connection tracking, as soon as a pod is ready.
    #[default]
    Conntrack,
    /// By the node's own rules, when they know the pod: connection tracking has refused the entry.
    Rules,
}

// === impl Report ===

impl Report {
    pub(crate) fn load(&self) -> Known {
        self.0.lock().clone()
    }

    /// Notes by which way a held connection reaches its pod, and logs it if the one before went another.
    pub(super) fn goes_by(&self, way: Way) {
        let before = mem::replace(&mut self.0.lock().way, way);
        match (before, way) {
            (Way::Conntrack, Way::Rules) => {
                tracing::warn!(
                    "connection tracking refuses an entry: what it is for waits until the node's own rules know the pod"
                );
            }
            (Way::Rules, Way::Conntrack) => tracing::info!("connection tracking takes entries again"),
            (Way::Conntrack, Way::Conntrack) | (Way::Rules, Way::Rules) => {}
        }
    }
}
