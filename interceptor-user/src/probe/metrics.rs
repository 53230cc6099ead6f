//! What probing costs and brings. Written by the prober and its rounds.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Handles of the metrics. Clones share them; those of `default` are nobody's.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProbeMetrics {
    probes: Family<OfProbe, Counter>,
    woken: Counter,
    dropped: Family<OfDrop, Counter>,
    skipped: Counter,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pod says that it is ready.
    Ready,
    /// The pod says that it is not.
    Unready,
    /// The pod takes no connection.
    Refused,
    /// The pod does not answer in time.
    Timeout,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProbe {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDrop {
    reason: &'static str,
}

// === impl ProbeMetrics ===

impl ProbeMetrics {
    /// Registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { probes, woken, dropped, skipped } = metrics.clone();
        let ours = registry.sub_registry_with_prefix("rouse_readiness");
        ours.register("probes", "Readiness probes run while requests were held, by outcome", probes);
        ours.register("wakes", "Pods taken as ready by their probe before their slice said so", woken);
        ours.register("verdicts_dropped", "Pods no longer taken as ready by their probe, by reason", dropped);
        ours.register("probes_skipped", "Probes put off or left out because too many were under way", skipped);
        metrics
    }

    pub(super) fn probed(&self, outcome: Outcome) {
        self.probes.get_or_create(&OfProbe { outcome: outcome.name() }).inc();
    }

    pub(super) fn woken(&self) {
        self.woken.inc();
    }

    pub(super) fn skipped(&self) {
        self.skipped.inc();
    }

    pub(super) fn dropped_refused(&self) {
        self.dropped.get_or_create(&OfDrop { reason: "refused" }).inc();
    }

    pub(super) fn dropped_unconfirmed(&self) {
        self.dropped.get_or_create(&OfDrop { reason: "unconfirmed" }).inc();
    }
}

// === impl Outcome ===

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
        }
    }
}
