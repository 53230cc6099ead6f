//! What a source says of routes, and what that comes to over all sources. Made by collectors; added up by [`super::Demand`].

use std::{sync::Arc, time::Duration};

use super::Kernel;
use crate::ObjectKey;

/// No source has more in flight of a route: keeps sums of what strangers claim from overflowing.
pub(super) const MAX_COUNT: u64 = 1 << 32;

/// What one source says at one time.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Names one run of the source; `None` from a source that doesn't tell, such as `GET /queue`.
    pub incarnation: Option<Arc<str>>,
    /// How long that run has been counting, if it tells.
    pub uptime: Option<Duration>,
    /// Routes that are not listed are no longer counted. A source's first report must be complete.
    pub complete: bool,
    /// Routes with their counts.
    pub routes: Vec<(ObjectKey, Observed)>,
    /// Routes that are no longer counted.
    pub removed: Vec<ObjectKey>,
}

/// One source's counts of one route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Requests between arrival and the last byte of the response.
    pub in_flight: u64,
    /// Requests ever, in this incarnation.
    pub total: u64,
    /// Of those in flight, the ones that wait for an endpoint.
    pub held: u64,
    /// What the kernel counted.
    pub kernel: Option<Kernel>,
    /// Connections that are held for the route, or open to its pods without a proxy.
    pub connections: u64,
    /// Connections that are held for the route, or that pods have not accepted yet.
    pub accept_queue: u64,
    /// Whether it could not be told of all pods how many they have not accepted.
    pub accept_queue_unknown: bool,
    /// Whether there are ready pods next to it of which it does not count what they take.
    pub uncounted: bool,
}

/// A route's demand over all sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Requests in flight.
    pub in_flight: u64,
    /// Of those, the ones that wait for an endpoint.
    pub held: u64,
    /// Requests seen to arrive since this began; never goes down.
    pub arrived: u64,
    /// Connections that are held, or open without a proxy.
    pub connections: u64,
    /// Connections that are held, or that pods have not accepted yet.
    pub accept_queue: u64,
    /// Sources that can't tell of all pods how many they have not accepted.
    pub accept_queue_unknown: u64,
    /// Sources next to which pods are ready of which nobody counts what they take.
    pub uncounted: u64,
}

// === impl Level ===

impl Level {
    /// The sum with one source's counts `new` in place of its `old` ones, of whose requests so many have arrived since.
    pub(super) fn with(self, old: Observed, new: Observed, arrived: u64) -> Self {
        Self {
            in_flight: self.in_flight - old.in_flight + new.in_flight,
            held: self.held - old.held + new.held,
            arrived: self.arrived.saturating_add(arrived),
            connections: self.connections - old.connections + new.connections,
            accept_queue: self.accept_queue - old.accept_queue + new.accept_queue,
            accept_queue_unknown: self.accept_queue_unknown - u64::from(old.accept_queue_unknown)
                + u64::from(new.accept_queue_unknown),
            uncounted: self.uncounted - u64::from(old.uncounted) + u64::from(new.uncounted),
        }
    }
}

// === impl Observed ===

impl Observed {
    pub(super) fn clamped(self) -> Self {
        let Self { in_flight, total, held, kernel, connections, accept_queue, accept_queue_unknown, uncounted } = self;
        let [in_flight, held, connections, accept_queue] =
            [in_flight, held, connections, accept_queue].map(|count| count.min(MAX_COUNT));
        Self { in_flight, total, held, kernel, connections, accept_queue, accept_queue_unknown, uncounted }
    }

    /// Whether a route's level differs by it.
    pub(super) fn differs(&self, other: &Self) -> bool {
        let levels = |it: &Self| (it.in_flight, it.connections, it.accept_queue, it.accept_queue_unknown, it.uncounted);
        levels(self) != levels(other)
    }
}
