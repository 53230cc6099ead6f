//! What the scaler knows: routes and their demand. Written by one task, [`Writer::run`]; read by the service, health and
//! metrics. Every read or write holds the lock for a moment, never over an await.

use std::{collections::HashMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use interceptor_core::{
    ObjectKey, Route,
    demand::{Census, Demand, KernelSum, Level, Report},
    route::{DataPath, RouteKind},
    window::Unit,
};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    discover::Kind,
    push::Activity,
    shadow::{Gate, Verdict},
    spec::{self, Sample},
    subject::Subject,
};

mod pair;
mod topics;

pub use self::topics::Subscription;
use self::{
    pair::Pair,
    topics::{Topic, Topics},
};

/// For how long an agent that is listed and has never reported keeps scalers from telling that direct routes have no demand. It
/// is ready, and what its pods take is not known.
const AWAITED: Duration = Duration::from_mins(2);

/// The same for numbers, and for this scaler's readiness: too small ones are better than none for long.
const SETTLING: Duration = Duration::from_secs(10);

/// How much news may wait for the writer; a collector that is faster waits, and its source with it.
const MAX_NEWS: usize = 64;

/// Something that the writer is to know.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "moved once, from a queue to the board")]
pub enum News {
    /// A route was added or changed.
    Route(Route),
    /// A route is gone.
    RouteGone(RouteKind, ObjectKey),
    /// All objects have been read once.
    Synced,
    /// A source is listed.
    Listed(SocketAddr, Kind),
    /// A source is listed no more.
    Unlisted(SocketAddr),
    /// A source said what it counts.
    Report(SocketAddr, Report),
    /// A source says nothing.
    Silent(SocketAddr),
}

/// Where news is handed in.
pub type Sender = mpsc::Sender<News>;

/// The one that writes.
#[derive(Debug)]
pub struct Writer {
    board: Board,
    news: mpsc::Receiver<News>,
}

/// The ones that read. Clones share what they see.
#[derive(Clone, Debug)]
pub struct Board(Arc<Shared>);

/// One route, for metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteState {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Requests in flight.
    pub in_flight: u64,
    /// Connections that are held, or open without a proxy.
    pub connections: u64,
    /// Connections that are held, or that pods have not accepted yet; `None` if the route does not scale by them.
    pub accept_queue: Option<u64>,
    /// Node agents that can't tell of all pods; likewise.
    pub accept_queue_unknown: Option<u64>,
    /// Requests per second; `None` if the route asks for no rate.
    pub rate: Option<f64>,
    /// What kernels counted, if any did.
    pub kernel: Option<KernelSum>,
    /// Node agents that don't count what all of its pods take; `None` if it goes through interceptors.
    pub uncounted: Option<u64>,
}

/// How the scaler stands as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// All objects have been read once.
    pub synced: bool,
    /// How sources are doing.
    pub census: Census,
    /// How many times a route was refused because there were too many.
    pub refused: u64,
    /// Agents that are listed and not listened to because there are too many.
    pub refused_agents: usize,
    /// By when all agents will have reported that are listed, or are waited for no more; `None` if nobody is waited for.
    pub settles_at: Option<Duration>,
}

/// What a stream of activity is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Whether there is demand.
    Demand,
    /// Whether KEDA must let a workload have replicas: also while nobody could take its place.
    Scaling,
}

/// What a subject can't be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// There is no such route.
    NoRoute(RouteKind, ObjectKey),
    /// Objects have not been read yet.
    NotSynced,
    /// No interceptor is listed.
    NoSource,
    /// So many interceptors are listed, and none has ever reported.
    NoReport(usize),
    /// Some agents have never reported, or are not listened to.
    Agents,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    synced: bool,
    demand: Demand,
    routes: HashMap<ObjectKey, Pair>,
    gates: HashMap<ObjectKey, Gate>,
    topics: Topics,
}

/// What agents count may be missing, until then at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doubt {
    until: Option<Duration>,
}

/// An empty board: its writer, where news goes, and its reader.
pub fn channel(unit: Unit) -> (Writer, Sender, Board) {
    let (sender, news) = mpsc::channel(MAX_NEWS);
    let state = State {
        synced: false,
        demand: Demand::new(unit, Duration::ZERO),
        routes: HashMap::new(),
        gates: HashMap::new(),
        topics: Topics::default(),
    };
    let board = Board(Arc::new(Shared { began: Instant::now(), state: Mutex::new(state) }));
    (Writer { board: board.clone(), news }, sender, board)
}

// === impl Writer ===

impl Writer {
    /// Takes news in until nobody is left who could bring any.
    pub async fn run(mut self) -> Result<(), Infallible> {
        loop {
            let due = self.board.0.state.lock().demand.lapses_at().map(|at| self.board.instant(at));
            let lapses = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let news = tokio::select! {
                news = self.news.recv() => Some(news),
                () = lapses => None,
            };
            let now = self.board.now();
            let mut state = self.board.0.state.lock();
            match news {
                Some(Some(news)) => state.take(news, now),
                Some(None) => return Ok(()),
                None => {
                    let changed = state.demand.lapse(now);
                    state.counts_changed(changed);
                }
            }
        }
    }
}

