//! The interceptor's metrics: names, labels and buckets of the KEDA HTTP Add-on, and ours under `rouse_`.
//! Requests write through handles that a worker resolves once a route; series of a deleted route go with it.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use http::Method;
use interceptor_core::ObjectKey;
use parking_lot::Mutex;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use tls::reload::Reload;

mod requests;
mod spread;

use self::requests::{Requests, Routes};
pub(crate) use self::spread::Spread;
use crate::proxy::Verdict;

type Labels = Vec<(&'static str, String)>;

/// All of the interceptor's own metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    durations: Family<Labels, Spread>,
    errors: Family<Labels, Counter>,
    cold_starts: Family<Labels, Spread>,
    hold_rejections: Family<Labels, Counter>,
    connect_failures: Family<Labels, Counter>,
    fallbacks: Family<Labels, Counter>,
    overruns: Family<Labels, Counter>,
    accept_errors: Counter,
    handshake_errors: Counter,
    certificate_reloads: Family<[(&'static str, &'static str); 1], Counter>,
    connection_limit: Counter,
    slow_heads: Counter,
    /// Times that a worker forgot the hosts it knew by heart, since there were too many.
    pub(crate) hosts_forgotten: Counter,
    /// 1xx responses that a client of HTTP/2 was not sent, since there were too many.
    pub(crate) interim_dropped: Counter,
    forgotten_clients: Counter,
    /// Clients connected now.
    pub(crate) connections: Gauge,
    routes: Arc<Mutex<Routes>>,
    unrouted: OnceLock<Arc<RouteMetrics>>,
}

/// One route's series, shared by the workers; removed when the last of them forgets the route.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    key: Option<ObjectKey>,
    durations: Family<Labels, Spread>,
    cold_starts: Family<Labels, Spread>,
    hold_rejections: Family<Labels, Counter>,
    connect_failures: Family<Labels, Counter>,
    fallbacks: Family<Labels, Counter>,
    overruns: Family<Labels, Counter>,
    series: Mutex<BTreeMap<Outcome, Spread>>,
}

/// What tells the series of one route's requests from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Outcome {
    pub(crate) method: MethodLabel,
    /// Of the response.
    pub(crate) code: u16,
    /// It waited for its workload to get ready, whether that got ready or not.
    pub(crate) cold: bool,
}

/// How a request's waiting for its workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ColdEnd {
    /// It got ready.
    Ready,
    /// It did not in time, or cannot.
    Timeout,
    /// The client left.
    Cancelled,
}

/// A request's method as a label: a bounded set of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum MethodLabel {
    Connect,
    Delete,
    Get,
    Head,
    Options,
    Patch,
    Post,
    Put,
    Trace,
    Other,
}

// === impl Metrics ===

