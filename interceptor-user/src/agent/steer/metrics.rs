//! What the steering does. Written by its task.

use dataplane::steer::SteerStats;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// Handles of the metrics. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct SteerMetrics {
    active: Gauge,
    cgroups: Gauge,
    refused: Gauge,
    services: Gauge,
    left_out: Gauge,
    interceptors: Gauge,
    interceptors_left_out: Gauge,
    connections: Counter,
    seen_through: Counter,
    nobody: Counter,
    drift: Counter,
}

// === impl SteerMetrics ===

impl SteerMetrics {
    /// Registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let ours = registry.sub_registry_with_prefix("rouse_steer");
        let all = metrics.clone();
        ours.register("active", "Whether this node can steer: 1, or 0 with the reason in /state", all.active);
        ours.register(
            "cgroups",
            "Cgroups that the programs are attached to; none while nothing is steered",
            all.cgroups,
        );
        ours.register("cgroups_refused", "Cgroups that refuse the programs", all.refused);
        ours.register("services", "Services whose connections are steered now", all.services);
        ours.register("services_left_out", "Services that the kernel's maps have no room for", all.left_out);
        ours.register("interceptors", "Interceptors that connections are spread over", all.interceptors);
        ours.register(
            "interceptors_left_out",
            "Interceptors that the kernel's maps have no room for",
            all.interceptors_left_out,
        );
        ours.register("connections", "Connections that went to an interceptor", all.connections);
        ours.register(
            "connections_seen_through",
            "Those of them whose clients see the interceptor's address, for want of memory",
            all.seen_through,
        );
        ours.register(
            "connections_unsteered",
            "Connections left alone because no interceptor of their family was there",
            all.nobody,
        );
        ours.register("map_drift", "Entries of the kernel's maps found wrong, and mended", all.drift);
        metrics
    }

    pub(super) fn active(&self, active: bool) {
        self.active.set(i64::from(active));
    }

    pub(super) fn attached(&self, cgroups: usize, refused: usize) {
        self.cgroups.set(count(cgroups));
        self.refused.set(count(refused));
    }

    pub(super) fn services(&self, services: usize, left_out: usize) {
        self.services.set(count(services));
        self.left_out.set(count(left_out));
    }

    pub(super) fn interceptors(&self, listed: usize, left_out: usize) {
        self.interceptors.set(count(listed));
        self.interceptors_left_out.set(count(left_out));
    }

    /// Takes the kernel's own counters over, which only grow.
    pub(super) fn kernel(&self, stats: &SteerStats) {
        let SteerStats { steered, seen_through, nobody } = *stats;
        for (counter, now) in [(&self.connections, steered), (&self.seen_through, seen_through), (&self.nobody, nobody)]
        {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    pub(super) fn drifted(&self, entries: usize) {
        self.drift.inc_by(u64::try_from(entries).unwrap_or(u64::MAX));
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
