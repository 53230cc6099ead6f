//! The last cold starts, for `/state`: where the time of each went.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::StatusCode;
use interceptor_core::{ObjectKey, RouteEntry, RouteId};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::proxy::ColdWait;

/// How many cold starts are remembered; the oldest go first.
const REMEMBERED: usize = 64;

/// One request that woke its workload or waited for it. Times are microseconds since the epoch.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ColdStart {
    namespace: String,
    name: String,
    arrived: u64,
    /// When the publisher saw that the route had turned active, and told the scalers that watch.
    signalled: Option<u64>,
    /// When a pod answered its readiness probe, if that is why it counted as ready.
    probed_ready: Option<u64>,
    endpoint_seen: u64,
    connected: u64,
    first_byte: u64,
    status: u16,
    held: u64,
}

/// The last cold starts of all workers.
#[derive(Debug, Default)]
pub(crate) struct ColdStarts {
    last: Mutex<VecDeque<ColdStart>>,
    signals: Signals,
}

/// When each route was seen to turn active the last time, and scalers that watch were told: as many as there are routes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signals(Arc<Mutex<HashMap<RouteId, Instant>>>);

// === impl ColdStart ===

impl ColdStart {
    fn new(
        route: &ObjectKey,
        (arrived, [signalled, probed]): (Instant, [Option<Instant>; 2]),
        wait: ColdWait,
        status: StatusCode,
    ) -> Self {
        let (now, unix_now) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        let unix = |at: Instant| micros(unix_now.saturating_sub(now.saturating_duration_since(at)));
        let ColdWait { endpoint_seen, connected, held } = wait;
        Self {
            namespace: route.namespace().to_owned(),
            name: route.name().to_owned(),
            arrived: unix(arrived),
            signalled: signalled.map(unix),
            probed_ready: probed.map(unix),
            endpoint_seen: unix(endpoint_seen),
            connected: unix(connected),
            first_byte: micros(unix_now),
            status: status.as_u16(),
            held,
        }
    }
}

// === impl ColdStarts ===

impl ColdStarts {
    /// Notes the cold start of a request whose response's head has just come, and when a pod last answered its probe.
    pub(crate) fn note(
        &self,
        route: &RouteEntry,
        (arrived, probed): (Instant, Option<Instant>),
        wait: ColdWait,
        status: StatusCode,
    ) {
        // What happened before it came woke the workload for another.
        let [signalled, probed] = [self.signals.0.lock().get(&route.id).copied(), probed]
            .map(|at| at.filter(|at| (arrived..=wait.connected).contains(at)));
        let cold_start = ColdStart::new(&route.route.key, (arrived, [signalled, probed]), wait, status);
        let mut last = self.last.lock();
        if last.len() == REMEMBERED {
            last.pop_front();
        }
        last.push_back(cold_start);
    }

    pub(crate) fn last(&self) -> Vec<ColdStart> {
        self.last.lock().iter().cloned().collect()
    }

    /// Where the publisher notes what it told.
    pub(crate) fn signals(&self) -> Signals {
        self.signals.clone()
    }
}

// === impl Signals ===

impl Signals {
    pub(crate) fn rose(&self, route: RouteId, at: Instant) {
        self.0.lock().insert(route, at);
    }

    pub(crate) fn gone(&self, route: RouteId) {
        self.0.lock().remove(&route);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