// === impl Board ===

impl Board {
    /// Time since the board began.
    pub fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// The instant of a time since the board began.
    pub fn instant(&self, at: Duration) -> Instant {
        self.0.began + at
    }

    /// A route's object.
    pub fn route(&self, kind: RouteKind, key: &ObjectKey) -> Result<Arc<Route>, Unknown> {
        self.0.state.lock().route(kind, key)
    }

    /// What is measured of a subject, and the route if it is one.
    pub fn sample(&self, subject: &Subject) -> Result<(Option<Arc<Route>>, Sample), Unknown> {
        let now = self.now();
        let state = self.0.state.lock();
        let route = match subject {
            Subject::Route(kind, key) => Some(state.route(*kind, key)?),
            Subject::Interceptor { .. } => None,
        };
        state.known()?;
        let sample = state.sample(route.as_deref(), now);
        Ok((route, sample))
    }

    /// Whether a subject is active; one that can't be told is not.
    pub fn activity(&self, subject: &Subject, view: View) -> Activity {
        let now = self.now();
        let mut state = self.0.state.lock();
        let (kind, key) = match subject {
            Subject::Route(kind, key) => (*kind, key),
            Subject::Interceptor { .. } => {
                let values = spec::interceptor_values(subject, state.sample(None, now));
                return Activity { active: spec::any_positive(&values), ..Activity::default() };
            }
        };
        let route = state.route(kind, key).ok();
        let active = route.as_ref().is_some_and(|route| spec::is_active(route, state.sample(Some(route), now)));
        let Level { arrived, uncounted, .. } = state.demand.level(key);
        let quiet_at = state.demand.quiet_at(key, now);
        let route = route.filter(|_| view == View::Scaling);
        let uncounted = !active && route.as_ref().is_some_and(|route| is_uncounted(route, uncounted));
        let verdict = match route.and_then(|route| route.shadow) {
            Some(shadow) => state.gate(key).look(Some(shadow), (active, arrived), now),
            None => Verdict::default(),
        };
        let Verdict { holds, again } = verdict.while_uncounted(uncounted);
        let quiet_at = if holds { again } else { quiet_at };
        let active = active || holds;
        let doubt = state.doubt(now).filter(|_| !active && state.routes.get(key).is_some_and(Pair::is_direct));
        let again = again.into_iter().chain(doubt.and_then(|Doubt { until }| until)).min();
        Activity { active, arrived, quiet_at, again, doubtful: doubt.is_some() }
    }

    /// Whether the numbers of a route may lack what agents count that have just been listed.
    pub fn settles(&self, route: &Route) -> bool {
        route.data_path == DataPath::Direct && self.0.state.lock().settles_at(self.now()).is_some()
    }

    /// Tells of each change of what a subject measures, and of its route.
    pub fn subscribe_counts(&self, subject: &Subject) -> Subscription {
        self.subscribe(match subject {
            Subject::Route(_, key) => Topic::Counts(key.clone()),
            Subject::Interceptor { .. } => Topic::All,
        })
    }

    /// Tells of each change of a subject's route; never of the interceptors, which have none.
    pub fn subscribe_route(&self, subject: &Subject) -> Subscription {
        self.subscribe(match subject {
            Subject::Route(_, key) => Topic::Route(key.clone()),
            Subject::Interceptor { .. } => Topic::Nothing,
        })
    }

    /// Tells when the [`standing`](Self::standing) may have changed.
    pub fn subscribe_standing(&self) -> Subscription {
        self.subscribe(Topic::Standing)
    }

    /// How the scaler stands as a whole.
    pub fn standing(&self) -> Standing {
        let now = self.now();
        let state = self.0.state.lock();
        Standing {
            synced: state.synced,
            census: state.demand.census(),
            refused: state.demand.refused(),
            refused_agents: state.demand.refused_agents(),
            settles_at: state.settles_at(now),
        }
    }

    /// Every route that has an object, in no order.
    pub fn routes(&self) -> Vec<RouteState> {
        let now = self.now();
        let state = self.0.state.lock();
        let one = |(key, pair): (&ObjectKey, &Pair)| {
            let level = state.demand.level(key);
            let Level { in_flight, connections, accept_queue, accept_queue_unknown, uncounted, .. } = level;
            let scales =
                pair.get(RouteKind::InterceptorRoute).is_some_and(|route| route.scaling.accept_queue.is_some());
            RouteState {
                key: key.clone(),
                in_flight,
                connections,
                accept_queue: scales.then_some(accept_queue),
                accept_queue_unknown: scales.then_some(accept_queue_unknown),
                rate: pair.shape().map(|_| state.demand.rate(key, now)),
                kernel: state.demand.kernel(key),
                uncounted: pair.is_direct().then_some(uncounted),
            }
        };
        state.routes.iter().map(one).collect()
    }

    fn subscribe(&self, topic: Topic) -> Subscription {
        let receiver = self.0.state.lock().topics.receiver(&topic);
        Subscription::new(Arc::clone(&self.0), topic, receiver)
    }
}

