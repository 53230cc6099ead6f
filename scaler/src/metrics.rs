//! The scaler's metrics: the original's four `scaler_pinger_*`, and ours per route. Written by the collectors; the rest
//! is read off the board at each scrape, so that a route that goes takes its series with it.

use std::{fmt, sync::Arc, time::Duration};

use interceptor_core::demand::KernelSum;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use crate::{
    board::{Board, RouteState},
    incoming::Refused,
    service::Streams,
};

const FETCH_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0];

/// What collectors count.
#[derive(Clone, Debug)]
pub struct Fetches {
    duration: Histogram,
    errors: Counter,
}

/// Labels of an exemplar, of which there is none.
type NoLabels = [(String, String); 0];

/// Reads the board at each scrape.
#[derive(Debug)]
struct OnScrape {
    board: Board,
    streams: Arc<Streams>,
    refused: Arc<Refused>,
}

/// A family with one series a route.
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    value: MetricType,
    /// `None` leaves the series out.
    read: fn(&RouteState) -> Option<f64>,
}

const FAMILIES: [Family; 11] = [
    Family {
        name: "scaler_route_concurrency",
        help: "Requests in flight, over all interceptors",
        unit: None,
        value: MetricType::Gauge,
        read: |route| Some(as_float(route.in_flight)),
    },
    Family {
        name: "scaler_route_request_rate",
        help: "Request rate as told to KEDA, of routes that ask for one",
        unit: None,
        value: MetricType::Gauge,
        read: |route| route.rate,
    },
    Family {
        name: "scaler_route_connections",
        help: "Connections held for the route, or open to its pods without a proxy, over all node agents",
        unit: None,
        value: MetricType::Gauge,
        read: |route| Some(as_float(route.connections)),
    },
    Family {
        name: "scaler_route_accept_queue",
        help: "Connections held for the route, or not accepted yet by its pods, of routes that scale by them",
        unit: None,
        value: MetricType::Gauge,
        read: |route| route.accept_queue.map(as_float),
    },
    Family {
        name: "scaler_route_accept_queue_unknown",
        help: "Node agents that cannot read the accept queues of all of the route's pods",
        unit: None,
        value: MetricType::Gauge,
        read: |route| route.accept_queue_unknown.map(as_float),
    },
    Family {
        name: "scaler_route_uncounted",
        help: "Node agents that do not count what all of the route's pods take; its workload is kept from zero",
        unit: None,
        value: MetricType::Gauge,
        read: |route| route.uncounted.map(as_float),
    },
    Family {
        name: "scaler_route_connections_opened",
        help: "Connections to the route's pods that kernels saw open",
        unit: None,
        value: MetricType::Counter,
        read: |route| kernel(route, |kernel| kernel.opened),
    },
    Family {
        name: "scaler_route_connections_closed",
        help: "Connections to the route's pods that kernels saw close",
        unit: None,
        value: MetricType::Counter,
        read: |route| kernel(route, |kernel| kernel.closed),
    },
    Family {
        name: "scaler_route_connections_failed",
        help: "Connections to the route's pods that kernels saw fail",
        unit: None,
        value: MetricType::Counter,
        read: |route| kernel(route, |kernel| kernel.failed),
    },
    Family {
        name: "scaler_route_connections_open",
        help: "Connections to the route's pods that are open, of interceptors that are listed",
        unit: None,
        value: MetricType::Gauge,
        read: |route| kernel(route, |kernel| kernel.open),
    },
    Family {
        name: "scaler_route_connections_srtt",
        help: "Smoothed round-trip time to the route's pods, mean over interceptors",
        unit: Some(Unit::Seconds),
        value: MetricType::Gauge,
        read: |route| route.kernel.and_then(|kernel| kernel.srtt()).map(|srtt| srtt.as_secs_f64()),
    },
];

/// Registers everything; returns what collectors write.
pub fn register(registry: &mut Registry, board: Board, streams: Arc<Streams>, refused: Arc<Refused>) -> Fetches {
    let fetches = Fetches { duration: Histogram::new(FETCH_BUCKETS), errors: Counter::default() };
    registry.register_with_unit(
        "scaler_pinger_fetch_duration",
        "Duration of a queue pinger fetch cycle across all interceptor pods",
        Unit::Seconds,
        fetches.duration.clone(),
    );
    registry.register("scaler_pinger_fetch_errors", "Total failed queue pinger fetch cycles", fetches.errors.clone());
    registry.register_collector(Box::new(OnScrape { board, streams, refused }));
    fetches
}

// === impl Fetches ===

impl Fetches {
    /// An interceptor answered `GET /queue`, or its stream's first message came, after so long.
    pub(crate) fn took(&self, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
    }

    /// A tick went by in which no interceptor was heard.
    pub(crate) fn failed(&self) {
        self.errors.inc();
    }
}

// === impl OnScrape ===

impl Collector for OnScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let standing = self.board.standing();
        let pods = standing.census;
        let unreachable = "Number of interceptor pods that were unreachable in the last fetch cycle";
        gauge(&mut encoder, "scaler_pinger_unreachable_pods", unreachable, pods.silent)?;
        let endpoints = "Number of interceptor endpoints the scaler is polling";
        gauge(&mut encoder, "scaler_pinger_endpoints", endpoints, pods.listed)?;
        let open = "Number of open streams to KEDA";
        gauge(&mut encoder, "scaler_streams", open, self.streams.open())?;
        counter(
            &mut encoder,
            "scaler_streams_refused",
            "Streams refused because too many were open",
            self.streams.refused(),
        )?;
        let refused = "Connections closed at once because too many were open";
        counter(&mut encoder, "scaler_connections_refused", refused, self.refused.total())?;
        let agents = "Node agents that are not listened to because there are too many";
        gauge(&mut encoder, "scaler_agents_refused", agents, standing.refused_agents)?;
        let refused = "Counts of routes left out because there were too many routes";
        counter(&mut encoder, "scaler_route_counts_refused", refused, standing.refused)?;
        self.encode_routes(&mut encoder)
    }
}

impl OnScrape {
    fn encode_routes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut routes = self.board.routes();
        routes.sort_by(|left, right| left.key.cmp(&right.key));
        for family in FAMILIES {
            let Family { name, help, unit, value, read } = family;
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), value)?;
            for route in &routes {
                let Some(number) = read(route) else { continue };
                let labels = [("route_name", route.key.name()), ("route_namespace", route.key.namespace())];
                let mut series = metric.encode_family(&labels)?;
                match value {
                    MetricType::Counter => series.encode_counter::<NoLabels, _, u64>(&number, None)?,
                    _ => series.encode_gauge(&number)?,
                }
            }
        }
        Ok(())
    }
}

fn kernel(route: &RouteState, read: impl FnOnce(&KernelSum) -> u64) -> Option<f64> {
    route.kernel.as_ref().map(|kernel| as_float(read(kernel)))
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
fn as_float(count: u64) -> f64 {
    count as f64
}
