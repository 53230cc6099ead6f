//! `/state`: everything an operator asks first, as JSON. The gauges of `/metrics` are read from the same place.

use std::{
    collections::HashMap,
    fmt,
    num::{NonZeroU16, NonZeroUsize},
    sync::Arc,
};

use bytes::Bytes;
use dataplane::ConnectionCounters;
use http::Response;
use http_body_util::Full;
use interceptor_core::{
    Endpoints, RouteEntry, Snapshot, Upstream, UpstreamId,
    inflight::Counts,
    route::{PortRef, RouteKind},
    upstream::Resolution,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use runtime::{admin::reply, ready::Ready, snapshot::Reader};
use serde::Serialize;

use super::{
    discover::{Problem, Problems},
    kernel::Kernel,
};
use crate::{coldstart::ColdStart, entrances, worker::Shared};

/// Everything `/state` tells of.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) entrances: entrances::Report,
    pub(crate) ready: Ready,
    pub(crate) reader: Reader,
    pub(crate) kernel: Kernel,
    pub(crate) problems: Problems,
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: NonZeroUsize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: &'static str,
    dataplane: DataplaneReport,
    ready: bool,
    pending: Vec<&'static str>,
    workers: NonZeroUsize,
    routes: Vec<RouteReport>,
    entrances: Vec<EntranceReport>,
    problems: Vec<Problem>,
    cold_starts: Vec<ColdStart>,
}

#[derive(Serialize)]
struct DataplaneReport {
    level: &'static str,
    reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteReport {
    namespace: String,
    name: String,
    kind: &'static str,
    state: &'static str,
    in_flight: u64,
    held: u64,
    total: u64,
    upstream: Option<UpstreamReport>,
    kernel: Option<KernelReport>,
}

/// A port that stands for a Service.
#[derive(Serialize)]
struct EntranceReport {
    port: NonZeroU16,
    service: Option<String>,
    /// Why it can't be listened at.
    error: Option<String>,
}

#[derive(Serialize)]
struct UpstreamReport {
    service: String,
    port: String,
    endpoints: Vec<String>,
    /// Those of them that have answered their probe and are not ready by the slices yet.
    early: Vec<String>,
    /// Those that are not ready and can be asked by the probe.
    pending: Vec<String>,
    probe: Option<String>,
    resolution: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KernelReport {
    opened: u64,
    closed: u64,
    failed: u64,
    srtt_us: u64,
    idle_ms: Option<u64>,
}

/// The gauges that are read off the snapshot at each scrape.
struct Gauges(State);

// === impl State ===

impl State {
    /// Registers the gauges.
    pub(crate) fn register(self, registry: &mut Registry) {
        registry.register_collector(Box::new(Gauges(self)));
    }

    /// The answer to `GET /state`.
    pub(crate) fn respond(&self) -> Response<Full<Bytes>> {
        let snapshot = self.reader.load();
        let kernel = self.kernel.counters();
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            dataplane: DataplaneReport { level: self.kernel.level(), reason: self.kernel.reason().to_owned() },
            ready: self.ready.is_ready(),
            pending: self.ready.pending(),
            workers: self.workers,
            routes: snapshot
                .routes
                .values()
                .map(|entry| RouteReport::new(entry, snapshot.upstream_of(entry), &kernel))
                .collect(),
            entrances: self.entrances(&snapshot),
            problems: self.problems.all(),
            cold_starts: self.shared.cold_starts.last(),
        };
        reply::json(serde_json::to_vec(&report).expect("the report is made of names and numbers"))
    }
}

impl State {
    fn entrances(&self, snapshot: &Snapshot) -> Vec<EntranceReport> {
        let service = |port| snapshot.entrances.get(&port).map(|entrance| entrance.service().to_string());
        let all = self.entrances.load().into_iter();
        all.map(|(port, error)| EntranceReport { port, service: service(port), error }).collect()
    }
}

// === impl RouteReport ===

impl RouteReport {
    fn new(
        entry: &RouteEntry,
        upstream: Option<&Arc<Upstream>>,
        kernel: &HashMap<UpstreamId, ConnectionCounters>,
    ) -> Self {
        let counts = entry.counters.counts();
        let endpoints = upstream.map_or(0, |upstream| upstream.endpoints.len());
        Self {
            namespace: entry.route.key.namespace().to_owned(),
            name: entry.route.key.name().to_owned(),
            kind: match entry.route.kind {
                RouteKind::InterceptorRoute => "InterceptorRoute",
                RouteKind::HttpScaledObject => "HTTPScaledObject",
            },
            state: state(counts, endpoints),
            in_flight: counts.in_flight,
            held: counts.held,
            total: counts.total,
            upstream: upstream.map(|upstream| UpstreamReport::new(upstream)),
            kernel: kernel.get(&entry.upstream).map(KernelReport::new),
        }
    }
}

fn state(counts: Counts, endpoints: usize) -> &'static str {
    match (counts.held, endpoints) {
        (1.., _) => "holding",
        (0, 0) => "cold",
        (0, _) => "warm",
    }
}

