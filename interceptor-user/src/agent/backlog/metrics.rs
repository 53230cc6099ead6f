//! What the readings of accept queues do, and what they found of routes, read at each scrape.

use std::fmt;

use interceptor_core::route::DataPath;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};
use runtime::snapshot::Reader;

use crate::control::waiting::Waiting;

/// Handles of the metrics. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct BacklogMetrics {
    active: Gauge,
    pods: Gauge,
    unknown: Gauge,
}

/// The figures of routes that ask for them.
#[derive(Debug)]
struct Routes {
    reader: Reader,
    waiting: Waiting,
}

// === impl BacklogMetrics ===

impl BacklogMetrics {
    /// Registers them.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self { active: Gauge::default(), pods: Gauge::default(), unknown: Gauge::default() };
        let ours = registry.sub_registry_with_prefix("rouse_accept_queue");
        let Self { active, pods, unknown } = metrics.clone();
        ours.register(
            "active",
            "Whether accept queues are read: 1, or 0 with the reason in /state, or nobody asks",
            active,
        );
        ours.register("pods", "Pods whose accept queues are asked for", pods);
        ours.register(
            "services_unknown",
            "Services with pods whose accept queue is not known; /state says why",
            unknown,
        );
        metrics
    }

    /// Registers the figures of routes.
    pub(super) fn register_routes(registry: &mut Registry, reader: Reader, waiting: Waiting) {
        registry.register_collector(Box::new(Routes { reader, waiting }));
    }

    pub(super) fn active(&self, active: bool) {
        self.active.set(i64::from(active));
    }

    pub(super) fn pods(&self, pods: usize, unknown: usize) {
        self.pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
        self.unknown.set(i64::try_from(unknown).unwrap_or(i64::MAX));
    }
}

// === impl Routes ===

impl Collector for Routes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.reader.load();
        let direct = snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct);
        let asking = direct.filter(|entry| entry.route.scaling.accept_queue.is_some());
        let help = "Connections that the route's pods on this node have not accepted yet, as far as it is known";
        let mut family = encoder.encode_descriptor("rouse_direct_accept_queue", help, None, MetricType::Gauge)?;
        for entry in asking {
            let Some(backlog) = self.waiting.of(entry.upstream) else { continue };
            let key = &entry.route.key;
            let labels = [("route_name", key.name()), ("route_namespace", key.namespace())];
            ConstGauge::new(backlog.depth).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