// === impl Shared ===

impl Shared {
    /// Called when a subscription goes.
    fn forget(&self, topic: &Topic) {
        self.state.lock().topics.forget(topic);
    }
}

// === impl State ===

impl State {
    fn take(&mut self, news: News, now: Duration) {
        let before = self.doubt(now);
        self.put(news, now);
        if before.is_some() && self.doubt(now).is_none() {
            for (key, _) in self.routes.iter().filter(|(_, pair)| pair.is_direct()) {
                self.topics.tell(&Topic::Counts(key.clone()));
            }
        }
    }

    fn put(&mut self, news: News, now: Duration) {
        match news {
            News::Route(route) => {
                let key = route.key.clone();
                self.routes.entry(key.clone()).or_default().slot(route.kind).replace(Arc::new(route));
                self.route_changed(&key, now);
            }
            News::RouteGone(kind, key) => {
                if let Some(pair) = self.routes.get_mut(&key) {
                    pair.slot(kind).take();
                }
                self.route_changed(&key, now);
            }
            News::Synced => {
                self.synced = true;
                self.topics.tell(&Topic::Standing);
            }
            News::Listed(source, kind) => {
                let listed = match kind {
                    Kind::Interceptor => self.demand.list(source),
                    Kind::Agent => self.demand.list_agent(source, now),
                };
                if !listed {
                    tracing::warn!(%source, ?kind, "there are too many to listen to, one is left out");
                }
                self.topics.tell(&Topic::Standing);
            }
            News::Unlisted(source) => {
                let changed = self.demand.unlist(source, now);
                self.counts_changed(changed);
                self.topics.tell(&Topic::Standing);
            }
            News::Report(source, report) => {
                let heard = self.demand.is_heard(source);
                let changed = self.demand.apply(source, now, report);
                self.counts_changed(changed);
                if !heard {
                    self.topics.tell(&Topic::Standing);
                }
            }
            News::Silent(source) => {
                self.demand.silent(source, now);
                self.topics.tell(&Topic::Standing);
            }
        }
    }

    fn route_changed(&mut self, key: &ObjectKey, now: Duration) {
        match self.routes.get(key) {
            Some(pair) if !pair.is_empty() => self.demand.want(key, pair.shape(), now),
            _ => {
                self.routes.remove(key);
                self.gates.remove(key);
                self.demand.unwant(key);
            }
        }
        self.topics.tell(&Topic::Route(key.clone()));
        self.topics.tell(&Topic::Counts(key.clone()));
    }

    fn counts_changed(&mut self, changed: Vec<ObjectKey>) {
        if !changed.is_empty() {
            self.topics.tell(&Topic::All);
        }
        for key in changed {
            self.topics.tell(&Topic::Counts(key));
        }
    }

    /// No more of them than routes.
    fn gate(&mut self, key: &ObjectKey) -> &mut Gate {
        self.gates.entry(key.clone()).or_default()
    }

    /// Whether direct routes that seem to have no demand may have some.
    fn doubt(&self, now: Duration) -> Option<Doubt> {
        if self.demand.refused_agents() > 0 {
            return Some(Doubt { until: None });
        }
        let until = self.demand.awaits_since()? + AWAITED;
        (now < until).then_some(Doubt { until: Some(until) })
    }

    fn settles_at(&self, now: Duration) -> Option<Duration> {
        self.demand.awaits_since().map(|since| since + SETTLING).filter(|at| now < *at)
    }

    fn route(&self, kind: RouteKind, key: &ObjectKey) -> Result<Arc<Route>, Unknown> {
        match self.routes.get(key).and_then(|pair| pair.get(kind)) {
            Some(route) => Ok(Arc::clone(route)),
            None if self.synced => Err(Unknown::NoRoute(kind, key.clone())),
            None => Err(Unknown::NotSynced),
        }
    }

    /// Whether what is measured means anything: a zero that nobody counted would scale a busy workload down.
    fn known(&self) -> Result<(), Unknown> {
        match self.demand.census() {
            Census { listed: 0, .. } if self.synced => Err(Unknown::NoSource),
            Census { listed: 0, .. } => Err(Unknown::NotSynced),
            Census { listed, reported: 0, .. } => Err(Unknown::NoReport(listed)),
            Census { .. } => Ok(()),
        }
    }

    fn sample(&self, route: Option<&Route>, now: Duration) -> Sample {
        match route {
            None => Sample { in_flight: self.demand.in_flight(), ..Sample::default() },
            Some(Route { key, .. }) => {
                let Level { in_flight, connections, accept_queue, accept_queue_unknown, .. } = self.demand.level(key);
                let rate = self.demand.rate(key, now);
                Sample { in_flight, rate, connections, accept_queue, accept_queue_unknown }
            }
        }
    }
}

/// Whether a route's workload must not be taken for one that has nothing to do: nobody counts what some of its ready pods take.
/// `agents` can't for theirs, or nodes have none, which the operator tells.
fn is_uncounted(route: &Route, agents: u64) -> bool {
    route.data_path == DataPath::Direct && (route.uncounted || agents > 0)
}
