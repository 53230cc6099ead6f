//! Counts for scalers: pushed at once when a route turns active or idle, otherwise at most four times a second.
//!
//! The [`Publisher`] is one task. Workers tell it of edges through [`Edges`]; it reads the counters, and sends what has
//! changed to every stream. A route costs it something only from its first request until it has been reported as idle
//! and unchanged, and less while no stream is open.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dataplane::ConnectionCounters;
use foldhash::fast::RandomState;
use futures_util::{Stream, StreamExt as _};
use imbl::ordmap::DiffItem;
use interceptor_core::{
    RouteEntry, RouteId, UpstreamId,
    index::Snapshot,
    inflight::{Counts, EdgeSink},
    route::DataPath,
};
use parking_lot::Mutex;
use proto::counts::{
    CountsUpdate, KernelCounts, RouteCounts, RouteRef, WatchRequest,
    counts_server::{Counts as CountsApi, CountsServer},
};
use runtime::snapshot::Reader;
use tokio::{
    sync::{Notify, broadcast},
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tonic::{Request, Response, Status};

use super::{kernel::Kernel, waiting::Backlog};
use crate::coldstart::Signals;

/// Between two reports of the same route, but for its turning active.
const INTERVAL: Duration = Duration::from_millis(250);

/// After edges were told, those that follow within this time are told together. With many routes that turn active and
/// idle all the time, waking the publisher for each would cost as much as the requests themselves.
const GATHER: Duration = Duration::from_millis(1);

/// The same while nobody is told: then only the times of cold starts are to be known.
const GATHER_UNWATCHED: Duration = Duration::from_secs(1);

/// Of the ticks, every so many is one for the routes while nobody is told.
const UNWATCHED_TICKS: u32 = 4;

/// Silence longer than this is trouble: an empty message is sent before.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Messages a slow scaler may fall behind; then it gets everything anew.
const BACKLOG: usize = 256;

/// Streams served at once: scaler replicas, with room for those that were replaced and not noticed yet.
const MAX_STREAMS: usize = 64;

/// Where workers tell of edges. Holds at most one entry per route and direction.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    routes: Mutex<Vec<RouteId>>,
    told: Notify,
}

/// Sends counts to all streams.
#[derive(Debug)]
pub(crate) struct Publisher {
    edges: Arc<Edges>,
    reader: Reader,
    kernel: Kernel,
    signals: Signals,
    shared: Arc<Shared>,
    /// Routes whose counts may move.
    active: HashSet<RouteId, RandomState>,
    sent: HashMap<RouteId, Sent, RandomState>,
}

/// What a stream needs of the publisher.
#[derive(Debug)]
struct Shared {
    updates: broadcast::Sender<CountsUpdate>,
    incarnation: String,
    started: Instant,
    /// A stream was opened.
    opened: Notify,
}

/// What was last said of a route.
#[derive(Debug)]
struct Sent {
    counts: Counts,
    kernel: Option<ConnectionCounters>,
    backlog: Backlog,
    uncounted: bool,
    at: Instant,
}

/// The gRPC service.
#[derive(Debug)]
pub(crate) struct CountsService {
    reader: Reader,
    kernel: Kernel,
    shared: Arc<Shared>,
}

// === impl Edges ===

impl EdgeSink for Edges {
    fn edge(&self, route: RouteId) {
        self.routes.lock().push(route);
        self.told.notify_one();
    }
}

impl Edges {
    /// Ends once there are edges, but not before `earliest`. Loses none when it is cancelled.
    async fn told(&self, earliest: Instant) {
        tokio::time::sleep_until(earliest).await;
        self.told.notified().await;
    }

    fn take(&self) -> Vec<RouteId> {
        std::mem::take(&mut self.routes.lock())
    }
}

// === impl Publisher ===

impl Publisher {
    pub(crate) fn new(edges: Arc<Edges>, reader: Reader, kernel: Kernel, signals: Signals) -> Self {
        Self::of_run(None, edges, reader, kernel, signals)
    }

