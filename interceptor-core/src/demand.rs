//! Counts of many sources to one number per route: requests in flight, and a rate from the growth of totals.
//! Written by the scaler's one writer with what its collectors hear; read by what answers KEDA.
//!
//! What a source's totals mean when they are seen for the first time is the only hard question here, see `Origin`.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use crate::{
    ObjectKey,
    window::{Shape, Unit, Window},
};

mod kernel;
mod report;

pub use self::{
    kernel::{Kernel, KernelSum},
    report::{Level, Observed, Report},
};

/// Most routes that are counted; further ones are refused, and [`Demand::refused`] says how many times.
pub const MAX_ROUTES: usize = 100_000;
/// How many incarnations are remembered after they left; see [`Origin`].
const MAX_DEPARTED: usize = 256;
/// Most interceptors that are listed; further ones are refused. A thousand is ten times what anybody runs.
pub const MAX_INTERCEPTORS: usize = 1024;
/// Most node agents that are listed, or were until [`AGENT_AWAY`] ago; further ones are refused. Three times as many nodes as
/// Kubernetes is made for.
pub const MAX_AGENTS: usize = 16_384;
/// Of the agents that were refused so many are known, so that it is known when none is left.
const MAX_REFUSED: usize = 65_536;
/// For how long what an agent has counted stands when it is not listed any more: the operator waits for a minute before it says
/// that nobody counts on that node, and takes some time to say so.
pub const AGENT_AWAY: Duration = Duration::from_secs(75);

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// All sources and all routes.
#[derive(Debug)]
pub struct Demand {
    unit: Unit,
    began: Duration,
    sources: Map<SocketAddr, Source>,
    departed: VecDeque<Arc<str>>,
    routes: Map<ObjectKey, RouteDemand>,
    in_flight: u64,
    /// Of those, what node agents count: no interceptor has it.
    past_interceptors: u64,
    refused: u64,
    /// How many of the sources are agents.
    agents: usize,
    /// Agents that there was no room for.
    refused_agents: BTreeSet<SocketAddr>,
    /// Agents that have never reported, by when they were listed.
    awaited: BTreeSet<(Duration, SocketAddr)>,
    /// Agents that are not listed any more and whose counts stand, by when that was.
    leaving: BTreeSet<(Duration, SocketAddr)>,
}

/// How sources are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Sources that are listed.
    pub listed: usize,
    /// Of those, the ones that have reported at least once.
    pub reported: usize,
    /// Of those listed, the ones of which nothing is heard at present.
    pub silent: usize,
}

/// One source that is listed.
#[derive(Debug, Default)]
struct Source {
    /// `None` until it has reported.
    run: Option<Run>,
    /// Since when nothing has been heard of it; its last counts still stand.
    silent: Option<Duration>,
    /// Whether it is a node agent, and no interceptor.
    is_agent: bool,
    /// When it was listed for the first time.
    listed: Duration,
    /// When it was listed last, if it is no more.
    left: Option<Duration>,
}

/// What a source has said in its present incarnation.
#[derive(Debug)]
struct Run {
    incarnation: Option<Arc<str>>,
    counts: Map<ObjectKey, Observed>,
}

/// From where a report's totals are counted.
///
/// - A source that was heard before goes on: its totals grow from the last ones, and a route it has not listed before
///   began after its last report, so all of its total is new; but a node agent's totals of it are where counting starts.
/// - It went on too if its incarnation is another: the process that is at this address now began after the last report of
///   the former, so all of its totals are new.
/// - A source heard for the first time whose incarnation began after this `Demand` did: all of its totals are new, and
///   arrived since it began (a new interceptor that took the first request before it was listed).
/// - Any other source heard for the first time: how much of its totals is new can't be known, so none is; neither is
///   anything when the incarnation was listed before, left and came back (a readiness flap), since its
///   totals were counted then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Totals grow from the last ones; the growth came between this time and now.
    ///
    /// A total that fell began anew if the source doesn't name its incarnation. If it does, totals don't fall: the
    /// number is older than the last one (or the route was made anew), and adds nothing.
    Last { since: Duration, named: bool },
    /// Totals grew from zero since this time.
    Zero { since: Duration },
    /// Totals are where counting starts.
    Here,
}

/// What is kept of a route.
#[derive(Debug, Default)]
struct RouteDemand {
    level: Level,
    kernel: KernelSum,
    /// How many sources count it.
    sources: u32,
    /// What is known of the route's own object.
    wanted: Wanted,
    window: Option<Window>,
}