// === impl UpstreamReport ===

impl UpstreamReport {
    fn new(upstream: &Upstream) -> Self {
        let Upstream {
            id: _,
            target,
            resolution,
            protocol: _,
            encryption: _,
            affinity: _,
            endpoints,
            early,
            pending,
            probe,
            direct: _,
        } = upstream;
        let addresses = |endpoints: &Endpoints| endpoints.keys().map(ToString::to_string).collect();
        Self {
            service: target.service.to_string(),
            port: match &target.port {
                PortRef::Number(number) => number.to_string(),
                PortRef::Name(name) => name.to_string(),
            },
            endpoints: addresses(endpoints),
            early: early.iter().map(ToString::to_string).collect(),
            pending: addresses(pending),
            probe: probe.as_deref().map(|probe| probe.action.to_string()),
            resolution: match resolution {
                Resolution::Found => "found",
                Resolution::NoService => "noService",
                Resolution::NoPort => "noPort",
            },
        }
    }
}

// === impl KernelReport ===

impl KernelReport {
    fn new(counters: &ConnectionCounters) -> Self {
        let ConnectionCounters { opened, closed, failed, srtt_us, last_activity } = *counters;
        let idle_ms = last_activity.map(|idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        Self { opened, closed, failed, srtt_us, idle_ms }
    }
}

// === impl Gauges ===

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.0.reader.load();
        let kernel = self.0.kernel.counters();
        let routes: Vec<_> = snapshot.routes.values().map(|entry| (entry, entry.counters.counts())).collect();
        gauge(
            &mut encoder,
            "interceptor_request_concurrency",
            "Concurrent requests at the interceptor proxy",
            &routes,
            |_, counts| Some(counts.in_flight),
        )?;
        gauge(&mut encoder, "rouse_held_requests", "Requests that wait for their workload", &routes, |_, counts| {
            Some(counts.held)
        })?;
        gauge(&mut encoder, "rouse_ready_endpoints", "Ready endpoints of the route's target", &routes, |entry, _| {
            Some(snapshot.upstream_of(entry).map_or(0, |upstream| upstream.endpoints.len() as u64))
        })?;
        let of_kernel = |entry: &RouteEntry| kernel.get(&entry.upstream).copied();
        counter(
            &mut encoder,
            "rouse_kernel_connections_opened",
            "Connections to pods, as the kernel counts them",
            &routes,
            |entry| of_kernel(entry).map(|counters| counters.opened),
        )?;
        counter(
            &mut encoder,
            "rouse_kernel_connections_closed",
            "Connections to pods that have ended",
            &routes,
            |entry| of_kernel(entry).map(|counters| counters.closed),
        )?;
        counter(
            &mut encoder,
            "rouse_kernel_connections_failed",
            "Connections to pods that were never established",
            &routes,
            |entry| of_kernel(entry).map(|counters| counters.failed),
        )?;
        gauge(
            &mut encoder,
            "rouse_kernel_srtt_microseconds",
            "Smoothed round-trip time to the route's pods",
            &routes,
            |entry, _| of_kernel(entry).map(|counters| counters.srtt_us),
        )?;
        self.encode_process(&mut encoder)
    }
}

impl Gauges {
    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let level = [("level", self.0.kernel.level().to_owned())];
        let mut metric =
            encoder.encode_descriptor("rouse_dataplane", "Level of the data plane", None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(metric.encode_family(&level)?)
    }
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gauges").finish_non_exhaustive()
    }
}

type Routes<'a> = [(&'a Arc<RouteEntry>, Counts)];

fn labels(entry: &RouteEntry) -> [(&'static str, String); 2] {
    let key = &entry.route.key;
    [("route_name", key.name().to_owned()), ("route_namespace", key.namespace().to_owned())]
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    routes: &Routes<'_>,
    value: impl Fn(&RouteEntry, Counts) -> Option<u64>,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (entry, counts) in routes {
        if let Some(value) = value(entry, *counts) {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(metric.encode_family(&labels(entry))?)?;
        }
    }
    Ok(())
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    routes: &Routes<'_>,
    value: impl Fn(&RouteEntry) -> Option<u64>,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (entry, _) in routes {
        if let Some(value) = value(entry) {
            ConstCounter::new(value).encode(metric.encode_family(&labels(entry))?)?;
        }
    }
    Ok(())
}