    /// One whose totals go on where those of a process before may have ended, with the name of that run and how long it has
    /// been counting.
    pub(crate) fn of_run(
        run: Option<(String, Duration)>,
        edges: Arc<Edges>,
        reader: Reader,
        kernel: Kernel,
        signals: Signals,
    ) -> Self {
        let (incarnation, age) = run.unwrap_or_else(|| {
            let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            (format!("{}-{}", std::process::id(), started.as_nanos()), Duration::ZERO)
        });
        let shared = Shared {
            updates: broadcast::Sender::new(BACKLOG),
            incarnation,
            // The clock may not have been running for as long: then the run is as old as it is.
            started: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
            opened: Notify::new(),
        };
        let (active, sent) = (HashSet::default(), HashMap::default());
        Self { edges, reader, kernel, signals, shared: Arc::new(shared), active, sent }
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self) -> Result<(), Infallible> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut published = self.reader.clone();
        let mut known = self.reader.load();
        let mut last = Instant::now();
        let mut gathered = last;
        let mut number = 0_u32;
        loop {
            let busy = !self.active.is_empty() || self.kernel.counts_pods();
            let update = tokio::select! {
                biased;
                () = self.edges.told(gathered) => {
                    gathered = Instant::now() + if self.is_watched() { GATHER } else { GATHER_UNWATCHED };
                    self.edges()
                }
                () = self.shared.opened.notified() => {
                    gathered = Instant::now();
                    self.look_at_all()
                }
                () = published.published() => self.removals(&mut known),
                _ = ticks.tick(), if busy => {
                    number = number.wrapping_add(1);
                    if self.is_watched() || number.is_multiple_of(UNWATCHED_TICKS) { self.tick() } else { None }
                }
                () = tokio::time::sleep_until(last + KEEPALIVE) => Some(CountsUpdate::default()),
            };
            if let Some(mut update) = update {
                update.incarnation.clone_from(&self.shared.incarnation);
                last = Instant::now();
                // Nobody may be watching; who comes later gets everything first.
                let _ = self.shared.updates.send(update);
            }
        }
    }

    fn is_watched(&self) -> bool {
        self.shared.updates.receiver_count() > 0
    }

    /// A new stream was told everything, and follows from there.
    fn look_at_all(&mut self) -> Option<CountsUpdate> {
        self.active.extend(self.reader.load().routes.values().map(|entry| entry.id));
        None
    }

    /// Workers say that routes turned active, or may have turned idle.
    fn edges(&mut self) -> Option<CountsUpdate> {
        let snapshot = self.reader.load();
        let kernel = self.kernel.counters();
        let now = Instant::now();
        let mut routes = Vec::new();
        for id in self.edges.take() {
            let Some(entry) = snapshot.route(id) else { continue };
            self.active.insert(id);
            let fresh = self.sent.get(&id).is_some_and(|sent| now.duration_since(sent.at) < INTERVAL);
            let falling = entry.counters.counts().in_flight == 0
                && self.sent.get(&id).is_some_and(|sent| sent.counts.in_flight > 0);
            // A route that flaps is told to fall at the next tick; it is told to rise at once, always.
            if !(falling && fresh) {
                routes.extend(self.report(entry, &kernel, now));
            }
        }
        update(routes)
    }

    fn tick(&mut self) -> Option<CountsUpdate> {
        let snapshot = self.reader.load();
        if self.kernel.counts_pods() {
            let direct = snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct);
            self.active.extend(direct.map(|entry| entry.id));
        }
        let kernel = self.kernel.counters();
        let now = Instant::now();
        let mut routes = Vec::new();
        for id in self.active.iter().copied().collect::<Vec<_>>() {
            let Some(entry) = snapshot.route(id) else {
                self.active.remove(&id);
                continue;
            };
            let reported = self.report(entry, &kernel, now);
            let rests = reported.is_none() && entry.counters.counts().in_flight == 0;
            if rests && !has_open_connections(kernel.get(&entry.upstream)) {
                self.active.remove(&id);
            }
            routes.extend(reported);
        }
        update(routes)
    }

    /// Marks the route's counts as reported; `None` when they are what was said last.
    fn report(
        &mut self,
        entry: &RouteEntry,
        kernel: &HashMap<UpstreamId, ConnectionCounters>,
        now: Instant,
    ) -> Option<RouteCounts> {
        if !self.kernel.tells_of(entry) {
            return None;
        }
        let counts = self.kernel.with_pods(entry, entry.counters.report());
        let kernel = kernel.get(&entry.upstream).copied();
        let backlog = self.kernel.backlog(entry, counts);
        let uncounted = self.kernel.is_uncounted(entry);
        let same = self.sent.get(&entry.id).is_some_and(|sent| {
            (sent.counts, sent.backlog, sent.uncounted) == (counts, backlog, uncounted)
                && sent.kernel.map(connections) == kernel.map(connections)
        });
        if same {
            return None;
        }
        let before = self.sent.insert(entry.id, Sent { counts, kernel, backlog, uncounted, at: now });
        if counts.in_flight > 0 && before.is_none_or(|sent| sent.counts.in_flight == 0) {
            self.signals.rose(entry.id, now);
        }
        self.is_watched().then(|| route_counts(entry, counts, kernel, &self.kernel))
    }

    /// Routes that are in the last snapshot and not in this one, or no more with the same totals.
    fn removals(&mut self, known: &mut Arc<Snapshot>) -> Option<CountsUpdate> {
        let current = self.reader.load();
        let previous = std::mem::replace(known, Arc::clone(&current));
        if previous.routes.ptr_eq(&current.routes) {
            return None;
        }
        let mut removed = Vec::new();
        for change in previous.routes.diff(&current.routes) {
            match change {
                DiffItem::Remove(key, entry) => {
                    self.sent.remove(&entry.id);
                    self.active.remove(&entry.id);
                    self.signals.gone(entry.id);
                    removed.push(route_ref(key));
                }
                // With other totals it is another one to scalers: told at the next tick, if it is told of at all.
                DiffItem::Update { old: (key, old), new: (_, new) } if self.kernel.tells_otherwise(old, new) => {
                    self.sent.remove(&old.id);
                    removed.push(route_ref(key));
                }
                DiffItem::Add(..) | DiffItem::Update { .. } => {}
            }
        }
        (!removed.is_empty()).then(|| CountsUpdate { removed, ..CountsUpdate::default() })
    }
}