/// Whether a rate is wanted of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wanted {
    /// The route's object has not been seen; a rate of the default shape is kept in case it asks for one.
    #[default]
    Unknown,
    /// The route's object exists.
    Known(Option<Shape>),
}

// === impl Demand ===

impl Demand {
    /// Nothing yet; `now` is when watching begins.
    pub fn new(unit: Unit, now: Duration) -> Self {
        Self {
            unit,
            began: now,
            sources: Map::default(),
            departed: VecDeque::new(),
            routes: Map::default(),
            in_flight: 0,
            past_interceptors: 0,
            refused: 0,
            agents: 0,
            refused_agents: BTreeSet::new(),
            awaited: BTreeSet::new(),
            leaving: BTreeSet::new(),
        }
    }

    /// An interceptor is listed; what it reports counts from now on. False if there are too many.
    pub fn list(&mut self, source: SocketAddr) -> bool {
        if !self.sources.contains_key(&source) && self.sources.len() - self.agents >= MAX_INTERCEPTORS {
            return false;
        }
        self.sources.entry(source).or_default();
        true
    }

    /// The same of a node agent: what it counts went past the interceptors. One that comes back goes on where it was.
    pub fn list_agent(&mut self, source: SocketAddr, now: Duration) -> bool {
        if let Some(known) = self.sources.get_mut(&source) {
            if let Some(left) = known.left.take() {
                self.leaving.remove(&(left, source));
            }
            return true;
        }
        if self.agents >= MAX_AGENTS {
            if self.refused_agents.len() < MAX_REFUSED {
                self.refused_agents.insert(source);
            }
            return false;
        }
        self.agents += 1;
        self.awaited.insert((now, source));
        self.sources.insert(source, Source { is_agent: true, listed: now, ..Source::default() });
        true
    }

    /// A source is listed no more. What an interceptor has in flight is gone. What an agent counted stands for
    /// [`AGENT_AWAY`]: the connections live on without it, and the next one counts them. Returns the routes whose level changed.
    pub fn unlist(&mut self, source: SocketAddr, now: Duration) -> Vec<ObjectKey> {
        self.refused_agents.remove(&source);
        match self.sources.get_mut(&source) {
            Some(known) if known.is_agent && known.run.is_some() => {
                if known.left.is_none() {
                    known.left = Some(now);
                    known.silent.get_or_insert(now);
                    self.leaving.insert((now, source));
                }
                Vec::new()
            }
            _ => self.forget(source),
        }
    }

    /// When [`lapse`](Self::lapse) has something to do.
    pub fn lapses_at(&self) -> Option<Duration> {
        self.leaving.first().map(|(left, _)| *left + AGENT_AWAY)
    }

    /// Agents that have been away for too long count no more. Returns the routes whose level changed.
    pub fn lapse(&mut self, now: Duration) -> Vec<ObjectKey> {
        let mut changed = Vec::new();
        while let Some((_, source)) = self.leaving.first().copied().filter(|(left, _)| *left + AGENT_AWAY <= now) {
            changed.extend(self.forget(source));
        }
        changed
    }

    fn forget(&mut self, source: SocketAddr) -> Vec<ObjectKey> {
        let mut changed = Vec::new();
        let Some(Source { run, silent: _, is_agent, listed, left }) = self.sources.remove(&source) else {
            return changed;
        };
        if is_agent {
            self.agents -= 1;
            self.awaited.remove(&(listed, source));
            left.map(|left| self.leaving.remove(&(left, source)));
        }
        let Some(run) = run else { return changed };
        let in_flight_before = self.in_flight;
        for (key, last) in run.counts {
            self.withdraw(&key, last, &mut changed);
        }
        if is_agent {
            self.past_interceptors -= in_flight_before - self.in_flight;
        }
        if let Some(incarnation) = run.incarnation {
            if self.departed.len() == MAX_DEPARTED {
                self.departed.pop_front();
            }
            self.departed.push_back(incarnation);
        }
        changed
    }

