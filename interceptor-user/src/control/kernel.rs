//! The kernel's part: keeps its maps in step with the snapshots, and reads its counters.

use std::{collections::HashMap, convert::Infallible, pin::pin, sync::Arc, time::Duration};

use dataplane::{ConnectionCounters, Dataplane, Level, Logs, Mode};
use interceptor_core::{RouteEntry, UpstreamId, inflight::Counts, route::DataPath};
use parking_lot::Mutex;
use runtime::snapshot::Reader;
use tokio::time::{Instant, MissedTickBehavior};

use super::{
    taken::Taken,
    uncounted::Uncounted,
    waiting::{Backlog, Waiting},
};

/// How often the maps are read back and mended.
const REPAIR: Duration = Duration::from_secs(30);

/// How old counters may be when they are read again.
const FRESH: Duration = Duration::from_millis(200);

/// The data plane of this process. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    reader: Reader,
    shared: Arc<Mutex<State>>,
    level: Level,
    reason: Arc<str>,
    /// What pods take without a proxy, where a node's agent counts it.
    taken: Option<Taken>,
    /// What they have not accepted yet.
    waiting: Waiting,
    /// Of which of them it does not.
    uncounted: Uncounted,
}

#[derive(Debug)]
struct State {
    dataplane: Box<dyn Dataplane>,
    counters: Arc<HashMap<UpstreamId, ConnectionCounters>>,
    read: Option<Instant>,
}

// === impl Kernel ===

impl Kernel {
    /// Loads and attaches what the configuration and the kernel allow.
    pub(crate) fn open(config: dataplane::Config, reader: Reader) -> Result<Self, dataplane::OpenError> {
        let (dataplane, level, reason) = dataplane::open(config)?;
        let shared = Arc::new(Mutex::new(State { dataplane, counters: Arc::default(), read: None }));
        let (waiting, uncounted) = (Waiting::default(), Uncounted::default());
        Ok(Self { reader, shared, level, reason: reason.into(), taken: None, waiting, uncounted })
    }

    /// Nothing of its own: what pods take without a proxy, what waits for them, and of which of them that is not known, as the
    /// node's agent has it.
    pub(crate) fn of_pods(reader: Reader, taken: Taken, waiting: Waiting, uncounted: Uncounted) -> Self {
        let config = dataplane::Config { mode: Mode::None, required: false, cgroup: None };
        let without = Self::open(config, reader).expect("level none needs nothing");
        Self { taken: Some(taken), waiting, uncounted, ..without }
    }

    /// Whether counts move without anybody telling.
    pub(crate) fn counts_pods(&self) -> bool {
        self.taken.is_some()
    }

    /// Whether what is told means something: an agent has to have read all objects, and what its pods have taken.
    pub(crate) fn is_complete(&self) -> bool {
        self.taken.is_none() || self.uncounted.is_known()
    }

    /// Whether a route is told of. Agents have nothing to do with those that all go through interceptors, and tell of others once
    /// they have read what was counted before.
    pub(crate) fn tells_of(&self, entry: &RouteEntry) -> bool {
        let is_known = |taken: &Taken| entry.route.data_path == DataPath::Direct && taken.knows(entry);
        self.taken.as_ref().is_none_or(is_known)
    }

    /// Whether a route's totals are others than before: those of an agent are of the Service that a direct route leads to.
    pub(crate) fn tells_otherwise(&self, before: &RouteEntry, now: &RouteEntry) -> bool {
        let is_direct = |entry: &RouteEntry| entry.route.data_path == DataPath::Direct;
        let is_of_pods = self.taken.is_some() && is_direct(before);
        is_of_pods && (!is_direct(now) || before.upstream != now.upstream)
    }

    /// Whether pods of a route are ready on this node of which nobody counts what they take.
    pub(crate) fn is_uncounted(&self, entry: &RouteEntry) -> bool {
        self.taken.is_some() && entry.route.data_path == DataPath::Direct && self.uncounted.contains(entry.upstream)
    }

