//! What the hold does and costs. Written by the hold's task.

use dataplane::Attachment;
use interceptor_core::holding::Limit;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Handles of the metrics. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct HoldMetrics {
    active: Gauge,
    node_active: Gauge,
    waiting: Gauge,
    connections: Family<OfEnd, Counter>,
    tries: Counter,
    swallowed: Counter,
    untold: Counter,
    rejected: Family<OfLimit, Counter>,
    ignored: Counter,
    failures: Family<OfFailure, Counter>,
    seconds: Histogram,
    devices: Gauge,
    services: Gauge,
    left_out: Gauge,
    drift: Counter,
}

/// How the wait of a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A pod has taken it.
    Taken,
    /// It was given to the node's own rules.
    Released,
    /// It waited for as long as it may, and was refused or dropped.
    Expired,
    /// The client went.
    Left,
    /// The client's device went.
    Lost,
    /// Its address leads elsewhere, where it began anew.
    Moved,
}

/// What could not be done for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Connection tracking refuses the entry.
    Conntrack,
    /// The map of tried connections is full.
    Tried,
    /// The packet could not be put on its device.
    Device,
    /// The node could not send its own client's packet.
    Node,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEnd {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLimit {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFailure {
    step: &'static str,
}

// === impl HoldMetrics ===

impl HoldMetrics {
    /// Registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        // From a millisecond to a minute.
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 17));
        let metrics = Self {
            active: Gauge::default(),
            node_active: Gauge::default(),
            waiting: Gauge::default(),
            connections: Family::default(),
            tries: Counter::default(),
            swallowed: Counter::default(),
            untold: Counter::default(),
            rejected: Family::default(),
            ignored: Counter::default(),
            failures: Family::default(),
            seconds,
            devices: Gauge::default(),
            services: Gauge::default(),
            left_out: Gauge::default(),
            drift: Counter::default(),
        };
        let ours = registry.sub_registry_with_prefix("rouse_hold");
        let all = metrics.clone();
        ours.register("active", "Whether this node holds connections: 1, or 0 with the reason in /state", all.active);
        ours.register("node_active", "The same for connections of the node itself", all.node_active);
        ours.register("waiting_connections", "Connections that are held now", all.waiting);
        ours.register("connections", "Connections whose hold has ended, by outcome", all.connections);
        ours.register("tries", "First packets sent on to a pod", all.tries);
        ours.register("refusals_swallowed", "Refusals of pods not listening yet, kept from clients", all.swallowed);
        ours.register(
            "packets_untold",
            "First packets dropped because the agent was too slow to read them",
            all.untold,
        );
        ours.register("connections_rejected", "First packets dropped at a limit; clients repeat them", all.rejected);
        ours.register(
            "packets_ignored",
            "First packets let go on because their clients are no demand, or not the address's",
            all.ignored,
        );
        ours.register("failures", "Held packets that could not be sent on, by step", all.failures);
        ours.register_with_unit(
            "wait",
            "From a connection's first packet to its pod's answer",
            Unit::Seconds,
            all.seconds,
        );
        ours.register("devices", "Devices that the programs are attached to", all.devices);
        ours.register("services", "Services whose connections are held while they are cold", all.services);
        ours.register("services_left_out", "Services that the kernel's maps have no room for", all.left_out);
        ours.register("map_drift", "Entries of the kernel's maps found wrong, and mended", all.drift);
        metrics
    }

    pub(super) fn active(&self, active: bool, of_node: bool) {
        self.active.set(i64::from(active));
        self.node_active.set(i64::from(of_node));
    }

    pub(super) fn waiting(&self, connections: usize) {
        self.waiting.set(count(connections));
    }

    pub(super) fn ended(&self, end: End) {
        let outcome = match end {
            End::Taken => "taken",
            End::Released => "released",
            End::Expired => "expired",
            End::Left => "left",
            End::Lost => "lost",
            End::Moved => "moved",
        };
        self.connections.get_or_create(&OfEnd { outcome }).inc();
    }

    pub(super) fn waited(&self, seconds: f64) {
        self.seconds.observe(seconds);
    }

    pub(super) fn tried(&self) {
        self.tries.inc();
    }

    /// Takes the kernel's own counters over, which only grow.
    pub(super) fn kernel(&self, swallowed: u64, untold: u64) {
        self.swallowed.inc_by(swallowed.saturating_sub(self.swallowed.get()));
        self.untold.inc_by(untold.saturating_sub(self.untold.get()));
    }

    pub(super) fn rejected(&self, limit: Limit) {
        let limit = match limit {
            Limit::All => "all",
            Limit::Service => "service",
            Limit::Client => "client",
        };
        self.rejected.get_or_create(&OfLimit { limit }).inc();
    }

    pub(super) fn ignored(&self) {
        self.ignored.inc();
    }

    pub(super) fn failed(&self, failure: Failure) {
        let step = match failure {
            Failure::Conntrack => "conntrack",
            Failure::Tried => "tried",
            Failure::Device => "device",
            Failure::Node => "node",
        };
        self.failures.get_or_create(&OfFailure { step }).inc();
    }

    pub(super) fn attached(&self, attachment: &Attachment) {
        self.devices.set(count(attachment.names.len()));
    }

    pub(super) fn services(&self, services: usize, left_out: usize) {
        self.services.set(count(services));
        self.left_out.set(count(left_out));
    }

    pub(super) fn drifted(&self, entries: usize) {
        self.drift.inc_by(u64::try_from(entries).unwrap_or(u64::MAX));
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