    /// Nothing is heard of a source any more; its last counts stand while it is listed.
    pub fn silent(&mut self, source: SocketAddr, now: Duration) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.silent.get_or_insert(now);
        }
    }

    /// Takes a report. Returns the routes whose level changed, in the order of the report.
    ///
    /// That of a source that is not listed is ignored.
    pub fn apply(&mut self, source: SocketAddr, now: Duration, report: Report) -> Vec<ObjectKey> {
        let mut changed = Vec::new();
        let Some(state) = self.sources.get_mut(&source).filter(|state| state.left.is_none()) else { return changed };
        self.awaited.remove(&(state.listed, source));
        let Report { incarnation, uptime, complete, routes, removed } = report;
        let (silent, is_agent, in_flight_before) = (state.silent.take(), state.is_agent, self.in_flight);
        let before = state.run.take();
        let (incarnation, origin, mut last) = match before {
            None => (incarnation.clone(), self.first(incarnation.as_ref(), uptime, now), Map::default()),
            Some(run) if run.is_the_same(incarnation.as_ref()) => {
                let origin = Origin::Last { since: silent.unwrap_or(now), named: incarnation.is_some() };
                (incarnation.or(run.incarnation), origin, run.counts)
            }
            Some(run) => (incarnation, Origin::Zero { since: silent.unwrap_or(now) }, run.counts),
        };
        let complete = complete || !matches!(origin, Origin::Last { .. });
        let mut counts = if complete { Map::default() } else { std::mem::take(&mut last) };
        for (key, observed) in routes {
            let observed = observed.clamped();
            let before = counts.get(&key).copied().or_else(|| last.remove(&key));
            // What pods have taken in all is the Service's. How much of it came before the route did, nobody can tell.
            let is_new = is_agent && before.is_none() && matches!(origin, Origin::Last { .. });
            let origin = if is_new { Origin::Here } else { origin };
            if self.observe(&key, before, observed, origin, now, &mut changed) {
                counts.insert(key, observed);
            }
        }
        for key in removed {
            if let Some(last) = counts.remove(&key) {
                self.withdraw(&key, last, &mut changed);
            }
        }
        for (key, last) in last {
            self.withdraw(&key, last, &mut changed);
        }
        if let Some(state) = self.sources.get_mut(&source) {
            state.run = Some(Run { incarnation, counts });
        }
        if is_agent {
            self.past_interceptors = self.past_interceptors + self.in_flight - in_flight_before;
        }
        changed
    }

    /// A route's object exists, and asks for a rate of this shape or for none.
    pub fn want(&mut self, key: &ObjectKey, shape: Option<Shape>, now: Duration) {
        if !self.routes.contains_key(key) && self.routes.len() >= MAX_ROUTES {
            self.refused += 1;
            return;
        }
        let route = self.routes.entry(key.clone()).or_default();
        route.wanted = Wanted::Known(shape);
        route.window = match (route.window.take(), shape) {
            (_, None) => None,
            (Some(window), Some(shape)) if window.shape() == shape => Some(window),
            (Some(window), Some(shape)) => Some(window.reshaped(shape)),
            (None, Some(shape)) => {
                let mut window = Window::new(shape);
                window.advance(now);
                Some(window)
            }
        };
    }

    /// A route's object exists no more.
    pub fn unwant(&mut self, key: &ObjectKey) {
        let Some(route) = self.routes.get_mut(key) else { return };
        route.wanted = Wanted::Unknown;
        route.window = None;
        if route.sources == 0 {
            self.routes.remove(key);
        }
    }

    /// A route's level; zero if nobody counts it.
    pub fn level(&self, key: &ObjectKey) -> Level {
        self.routes.get(key).map(|route| route.level).unwrap_or_default()
    }

    /// A route's rate; zero if nobody counts it or no rate is wanted.
    pub fn rate(&self, key: &ObjectKey, now: Duration) -> f64 {
        self.window(key).map_or(0.0, |window| window.rate(now, self.unit))
    }

    /// When a route's rate falls to zero if nothing more arrives; `None` if it is zero.
    pub fn quiet_at(&self, key: &ObjectKey, now: Duration) -> Option<Duration> {
        self.window(key)?.quiet_at(now)
    }

    /// What the kernels of all sources counted of a route's connections; `None` if none did.
    pub fn kernel(&self, key: &ObjectKey) -> Option<KernelSum> {
        self.routes.get(key).map(|route| route.kernel).filter(|kernel| *kernel != KernelSum::default())
    }

    /// Requests in flight at interceptors over all routes, those without an object included.
    pub fn in_flight(&self) -> u64 {
        self.in_flight - self.past_interceptors
    }

    /// How sources are doing.
    pub fn census(&self) -> Census {
        let mut census = Census { listed: self.sources.len() - self.leaving.len(), ..Census::default() };
        for source in self.sources.values().filter(|source| source.left.is_none()) {
            census.reported += usize::from(source.run.is_some());
            census.silent += usize::from(source.silent.is_some());
        }
        census
    }

    /// Whether a source has reported and is not silent.
    pub fn is_heard(&self, source: SocketAddr) -> bool {
        self.sources.get(&source).is_some_and(|source| source.run.is_some() && source.silent.is_none())
    }

    /// How many times a route was refused because there were too many.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Agents that are listed and were refused because there were too many.
    pub fn refused_agents(&self) -> usize {
        self.refused_agents.len()
    }

    /// When the last of the agents was listed that have never reported, if there are any.
    pub fn awaits_since(&self) -> Option<Duration> {
        self.awaited.last().map(|(listed, _)| *listed)
    }

    fn window(&self, key: &ObjectKey) -> Option<&Window> {
        self.routes.get(key)?.window.as_ref()
    }

    fn first(&self, incarnation: Option<&Arc<str>>, uptime: Option<Duration>, now: Duration) -> Origin {
        let known = incarnation.is_none_or(|incarnation| self.departed.contains(incarnation));
        match uptime.and_then(|uptime| now.checked_sub(uptime)) {
            Some(since) if since >= self.began && !known => Origin::Zero { since },
            _ => Origin::Here,
        }
    }

    /// Takes one source's counts of one route. False if the route is refused.
    fn observe(
        &mut self,
        key: &ObjectKey,
        before: Option<Observed>,
        observed: Observed,
        origin: Origin,
        now: Duration,
        changed: &mut Vec<ObjectKey>,
    ) -> bool {
        if !self.routes.contains_key(key) {
            if self.routes.len() >= MAX_ROUTES {
                self.refused += 1;
                return false;
            }
            self.routes.insert(key.clone(), RouteDemand::counted(now));
        }
        let Some(route) = self.routes.get_mut(key) else { return false };
        let (base, since) = match origin {
            Origin::Here => (observed, now),
            Origin::Zero { since } => (Observed::default(), since),
            Origin::Last { since, named: _ } => (before.unwrap_or_default(), since),
        };
        let new = match observed.total.checked_sub(base.total) {
            Some(new) => new,
            None if matches!(origin, Origin::Last { since: _, named: false }) => observed.total,
            None => 0,
        };
        if let Some(before) = before {
            route.kernel.withdraw(before.kernel);
        }
        route.kernel.observe(base.kernel, observed.kernel);
        if before.is_none() {
            route.sources += 1;
        }
        let old = before.unwrap_or_default();
        route.level = route.level.with(old, observed, new);
        self.in_flight = self.in_flight - old.in_flight + observed.in_flight;
        if new > 0
            && let Some(window) = &mut route.window
        {
            window.advance(since.min(now));
            window.record_span(since.min(now), now, new);
        }
        if new > 0 || old.differs(&observed) {
            changed.push(key.clone());
        }
        true
    }

    /// A source counts a route no more.
    fn withdraw(&mut self, key: &ObjectKey, last: Observed, changed: &mut Vec<ObjectKey>) {
        let Some(route) = self.routes.get_mut(key) else { return };
        route.level = route.level.with(last, Observed::default(), 0);
        route.kernel.withdraw(last.kernel);
        route.sources -= 1;
        self.in_flight -= last.in_flight;
        if route.sources == 0 && route.wanted == Wanted::Unknown {
            self.routes.remove(key);
        }
        if last.differs(&Observed::default()) {
            changed.push(key.clone());
        }
    }
}

// === impl Run ===

impl Run {
    /// Without a name on either side (a stream that gave way to `GET /queue`, or the other way round) the totals tell.
    fn is_the_same(&self, incarnation: Option<&Arc<str>>) -> bool {
        match (&self.incarnation, incarnation) {
            (Some(mine), Some(other)) => mine == other,
            _ => true,
        }
    }
}

// === impl RouteDemand ===

impl RouteDemand {
    /// A route that is counted before its object has been seen.
    fn counted(now: Duration) -> Self {
        let mut window = Window::new(Shape::default());
        window.advance(now);
        Self { window: Some(window), ..Self::default() }
    }
}

#[cfg(test)]
mod tests;
