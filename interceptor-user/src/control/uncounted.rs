//! Which upstreams have ready pods on this node of which nobody counts what they take. Written by the agent's task that
//! compares; read by the counts stream and `/state`.

use std::{collections::BTreeSet, sync::Arc};

use interceptor_core::UpstreamId;
use parking_lot::Mutex;

/// The last comparison; nothing before there was one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uncounted(Arc<Mutex<Option<Arc<BTreeSet<UpstreamId>>>>>);

// === impl Uncounted ===

impl Uncounted {
    pub(crate) fn set(&self, upstreams: BTreeSet<UpstreamId>) {
        *self.0.lock() = Some(Arc::new(upstreams));
    }

    /// Whether objects and counters have been read, so that what is told means something.
    pub(crate) fn is_known(&self) -> bool {
        self.0.lock().is_some()
    }

    pub(crate) fn contains(&self, upstream: UpstreamId) -> bool {
        self.0.lock().as_ref().is_some_and(|upstreams| upstreams.contains(&upstream))
    }
}
