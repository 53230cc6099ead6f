//! The operator's metrics, under the names that dashboards of the KEDA HTTP Add-on's operator know.

use std::time::Duration;

use interceptor_core::route::RouteKind;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::object::Subject;

const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Controller {
    controller: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Result {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Name {
    name: &'static str,
}

/// How an attempt to reconcile went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// All is as it should be.
    Success,
    /// It is tried again.
    Error,
}

/// All metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    total: Family<Result, Counter>,
    errors: Family<Controller, Counter>,
    time: Family<Controller, Histogram>,
    depth: Family<Name, Gauge>,
    active: Gauge,
    leader: Family<Name, Gauge<i64>>,
    ports: Gauge,
}

// === impl Metrics ===

impl Metrics {
    /// Registers all.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            total: Family::default(),
            errors: Family::default(),
            time: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            depth: Family::default(),
            active: Gauge::default(),
            leader: Family::default(),
            ports: Gauge::default(),
        };
        let help = "Routes that were reconciled, by how it went";
        registry.register("controller_runtime_reconcile", help, metrics.total.clone());
        let help = "Routes that could not be reconciled and are tried again";
        registry.register("controller_runtime_reconcile_errors", help, metrics.errors.clone());
        let help = "Time to carry out what was planned for a route";
        let time = "controller_runtime_reconcile_time";
        registry.register_with_unit(time, help, Unit::Seconds, metrics.time.clone());
        registry.register("workqueue_depth", "Routes that wait to be looked at", metrics.depth.clone());
        let help = "Routes that are being written or whose workloads are being read";
        registry.register("controller_runtime_active_workers", help, metrics.active.clone());
        let help = "1 while this operator is the one that acts";
        registry.register("leader_election_master_status", help, metrics.leader.clone());
        let help = "Ports of interceptors that stand for Services of direct routes";
        registry.register("rouse_shadow_ports", help, metrics.ports.clone());
        metrics.lead(false);
        metrics.waiting(0);
        metrics
    }

    pub(crate) fn tried(&self, subject: &Subject, tried: Tried, took: Duration) {
        let controller = match subject.kind {
            RouteKind::InterceptorRoute => "interceptorroute",
            RouteKind::HttpScaledObject => "httpscaledobject",
        };
        let result = match tried {
            Tried::Success => "success",
            Tried::Error => "error",
        };
        self.total.get_or_create(&Result { controller, result }).inc();
        self.time.get_or_create(&Controller { controller }).observe(took.as_secs_f64());
        if tried == Tried::Error {
            self.errors.get_or_create(&Controller { controller }).inc();
        }
    }

    pub(crate) fn waiting(&self, count: usize) {
        self.depth.get_or_create(&Name { name: "routes" }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn working(&self, count: usize) {
        self.active.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn ports(&self, count: usize) {
        self.ports.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn lead(&self, leads: bool) {
        self.leader.get_or_create(&Name { name: crate::lease::NAME }).set(i64::from(leads));
    }
}