    /// A route's counts with what its pods take without a proxy.
    pub(crate) fn with_pods(&self, entry: &RouteEntry, counts: Counts) -> Counts {
        let taken = self.taken.as_ref().filter(|_| entry.route.data_path == DataPath::Direct);
        let Some(pods) = taken.and_then(|taken| taken.of(entry.upstream)) else { return counts };
        let Counts { in_flight, total, held } = counts;
        Counts { in_flight: in_flight + pods.load.in_flight, total: total + pods.load.requests, held }
    }

    /// A route's connections without a proxy: those that are held, and those that are open to pods of this node.
    pub(crate) fn connections(&self, entry: &RouteEntry, counts: Counts) -> u64 {
        let taken = self.taken.as_ref().filter(|_| entry.route.data_path == DataPath::Direct);
        let open = |taken: &Taken| taken.of(entry.upstream).map_or(0, |pods| pods.connections.in_flight());
        taken.map_or(0, |taken| counts.held.saturating_add(open(taken)))
    }

    /// A route's connections that nobody has accepted: those that are held, and those that wait at pods of this node. Nothing
    /// of a route that does not scale by them.
    pub(crate) fn backlog(&self, entry: &RouteEntry, counts: Counts) -> Backlog {
        let scales = entry.route.data_path == DataPath::Direct && entry.route.scaling.accept_queue.is_some();
        if self.taken.is_none() || !scales {
            return Backlog::default();
        }
        let unread = Backlog { depth: 0, unknown: true };
        let Backlog { depth, unknown } = self.waiting.of(entry.upstream).unwrap_or(unread);
        Backlog { depth: depth.saturating_add(counts.held), unknown }
    }

    /// `none` or `self`.
    pub(crate) fn level(&self) -> &'static str {
        match self.level {
            Level::None => "none",
            Level::SelfLevel => "self",
        }
    }

    /// Why the level is what it is.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// The kernel's counts of connections per upstream; empty at level none.
    pub(crate) fn counters(&self) -> Arc<HashMap<UpstreamId, ConnectionCounters>> {
        if let Some(taken) = &self.taken {
            return Arc::new(taken.all().iter().map(|(id, pods)| (*id, pods.connections)).collect());
        }
        let mut state = self.shared.lock();
        if state.read.is_none_or(|read| read.elapsed() >= FRESH) {
            state.counters = Arc::new(state.dataplane.counters().into_iter().collect());
            state.read = Some(Instant::now());
        }
        Arc::clone(&state.counters)
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self) -> Result<(), Infallible> {
        if self.level == Level::None {
            return std::future::pending().await;
        }
        let logs = self.shared.lock().dataplane.take_logs();
        let mut forwarded = pin!(forward(logs));
        let mut repairs = tokio::time::interval(REPAIR);
        repairs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was published before this ran.
        self.sync();
        loop {
            tokio::select! {
                () = self.reader.published() => self.sync(),
                _ = repairs.tick() => self.repair(),
                never = &mut forwarded => match never {},
            }
        }
    }

    fn sync(&self) {
        let snapshot = self.reader.load();
        let result = self.shared.lock().dataplane.sync(&mut snapshot.upstreams());
        if let Err(error) = result {
            tracing::warn!(%error, "the kernel's maps are not in step with the endpoints");
        }
    }

    fn repair(&self) {
        let result = self.shared.lock().dataplane.repair();
        if let Err(error) = result {
            tracing::warn!(%error, "the kernel's maps could not be checked");
        }
    }
}

/// Puts what the programs log into our log, as it comes.
async fn forward(logs: Option<Logs>) -> Infallible {
    if let Some(logs) = logs
        && let Err(error) = logs.forward().await
    {
        tracing::warn!(%error, "the kernel programs' log cannot be read");
    }
    std::future::pending().await
}
