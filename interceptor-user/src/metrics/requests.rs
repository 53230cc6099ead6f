//! The count of requests by route, method and status. It is the sum of what the histograms of their durations count,
//! read when it is asked for: a counter of its own would cost each request one more miss of the cache.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Weak},
};

use interceptor_core::ObjectKey;
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};

use super::{MethodLabel, RouteMetrics, request_labels};

/// All routes' series, by route; those of requests without one have no key.
pub(super) type Routes = HashMap<Option<ObjectKey>, Weak<RouteMetrics>>;

/// Reads the count.
#[derive(Debug)]
pub(super) struct Requests(pub(super) Arc<Mutex<Routes>>);

// === impl Requests ===

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Total requests processed by the interceptor proxy";
        let routes: Vec<_> = self.0.lock().values().filter_map(Weak::upgrade).collect();
        let mut family = encoder.encode_descriptor("request_count", help, None, MetricType::Counter)?;
        for route in routes {
            let mut counts = BTreeMap::<(MethodLabel, u16), u64>::new();
            for (outcome, durations) in &*route.series.lock() {
                *counts.entry((outcome.method, outcome.code)).or_default() += durations.count();
            }
            for ((method, code), count) in counts {
                let labels = request_labels(route.key.as_ref(), method, code);
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
