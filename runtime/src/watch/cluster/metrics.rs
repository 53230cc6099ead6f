//! How the watches of a Kubernetes API server are doing. Written by the watches and their collector.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{super::Kind, link::Reason, objects::Objects};

/// Handles of the metrics. Clones share them; those of `default` are nobody's.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    lists: Family<OfKind, Counter>,
    errors: Family<OfError, Counter>,
    connected: Family<OfKind, Gauge>,
    last_event: Family<OfKind, Gauge>,
    objects: Family<OfKind, Gauge>,
    refused: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfError {
    kind: &'static str,
    reason: &'static str,
}

// === impl WatchMetrics ===

impl WatchMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { lists, errors, connected, last_event, objects, refused } = metrics.clone();
        let ours = registry.sub_registry_with_prefix("rouse_watch");
        ours.register("lists", "Times all objects of a kind were listed from the Kubernetes API", lists);
        ours.register("errors", "Failed requests and broken watches of the Kubernetes API", errors);
        ours.register(
            "connected",
            "Whether the Kubernetes API answered the last request of the kind's watch",
            connected,
        );
        let help = "Time of the last object that came from the Kubernetes API, since the epoch";
        ours.register_with_unit("last_event_timestamp", help, Unit::Seconds, last_event);
        ours.register("objects", "Objects that are known from the Kubernetes API", objects);
        let help = "Times an object of the Kubernetes API was left out because there were too many";
        ours.register("refused_objects", help, refused);
        metrics
    }

    pub(super) fn connected(&self, kind: Kind, connected: bool) {
        self.connected.get_or_create(&OfKind::new(kind)).set(i64::from(connected));
    }

    pub(super) fn restarted(&self, kind: Kind) {
        self.lists.get_or_create(&OfKind::new(kind)).inc();
    }

    pub(super) fn heard(&self, kind: Kind) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.last_event.get_or_create(&OfKind::new(kind)).set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    pub(super) fn failed(&self, kind: Kind, reason: Reason) {
        self.errors.get_or_create(&OfError { kind: kind.name(), reason: reason.name() }).inc();
    }

    pub(super) fn note(&self, objects: &mut Objects) {
        let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
        for (kind, known) in objects.known() {
            self.objects.get_or_create(&OfKind::new(kind)).set(number(known));
        }
        self.refused.inc_by(objects.take_refused());
    }
}

// === impl OfKind ===

impl OfKind {
    fn new(kind: Kind) -> Self {
        Self { kind: kind.name() }
    }
}
