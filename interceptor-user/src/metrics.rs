//! The interceptor's metrics: names, labels and buckets of the KEDA HTTP Add-on, and ours under `rouse_`.
//! Requests write through handles that a worker resolves once a route; series of a deleted route go with it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
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

mod spread;

use self::spread::Spread;
use crate::proxy::Verdict;

type Labels = Vec<(&'static str, String)>;

/// All of the interceptor's own metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<Labels, Counter>,
    durations: Family<Labels, Spread>,
    errors: Family<Labels, Counter>,
    hold_rejections: Family<Labels, Counter>,
    connect_failures: Family<Labels, Counter>,
    fallbacks: Family<Labels, Counter>,
    accept_errors: Counter,
    handshake_errors: Counter,
    certificate_reloads: Family<[(&'static str, &'static str); 1], Counter>,
    connection_limit: Counter,
    slow_heads: Counter,
    /// Clients connected now.
    pub(crate) connections: Gauge,
    routes: Mutex<HashMap<ObjectKey, Weak<RouteMetrics>>>,
}

/// One route's series, shared by the workers; removed when the last of them forgets the route.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    key: Option<ObjectKey>,
    requests: Family<Labels, Counter>,
    durations: Family<Labels, Spread>,
    hold_rejections: Family<Labels, Counter>,
    connect_failures: Family<Labels, Counter>,
    fallbacks: Family<Labels, Counter>,
    used: Mutex<BTreeSet<(MethodLabel, u16)>>,
}

/// The handles of one route, method and status.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    requests: Counter,
    durations: Spread,
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
            requests: Family::default(),
            durations: Family::default(),
            errors: Family::default(),
            hold_rejections: Family::default(),
            connect_failures: Family::default(),
            fallbacks: Family::default(),
            accept_errors: Counter::default(),
            handshake_errors: Counter::default(),
            certificate_reloads: Family::default(),
            connection_limit: Counter::default(),
            slow_heads: Counter::default(),
            connections: Gauge::default(),
            routes: Mutex::default(),
        };
        let own = registry.sub_registry_with_prefix("interceptor");
        own.register("request_count", "Total requests processed by the interceptor proxy", metrics.requests.clone());
        own.register_with_unit(
            "request_duration",
            "Time from request received to response written",
            Unit::Seconds,
            metrics.durations.clone(),
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
        ours.register("client_connections", "Clients connected now", self.connections.clone());
    }

    /// The series of the route `key`.
    pub(crate) fn route(&self, key: &ObjectKey) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock();
        if let Some(known) = routes.get(key).and_then(Weak::upgrade) {
            return known;
        }
        // Only now and then: to look at all for each new one would take time with the square of their number.
        if routes.len() == routes.capacity() {
            routes.retain(|_, metrics| metrics.strong_count() > 0);
        }
        let metrics = Arc::new(self.series_of(Some(key.clone())));
        routes.insert(key.clone(), Arc::downgrade(&metrics));
        metrics
    }

    /// Notes a request for which there was no route.
    pub(crate) fn record_unrouted(&self, method: MethodLabel, code: u16, elapsed: Duration) {
        let labels = request_labels(None, method, code);
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(elapsed);
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
            requests: self.requests.clone(),
            durations: self.durations.clone(),
            hold_rejections: self.hold_rejections.clone(),
            connect_failures: self.connect_failures.clone(),
            fallbacks: self.fallbacks.clone(),
            used: Mutex::default(),
        }
    }
}

// === impl RouteMetrics ===

impl RouteMetrics {
    /// The handles for one method and status.
    pub(crate) fn series(&self, method: MethodLabel, code: u16) -> Series {
        self.used.lock().insert((method, code));
        let labels = request_labels(self.key.as_ref(), method, code);
        Series {
            requests: self.requests.get_or_create_owned(&labels),
            durations: self.durations.get_or_create_owned(&labels),
        }
    }
}

impl Drop for RouteMetrics {
    fn drop(&mut self) {
        for (method, code) in &*self.used.lock() {
            let labels = request_labels(self.key.as_ref(), *method, *code);
            self.requests.remove(&labels);
            self.durations.remove(&labels);
        }
        let labels = route_labels(self.key.as_ref());
        self.hold_rejections.remove(&labels);
        self.connect_failures.remove(&labels);
        self.fallbacks.remove(&labels);
    }
}

// === impl Series ===

impl Series {
    pub(crate) fn record(&self, elapsed: Duration) {
        self.requests.inc();
        self.durations.observe(elapsed);
    }
}

// === impl MethodLabel ===

impl MethodLabel {
    fn as_str(self) -> &'static str {
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