impl Metrics {
    /// Registers everything with `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            durations: Family::default(),
            cold_starts: Family::default(),
            errors: Family::default(),
            hold_rejections: Family::default(),
            connect_failures: Family::default(),
            fallbacks: Family::default(),
            overruns: Family::default(),
            accept_errors: Counter::default(),
            handshake_errors: Counter::default(),
            certificate_reloads: Family::default(),
            connection_limit: Counter::default(),
            slow_heads: Counter::default(),
            hosts_forgotten: Counter::default(),
            interim_dropped: Counter::default(),
            forgotten_clients: Counter::default(),
            connections: Gauge::default(),
            routes: Arc::default(),
            unrouted: OnceLock::new(),
        };
        let own = registry.sub_registry_with_prefix("interceptor");
        own.register_collector(Box::new(Requests(Arc::clone(&metrics.routes))));
        own.register_with_unit(
            "request_duration",
            "Time from request received to response written",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        own.register_with_unit(
            "cold_start_duration",
            "Time spent waiting for a cold-start backend to become ready",
            Unit::Seconds,
            metrics.cold_starts.clone(),
        );
        own.register(
            "cold_start_rejections",
            "Requests refused because too many were held already",
            metrics.hold_rejections.clone(),
        );
        let ours = registry.sub_registry_with_prefix("rouse");
        ours.register("proxy_errors", "Responses the proxy made itself, by reason", metrics.errors.clone());
        ours.register(
            "connect_failures",
            "Connection attempts to endpoints that failed",
            metrics.connect_failures.clone(),
        );
        ours.register(
            "fallbacks",
            "Requests that went to their route's fallback, since no endpoint became ready in time",
            metrics.fallbacks.clone(),
        );
        ours.register(
            "hold_overruns",
            "Held requests that went to a pod beyond the limit, since none had room for too long",
            metrics.overruns.clone(),
        );
        metrics.register_clients(ours);
        metrics
    }

    /// What concerns clients' connections rather than their requests.
    fn register_clients(&self, ours: &mut Registry) {
        ours.register("accept_errors", "Failures to accept a client", self.accept_errors.clone());
        ours.register("tls_handshake_errors", "Clients that could not agree upon TLS", self.handshake_errors.clone());
        ours.register(
            "tls_certificate_reloads",
            "Times that certificates were read again, by outcome",
            self.certificate_reloads.clone(),
        );
        ours.register(
            "connection_limit_reached",
            "Times that clients had to wait for others to disconnect",
            self.connection_limit.clone(),
        );
        ours.register(
            "slow_heads",
            "Connections closed because a request's head took too long",
            self.slow_heads.clone(),
        );
        ours.register(
            "affinity_refusals",
            "Requests whose client could not be remembered, as its Service asks, for want of room",
            self.forgotten_clients.clone(),
        );
        ours.register(
            "interim_responses_dropped",
            "Responses 1xx beyond what one request over HTTP/2 is passed",
            self.interim_dropped.clone(),
        );
        ours.register(
            "hosts_forgotten",
            "Times that a worker forgot which routes hosts have, since clients ask for too many hosts",
            self.hosts_forgotten.clone(),
        );
        ours.register("client_connections", "Clients connected now", self.connections.clone());
    }

    /// The series of the route `key`.
    pub(crate) fn route(&self, key: &ObjectKey) -> Arc<RouteMetrics> {
        self.of(Some(key.clone()))
    }

    fn of(&self, key: Option<ObjectKey>) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock();
        if let Some(known) = routes.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        // Only now and then: to look at all for each new one would take time with the square of their number.
        if routes.len() == routes.capacity() {
            routes.retain(|_, metrics| metrics.strong_count() > 0);
        }
        let metrics = Arc::new(self.series_of(key.clone()));
        routes.insert(key, Arc::downgrade(&metrics));
        metrics
    }

    /// Notes a request for which there was no route.
    pub(crate) fn record_unrouted(&self, method: MethodLabel, code: u16, elapsed: Duration) {
        let outcome = Outcome { method, code, cold: false };
        self.unrouted.get_or_init(|| self.of(None)).series(outcome).observe(elapsed);
    }

    pub(crate) fn failed(&self, verdict: Verdict) {
        let labels = vec![("reason", verdict.reason.to_owned()), ("fault", verdict.fault.label().to_owned())];
        self.errors.get_or_create(&labels).inc();
    }

    pub(crate) fn hold_rejected(&self, route: &ObjectKey) {
        self.hold_rejections.get_or_create(&route_labels(Some(route))).inc();
    }

    pub(crate) fn connect_failed(&self, route: &ObjectKey) {
        self.connect_failures.get_or_create(&route_labels(Some(route))).inc();
    }

    pub(crate) fn fell_back(&self, route: &ObjectKey) {
        self.fallbacks.get_or_create(&route_labels(Some(route))).inc();
    }

    /// A held request of the route was let go beyond the limit.
    pub(crate) fn overran(&self, route: &ObjectKey) {
        self.overruns.get_or_create(&route_labels(Some(route))).inc();
    }

    pub(crate) fn client_forgotten(&self) {
        self.forgotten_clients.inc();
    }

    pub(crate) fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshake_errors.inc();
    }

    pub(crate) fn certificates_read(&self, reload: Reload) {
        let outcome = match reload {
            Reload::Done => "done",
            Reload::Failed => "failed",
        };
        self.certificate_reloads.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn connection_limit_reached(&self) {
        self.connection_limit.inc();
    }

    pub(crate) fn slow_head(&self) {
        self.slow_heads.inc();
    }

    fn series_of(&self, key: Option<ObjectKey>) -> RouteMetrics {
        RouteMetrics {
            key,
            durations: self.durations.clone(),
            cold_starts: self.cold_starts.clone(),
            hold_rejections: self.hold_rejections.clone(),
            connect_failures: self.connect_failures.clone(),
            fallbacks: self.fallbacks.clone(),
            overruns: self.overruns.clone(),
            series: Mutex::default(),
        }
    }
}

