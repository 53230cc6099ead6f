//! The last cold starts, for `/state`: where the time of each went.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::StatusCode;
use interceptor_core::ObjectKey;
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
pub(crate) struct ColdStarts(Mutex<VecDeque<ColdStart>>);

// === impl ColdStart ===

impl ColdStart {
    /// The cold start of a request whose response's head has just come.
    pub(crate) fn new(
        route: &ObjectKey,
        (arrived, probed): (Instant, Option<Instant>),
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
            probed_ready: probed.filter(|probed| (arrived..=endpoint_seen).contains(probed)).map(unix),
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
    pub(crate) fn push(&self, cold_start: ColdStart) {
        let mut last = self.0.lock();
        if last.len() == REMEMBERED {
            last.pop_front();
        }
        last.push_back(cold_start);
    }

    pub(crate) fn last(&self) -> Vec<ColdStart> {
        self.0.lock().iter().cloned().collect()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
