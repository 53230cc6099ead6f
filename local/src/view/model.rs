//! What the screen shows, as plain values: gathered a few times a second, drawn by `draw`.

use std::collections::{BTreeMap, VecDeque};

use interceptor_core::ObjectKey;
use tokio::time::Instant;

use crate::{
    cluster::RouteName,
    cold_start::Phases,
    kubelet::{Phase, PodStatus},
    platform::Health,
    request::{Load, curl},
    state::{ColdStart, Route, RouteState, State},
    timeline::{Entry, Event},
    world::{ScaledRoute, World},
};

/// Rates are averaged over so many looks: one second.
const SMOOTH: usize = 5;
/// How far back the graph of requests goes, in looks.
pub const HISTORY: usize = 300;
/// More cold starts and log lines than any screen shows.
const MAX_LINES: usize = 64;

/// All of the screen.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Port for requests.
    pub proxy: u16,
    /// `none` or `self`, and why.
    pub dataplane: (String, String),
    /// Interceptor and scaler: name, how it is, whether that is good.
    pub processes: Vec<(&'static str, String, bool)>,
    /// Routes.
    pub routes: Vec<RouteRow>,
    /// Which of them is chosen.
    pub chosen: usize,
    /// Replicas.
    pub pods: Vec<PodRow>,
    /// Requests a second of the chosen route, the newest last.
    pub history: Vec<u64>,
    /// Wakes, the newest first.
    pub cold_starts: Vec<ColdStartRow>,
    /// What happened, the newest last: seconds since the start, text, whether it is a problem.
    pub log: Vec<(f64, String, bool)>,
    /// What is wrong now.
    pub problems: Vec<String>,
    /// The command for another terminal.
    pub curl: String,
    /// Requests at once, answers and failures, while there is load.
    pub load: Option<(usize, u64, u64)>,
    /// What our own last request brought.
    pub reply: String,
    /// Where the manifests are.
    pub manifests: String,
    /// Where the logs are.
    pub logs: String,
}

/// A route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteRow {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// Cold, holding or warm; `None` when the interceptor does not know it.
    pub state: Option<RouteState>,
    /// Requests in flight, held ones included.
    pub in_flight: u64,
    /// Requests that wait.
    pub held: u64,
    /// Requests a second.
    pub rate: f64,
    /// Replicas that are ready, asked for, and at most.
    pub replicas: (usize, u32, u32),
    /// Connections to pods that are open and that ever were, as the kernel counts.
    pub kernel: Option<(u64, u64)>,
}

/// A replica.
#[derive(Clone, Debug, PartialEq)]
pub struct PodRow {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// How it is.
    pub phase: Phase,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
}

/// A cold start.
#[derive(Clone, Debug, PartialEq)]
pub struct ColdStartRow {
    /// Seconds since the start.
    pub at: f64,
    /// The route.
    pub route: String,
    /// Where the time of the first request went.
    pub phases: Phases,
    /// How many requests the wake let through, the first one included.
    pub requests: usize,
}

/// Gathers models; remembers what rates and the log need.
#[derive(Debug)]
pub struct Gatherer {
    start: u64,
    totals: BTreeMap<RouteName, VecDeque<(Instant, u64)>>,
    history: VecDeque<u64>,
    entries: VecDeque<Entry>,
    next: u64,
}

// === impl Gatherer ===

impl Gatherer {
    /// Times on the screen count from `start`, in microseconds since 1970.
    pub fn new(start: u64) -> Self {
        Self { start, totals: BTreeMap::new(), history: VecDeque::new(), entries: VecDeque::new(), next: 0 }
    }

    /// Looks at everything once.
    pub fn gather(
        &mut self,
        world: &World,
        state: Option<&State>,
        chosen: Option<&RouteName>,
        load: Option<(usize, &Load)>,
    ) -> Model {
        self.follow(world);
        let routes = world.scaled_routes();
        let known: Vec<RouteRow> = routes.iter().map(|route| self.row(world, state, route)).collect();
        self.totals.retain(|name, _| routes.iter().any(|route| route.name == *name));
        let chosen = chosen.and_then(|name| routes.iter().position(|route| route.name == *name)).unwrap_or(0);
        let rate = known.get(chosen).map_or(0.0, |row| row.rate);
        push(&mut self.history, round(rate), HISTORY);
        let dataplane = state.map(|state| (state.dataplane.level.clone(), state.dataplane.reason.clone()));
        Model {
            proxy: world.ports.proxy,
            dataplane: dataplane
                .unwrap_or_else(|| ("unknown".to_owned(), "the interceptor does not answer".to_owned())),
            processes: world.processes.iter().map(|(name, health)| health_row(name, &health.borrow())).collect(),
            curl: routes.get(chosen).map(|route| curl(world.ports.proxy, &route.address)).unwrap_or_default(),
            routes: known,
            chosen,
            pods: world.pods.borrow().iter().map(pod_row).collect(),
            history: self.history.iter().copied().collect(),
            cold_starts: state.map(|state| self.cold_starts(world, state)).unwrap_or_default(),
            log: self.entries.iter().map(|entry| self.line(entry)).collect(),
            problems: problems(world, state),
            load: load.map(|(concurrency, load)| {
                let tally = load.tally();
                (concurrency, tally.answered, tally.failed)
            }),
            reply: String::new(),
            manifests: world.manifests.display().to_string(),
            logs: world.logs.display().to_string(),
        }
    }