// === impl RouteMetrics ===

impl RouteMetrics {
    /// The times of the requests with one outcome, which count them, too.
    pub(crate) fn series(&self, outcome: Outcome) -> Spread {
        let new = || self.durations.get_or_create_owned(&duration_labels(self.key.as_ref(), outcome));
        self.series.lock().entry(outcome).or_insert_with(new).clone()
    }

    /// Notes for how long a request waited for its workload.
    pub(crate) fn waited(&self, end: ColdEnd, elapsed: Duration) {
        self.cold_starts.get_or_create(&cold_labels(self.key.as_ref(), end)).observe(elapsed);
    }
}

impl Drop for RouteMetrics {
    fn drop(&mut self) {
        for outcome in self.series.lock().keys() {
            self.durations.remove(&duration_labels(self.key.as_ref(), *outcome));
        }
        for end in ColdEnd::ALL {
            self.cold_starts.remove(&cold_labels(self.key.as_ref(), end));
        }
        let labels = route_labels(self.key.as_ref());
        self.hold_rejections.remove(&labels);
        self.connect_failures.remove(&labels);
        self.fallbacks.remove(&labels);
        self.overruns.remove(&labels);
    }
}

// === impl ColdEnd ===

impl ColdEnd {
    const ALL: [Self; 3] = [Self::Ready, Self::Timeout, Self::Cancelled];

    fn label(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }
}

// === impl MethodLabel ===

impl MethodLabel {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Delete => "DELETE",
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Patch => "PATCH",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Trace => "TRACE",
            Self::Other => "_OTHER",
        }
    }
}

impl From<&Method> for MethodLabel {
    fn from(method: &Method) -> Self {
        match *method {
            Method::CONNECT => Self::Connect,
            Method::DELETE => Self::Delete,
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::OPTIONS => Self::Options,
            Method::PATCH => Self::Patch,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::TRACE => Self::Trace,
            _ => Self::Other,
        }
    }
}

fn route_labels(key: Option<&ObjectKey>) -> Labels {
    let (name, namespace) = key.map_or(("", ""), |key| (key.name(), key.namespace()));
    vec![("route_name", name.to_owned()), ("route_namespace", namespace.to_owned())]
}

fn request_labels(key: Option<&ObjectKey>, method: MethodLabel, code: u16) -> Labels {
    let mut labels = vec![("code", code.to_string()), ("method", method.as_str().to_owned())];
    labels.extend(route_labels(key));
    labels
}

fn duration_labels(key: Option<&ObjectKey>, outcome: Outcome) -> Labels {
    let mut labels = request_labels(key, outcome.method, outcome.code);
    labels.insert(1, ("cold_start", outcome.cold.to_string()));
    labels
}

fn cold_labels(key: Option<&ObjectKey>, end: ColdEnd) -> Labels {
    let mut labels = vec![("outcome", end.label().to_owned())];
    labels.extend(route_labels(key));
    labels
}