// === impl CountsService ===

impl CountsService {
    /// The service, with the publisher's updates.
    pub(crate) fn server(publisher: &Publisher) -> CountsServer<Self> {
        CountsServer::new(Self {
            reader: publisher.reader.clone(),
            kernel: publisher.kernel.clone(),
            shared: Arc::clone(&publisher.shared),
        })
    }
}

impl Shared {
    /// The counts of every route. From here on workers tell of edges, if they did not before.
    fn complete(&self, reader: &Reader, kernel: &Kernel) -> CountsUpdate {
        let (snapshot, counters) = (reader.load(), kernel.counters());
        let routes = snapshot.routes.values().filter(|entry| kernel.tells_of(entry)).map(|entry| {
            let counts = kernel.with_pods(entry, entry.counters.report());
            route_counts(entry, counts, counters.get(&entry.upstream).copied(), kernel)
        });
        CountsUpdate {
            incarnation: self.incarnation.clone(),
            complete: true,
            routes: routes.collect(),
            removed: Vec::new(),
            uptime_ms: millis(self.started.elapsed()) + 1,
        }
    }
}

#[tonic::async_trait]
impl CountsApi for CountsService {
    type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<CountsUpdate, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if !self.kernel.is_complete() {
            // Who has known this node's counts keeps them until then.
            return Err(Status::unavailable("not all objects have been read yet"));
        }
        if self.shared.updates.receiver_count() >= MAX_STREAMS {
            return Err(Status::resource_exhausted(format!("{MAX_STREAMS} scalers are watching already")));
        }
        tracing::info!(scaler = request.get_ref().scaler, "a scaler watches");
        // First the subscription, then the state: what happens in between is sent twice, not lost.
        let updates = BroadcastStream::new(self.shared.updates.subscribe());
        let (reader, kernel, shared) = (self.reader.clone(), self.kernel.clone(), Arc::clone(&self.shared));
        let first = shared.complete(&reader, &kernel);
        shared.opened.notify_one();
        let rest = updates.map(move |update| match update {
            Ok(update) => Ok(update),
            Err(BroadcastStreamRecvError::Lagged(_)) => Ok(shared.complete(&reader, &kernel)),
        });
        Ok(Response::new(Box::pin(futures_util::stream::once(async { Ok(first) }).chain(rest))))
    }
}

fn update(routes: Vec<RouteCounts>) -> Option<CountsUpdate> {
    (!routes.is_empty()).then(|| CountsUpdate { routes, ..CountsUpdate::default() })
}

fn route_ref(key: &interceptor_core::ObjectKey) -> RouteRef {
    RouteRef { namespace: key.namespace().to_owned(), name: key.name().to_owned() }
}

fn route_counts(
    entry: &RouteEntry,
    counts: Counts,
    counted: Option<ConnectionCounters>,
    kernel: &Kernel,
) -> RouteCounts {
    let Backlog { depth, unknown } = kernel.backlog(entry, counts);
    RouteCounts {
        route: Some(route_ref(&entry.route.key)),
        concurrency: counts.in_flight,
        request_count: counts.total,
        held: counts.held,
        connections: kernel.connections(entry, counts),
        accept_queue: depth,
        accept_queue_unknown: unknown,
        uncounted: kernel.is_uncounted(entry),
        kernel: counted.map(|kernel| KernelCounts {
            opened: kernel.opened,
            closed: kernel.closed,
            failed: kernel.failed,
            srtt_us: kernel.srtt_us,
            idle_ms: millis(kernel.last_activity.unwrap_or_default()),
        }),
    }
}

/// What counts as a change: round-trip and idle times always move.
fn connections(kernel: ConnectionCounters) -> (u64, u64, u64) {
    (kernel.opened, kernel.closed, kernel.failed)
}

fn has_open_connections(kernel: Option<&ConnectionCounters>) -> bool {
    kernel.is_some_and(|kernel| kernel.opened > kernel.closed)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
