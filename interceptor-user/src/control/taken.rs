//! What pods of this node take without a proxy, by upstream. Written by the agent's count task; read by the counts stream,
//! `/state` and the metrics.

use std::{collections::BTreeMap, sync::Arc};

use dataplane::{
    ConnectionCounters,
    count::{Load, Served},
};
use interceptor_core::{RouteEntry, Snapshot, UpstreamId};
use parking_lot::Mutex;

/// The last reading; nothing before there was one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken(Arc<Mutex<Option<Reading>>>);

/// What was read, and by which routes.
#[derive(Debug)]
struct Reading {
    pods: Arc<BTreeMap<UpstreamId, Pods>>,
    snapshot: Arc<Snapshot>,
}

/// What the pods of one upstream took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pods {
    pub(crate) load: Load,
    pub(crate) connections: ConnectionCounters,
    pub(crate) served: Served,
}

// === impl Taken ===

impl Taken {
    /// What was read of the upstreams of a snapshot that are counted.
    pub(crate) fn set(&self, pods: BTreeMap<UpstreamId, Pods>, snapshot: Arc<Snapshot>) {
        *self.0.lock() = Some(Reading { pods: Arc::new(pods), snapshot });
    }

    /// Whether there was a reading by which a route led where it does now. What is told of it before that begins at a total that it may
    /// never have had.
    pub(crate) fn knows(&self, entry: &RouteEntry) -> bool {
        let reading = self.0.lock();
        let known = reading.as_ref().and_then(|reading| reading.snapshot.route(entry.id));
        known.is_some_and(|known| known.route.data_path == entry.route.data_path && known.upstream == entry.upstream)
    }

    /// Whether there was a reading.
    pub(crate) fn is_read(&self) -> bool {
        self.0.lock().is_some()
    }

    pub(crate) fn all(&self) -> Arc<BTreeMap<UpstreamId, Pods>> {
        self.0.lock().as_ref().map(|reading| Arc::clone(&reading.pods)).unwrap_or_default()
    }

    pub(crate) fn of(&self, upstream: UpstreamId) -> Option<Pods> {
        self.0.lock().as_ref()?.pods.get(&upstream).copied()
    }
}
