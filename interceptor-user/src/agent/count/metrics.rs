//! What the counting does, and what pods of this node take. Handles are written by the task; the figures of routes are read
//! at each scrape.

use std::fmt;

use dataplane::count::Refused;
use interceptor_core::route::DataPath;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};
use runtime::snapshot::Reader;

use crate::control::taken::{Pods, Taken};

/// Handles of the metrics. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct CountMetrics {
    active: Gauge,
    http2: Gauge,
    pods: Gauge,
    refused: Gauge,
    missing: Gauge,
    left_out: Gauge,
    origins_refused: Gauge,
    probes_refused: Gauge,
    drift: Counter,
    put_back: Counter,
    missed: Counter,
    listened: Counter,
    woken: Counter,
    untold: Counter,
    dropped: Counter,
}

/// The figures of direct routes.
#[derive(Debug)]
struct Routes {
    reader: Reader,
    taken: Taken,
}

/// One figure of a route's pods.
struct Figure {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    read: fn(&Pods) -> u64,
}

const FIGURES: [Figure; 8] = [
    Figure {
        name: "rouse_direct_requests",
        help: "Requests that the route's pods on this node took without a proxy",
        kind: MetricType::Counter,
        read: |pods| pods.load.requests,
    },
    Figure {
        name: "rouse_direct_requests_in_flight",
        help: "Requests in flight in the route's pods on this node, the mean of the last quarter of a second",
        kind: MetricType::Gauge,
        read: |pods| pods.load.in_flight,
    },
    Figure {
        name: "rouse_direct_connections_opened",
        help: "Connections that the route's pods on this node accepted",
        kind: MetricType::Counter,
        read: |pods| pods.served.opened,
    },
    Figure {
        name: "rouse_direct_connections_closed",
        help: "Connections of the route's pods on this node that have ended",
        kind: MetricType::Counter,
        read: |pods| pods.connections.closed,
    },
    Figure {
        name: "rouse_direct_connections_failed",
        help: "Connections of the route's pods on this node that ended with a request unanswered",
        kind: MetricType::Counter,
        read: |pods| pods.served.failed,
    },
    Figure {
        name: "rouse_direct_srtt_microseconds",
        help: "Round-trip time between the route's pods on this node and their clients",
        kind: MetricType::Gauge,
        read: |pods| pods.served.srtt_us,
    },
    Figure {
        name: "rouse_direct_first_byte_microseconds",
        help: "Times from requests to the first bytes of their answers, HTTP/1.1 with and without TLS, all together",
        kind: MetricType::Counter,
        read: |pods| pods.served.first_byte_ns / 1000,
    },
    Figure {
        name: "rouse_direct_first_bytes",
        help: "How many of these times there were",
        kind: MetricType::Counter,
        read: |pods| pods.served.first_bytes.iter().sum(),
    },
];

// === impl CountMetrics ===

impl CountMetrics {
    /// Registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            active: Gauge::default(),
            http2: Gauge::default(),
            pods: Gauge::default(),
            refused: Gauge::default(),
            missing: Gauge::default(),
            left_out: Gauge::default(),
            origins_refused: Gauge::default(),
            probes_refused: Gauge::default(),
            drift: Counter::default(),
            put_back: Counter::default(),
            missed: Counter::default(),
            listened: Counter::default(),
            woken: Counter::default(),
            untold: Counter::default(),
            dropped: Counter::default(),
        };
        let ours = registry.sub_registry_with_prefix("rouse_count");
        let all = metrics.clone();
        ours.register("active", "Whether this node counts: 1, or 0 with the reason in /state", all.active);
        ours.register(
            "http2_active",
            "Whether it counts requests of HTTP/2: 1, or 0 with the reason in /state",
            all.http2,
        );
        ours.register("pods", "Pods whose connections and requests are counted", all.pods);
        ours.register("pods_refused", "Pods whose cgroups refuse the programs; /state says why", all.refused);
        ours.register("pods_missing", "Pods of this node, by the slices, whose cgroup is not there", all.missing);
        ours.register("routes_left_out", "Services that the kernel's maps have no room for", all.left_out);
        ours.register("origins_refused", "Clients to be left out that the map has no room for", all.origins_refused);
        ours.register("probes_refused", "Kubelets' probes that the map has no room for", all.probes_refused);
        ours.register("map_drift", "Entries of the kernel's maps found wrong, and mended", all.drift);
        ours.register("pods_put_back", "Pods that had lost the programs and have them again", all.put_back);
        ours.register("connections_missed", "Connections that the kernel had no memory to count", all.missed);
        ours.register("listens", "Sockets of counted pods that began to listen", all.listened);
        ours.register("wakes", "Times that pods at rest were seen to have something to do", all.woken);
        ours.register("notices_untold", "Of both, those that the kernel had no room to tell", all.untold);
        ours.register("listens_dropped", "Of the former, those that the hold had no room for", all.dropped);
        metrics
    }

    /// Registers the figures of routes.
    pub(crate) fn register_routes(registry: &mut Registry, reader: Reader, taken: Taken) {
        registry.register_collector(Box::new(Routes { reader, taken }));
    }

    pub(super) fn active(&self, active: bool) {
        self.active.set(i64::from(active));
    }

    pub(super) fn http2(&self, counted: bool) {
        self.http2.set(i64::from(counted));
    }

    pub(super) fn pods(&self, counted: usize, refused: usize, missing: usize) {
        set(&self.pods, counted);
        set(&self.refused, refused);
        set(&self.missing, missing);
    }

    pub(super) fn left_out(&self, routes: usize) {
        set(&self.left_out, routes);
    }

    pub(super) fn origins_refused(&self, Refused { origins, probes }: Refused) {
        set(&self.origins_refused, origins);
        set(&self.probes_refused, probes);
    }

    pub(super) fn put_back(&self, pods: usize) {
        self.put_back.inc_by(u64::try_from(pods).unwrap_or(u64::MAX));
    }

    pub(super) fn drift(&self, entries: usize) {
        self.drift.inc_by(u64::try_from(entries).unwrap_or(u64::MAX));
    }

    pub(super) fn listened(&self) {
        self.listened.inc();
    }

    pub(super) fn woken(&self) {
        self.woken.inc();
    }

    pub(super) fn notice_dropped(&self) {
        self.dropped.inc();
    }

    /// So many notices have had no room in all.
    pub(super) fn untold(&self, notices: u64) {
        self.untold.inc_by(notices.saturating_sub(self.untold.get()));
    }

    /// So many connections have been missed in all.
    pub(super) fn missed(&self, connections: u64) {
        self.missed.inc_by(connections.saturating_sub(self.missed.get()));
    }
}

// === impl Routes ===

impl Collector for Routes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.reader.load();
        let direct = snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct);
        let counted: Vec<_> =
            direct.filter_map(|entry| Some((&entry.route.key, self.taken.of(entry.upstream)?))).collect();
        for Figure { name, help, kind, read } in FIGURES {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (key, pods) in &counted {
                let labels = [("route_name", key.name()), ("route_namespace", key.namespace())];
                let metric = family.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(read(pods)).encode(metric)?,
                    _ => ConstGauge::new(read(pods)).encode(metric)?,
                }
            }
        }
        Ok(())
    }
}

fn set(gauge: &Gauge, count: usize) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}
