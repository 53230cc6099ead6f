//! Connections that pods of this node have not accepted yet, by upstream. Written by the agent's task that reads accept
//! queues; read by the counts stream, `/state` and the metrics.

use std::{collections::BTreeMap, sync::Arc};

use interceptor_core::UpstreamId;
use parking_lot::Mutex;

/// The last reading, of upstreams whose routes scale by it. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting(Arc<Mutex<Arc<BTreeMap<UpstreamId, Backlog>>>>);

/// What waits at the pods of one upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Connections that are known of.
    pub(crate) depth: u64,
    /// Whether there are pods that could not be looked at.
    pub(crate) unknown: bool,
}

// === impl Waiting ===

impl Waiting {
    pub(crate) fn set(&self, waiting: BTreeMap<UpstreamId, Backlog>) {
        *self.0.lock() = Arc::new(waiting);
    }

    pub(crate) fn of(&self, upstream: UpstreamId) -> Option<Backlog> {
        self.0.lock().get(&upstream).copied()
    }
}
