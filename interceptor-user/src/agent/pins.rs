//! Whether what the kernel has of each part outlives the agent, for `/state` and the metrics. Written by the parts' tasks.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

/// A part of the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Holds connections.
    Hold,
    /// Counts requests.
    Count,
    /// Steers connections.
    Steer,
}

/// What is pinned. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    /// Of the parts that have programs, why they are not pinned, if so.
    parts: Arc<Mutex<BTreeMap<Part, Option<String>>>>,
    pinned: Family<OfPart, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPart {
    part: &'static str,
}

// === impl Pins ===

impl Pins {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let pinned = Family::default();
        registry.register(
            "rouse_dataplane_pinned",
            "Whether a part's programs and maps outlive the agent: 1, or 0 with the reason in /state",
            pinned.clone(),
        );
        let pins = Self { parts: Arc::default(), pinned };
        for part in [Part::Hold, Part::Count, Part::Steer] {
            pins.gauge(part, false);
        }
        pins
    }

    /// Notes of a part with programs why they are not pinned, if so.
    pub(crate) fn tell(&self, part: Part, why_not: Option<&str>) {
        self.gauge(part, why_not.is_none());
        self.parts.lock().insert(part, why_not.map(str::to_owned));
    }

    /// Whether a part is pinned, and why not; no reason if it has no programs.
    pub(crate) fn of(&self, part: Part) -> (bool, Option<String>) {
        match self.parts.lock().get(&part) {
            Some(why_not) => (why_not.is_none(), why_not.clone()),
            None => (false, None),
        }
    }

    fn gauge(&self, part: Part, pinned: bool) {
        let part = match part {
            Part::Hold => "hold",
            Part::Count => "count",
            Part::Steer => "steer",
        };
        self.pinned.get_or_create(&OfPart { part }).set(i64::from(pinned));
    }
}
