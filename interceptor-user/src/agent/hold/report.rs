//! What `/state` tells of the hold. Written by the hold's task.

use std::{collections::HashMap, sync::Arc};

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
}