    fn follow(&mut self, world: &World) {
        for entry in world.cluster.timeline().since(self.next) {
            self.next = entry.number + 1;
            push(&mut self.entries, entry, MAX_LINES);
        }
    }

    fn row(&mut self, world: &World, state: Option<&State>, route: &ScaledRoute) -> RouteRow {
        let key = &route.name.key;
        let seen = state.and_then(|state| state.route(key.namespace(), key.name()));
        let rate = seen.map_or(0.0, |seen| self.rate(&route.name, seen.total));
        let Route { in_flight, held, kernel, .. } = seen.cloned().unwrap_or_default();
        RouteRow {
            name: key.to_string(),
            kind: route.name.kind,
            state: seen.map(|seen| seen.state),
            in_flight,
            held,
            rate,
            replicas: (
                ready(world, &route.scaled.workload),
                world.cluster.load().replicas.get(&route.scaled.workload).copied().unwrap_or(0),
                route.scaled.limits.max,
            ),
            kernel: kernel.map(|kernel| (kernel.opened.saturating_sub(kernel.closed), kernel.opened)),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a difference of counts within a second")]
    fn rate(&mut self, name: &RouteName, total: u64) -> f64 {
        let totals = self.totals.entry(name.clone()).or_default();
        push(totals, (Instant::now(), total), SMOOTH + 1);
        let (Some(first), Some(last)) = (totals.front(), totals.back()) else { return 0.0 };
        let seconds = (last.0 - first.0).as_secs_f64();
        if seconds > 0.0 { last.1.saturating_sub(first.1) as f64 / seconds } else { 0.0 }
    }

    /// One row a wake, the newest first: requests that joined it are counted, not listed.
    fn cold_starts(&self, world: &World, state: &State) -> Vec<ColdStartRow> {
        let entries = world.cluster.timeline().since(0);
        let mut all: Vec<&ColdStart> = state.cold_starts.iter().collect();
        all.sort_by_key(|cold| cold.arrived);
        let mut rows: Vec<(ColdStartRow, u64)> = Vec::new();
        for cold in all {
            let route = format!("{}/{}", cold.namespace, cold.name);
            let wake = rows.iter_mut().rev().find(|(row, over)| row.route == route && cold.arrived <= *over);
            if let Some((row, _)) = wake {
                row.requests += 1;
            } else if let Some(phases) = world.explain(cold, &entries) {
                let row = ColdStartRow { at: self.seconds(cold.arrived), route, phases, requests: 1 };
                rows.push((row, cold.endpoint_seen));
            }
        }
        rows.into_iter().rev().map(|(row, _)| row).collect()
    }

    fn line(&self, entry: &Entry) -> (f64, String, bool) {
        let bad = matches!(entry.event, Event::Problem { .. } | Event::PodCrashed(..));
        (self.seconds(entry.at), entry.event.to_string(), bad)
    }

    #[expect(clippy::cast_precision_loss, reason = "microseconds since the start of this process")]
    fn seconds(&self, at: u64) -> f64 {
        at.saturating_sub(self.start) as f64 / 1e6
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, limit: usize) {
    if queue.len() == limit {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate, and NaN is zero")]
fn round(rate: f64) -> u64 {
    rate.round() as u64
}

fn ready(world: &World, workload: &ObjectKey) -> usize {
    world.pods.borrow().iter().filter(|pod| pod.workload == *workload && pod.phase == Phase::Ready).count()
}

fn health_row(name: &'static str, health: &Health) -> (&'static str, String, bool) {
    (name, health.to_string(), matches!(health, Health::Running { .. }))
}

fn pod_row(pod: &PodStatus) -> PodRow {
    let port = pod.port.map_or_else(String::new, |port| format!(":{port}"));
    PodRow {
        name: pod.name.to_string(),
        address: format!("{}{port}", pod.address),
        phase: pod.phase.clone(),
        pid: pod.pid,
        restarts: pod.restarts,
    }
}

/// Ours, then the interceptor's, which reads the same files and need not say the same again.
fn problems(world: &World, state: Option<&State>) -> Vec<String> {
    let cluster = world.cluster.load();
    let mut all: Vec<String> =
        cluster.problems.iter().map(|(object, message)| format!("{object}: {message}")).collect();
    for pod in world.pods.borrow().iter() {
        if let Phase::Crashed(how) = &pod.phase {
            let log = world.logs.join(format!("{}.log", pod.name));
            all.push(format!("pod {} {how}; its log is {}", pod.name, log.display()));
        }
    }
    for problem in state.iter().flat_map(|state| &state.problems) {
        if !all.iter().any(|known| known.ends_with(&problem.message)) {
            all.push(format!("{}: {}", problem.object, problem.message));
        }
    }
    all.truncate(MAX_LINES);
    all
}
