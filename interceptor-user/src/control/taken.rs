//! What pods of this node take without a proxy, by upstream. Written by the agent's count task; read by the counts stream,
//! `/state` and the metrics.

use std::{collections::BTreeMap, sync::Arc};

use dataplane::{
    ConnectionCounters,
    count::{Load, Served},
};
use interceptor_core::UpstreamId;
use parking_lot::Mutex;

/// The last reading; nothing before there was one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken(Arc<Mutex<Option<Reading>>>);

type Reading = Arc<BTreeMap<UpstreamId, Pods>>;

/// What the pods of one upstream took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pods {
    pub(crate) load: Load,
    pub(crate) connections: ConnectionCounters,
    pub(crate) served: Served,
}

// === impl Taken ===

impl Taken {
    pub(crate) fn set(&self, taken: BTreeMap<UpstreamId, Pods>) {
        *self.0.lock() = Some(Arc::new(taken));
    }

    /// Whether there was a reading.
    pub(crate) fn is_read(&self) -> bool {
        self.0.lock().is_some()
    }

    pub(crate) fn all(&self) -> Arc<BTreeMap<UpstreamId, Pods>> {
        self.0.lock().clone().unwrap_or_default()
    }

    pub(crate) fn of(&self, upstream: UpstreamId) -> Option<Pods> {
        self.0.lock().as_ref()?.get(&upstream).copied()
    }
}
