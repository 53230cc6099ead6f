//! What decides about shadow slices: ports, pods, interceptors, demand, and the slices that there are. A part of the world.
//!
//! ```text
//! scaler ─ demand ────────────┐
//! slices of pods ─ ready ─────┼─► Seen ─► plan: publish, or withdraw
//! slices of interceptors ─────┤
//! statuses ─ ports ───────────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use interceptor_core::{ObjectKey, Route, route::DataPath};
use tokio::time::Instant;

mod ports;

pub(crate) use self::ports::Claim;
use self::ports::{Given, Ports, Refused, ServicePort};
use crate::object::{Interceptor, OwnSlice, ShadowSlice, Slice};

/// From the status that tells a port until interceptors listen at it: they are told by a watch.
const LISTENING: Duration = Duration::from_secs(2);

/// For how long pods must have been ready and demand there before slices are withdrawn: whatever KEDA was about to do when it
/// heard of the demand has been done by then, and shows in the slices.
const WARM: Duration = Duration::from_secs(5);

/// How long a node may be without its agent before what its pods take counts as unknown: what an agent has left in the kernel goes on
/// counting, and the next one tells of it.
const AGENT_AWAY: Duration = Duration::from_mins(1);

/// How long a scaler may take to tell of demand before it counts as unknown.
const SILENCE: Duration = Duration::from_secs(10);

/// When to look again for a port when there is none.
const AGAIN: Duration = Duration::from_mins(1);

/// Whether there is demand for a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Nobody has told, since then.
    Unknown(Instant),
    /// There is.
    Active,
    /// There is none, since then if that is known.
    Quiet(Option<Instant>),
}

/// What a plan has to know of a route's shadow slices.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The Service's port that clients connect to.
    pub port: Port,
    /// Interceptors that are ready, in order of their addresses.
    pub interceptors: Arc<[Interceptor]>,
    /// The slices that there are, in order of their names.
    pub live: Vec<ShadowSlice>,
    /// Whether a pod is ready.
    pub ready: bool,
    /// Whether interceptors have to be listed, be pods ready or not.
    pub needed: bool,
    /// Whether for some time pods have been ready and interceptors have not been needed.
    pub warm: bool,
    /// Nodes with a ready pod and without a ready agent, in order.
    pub uncounted: Vec<Arc<str>>,
    /// A family of addresses that clients reach the Service by, and of which no interceptor has one.
    pub lacking: Option<&'static str>,
}

/// How interceptors are reached in place of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// At this port, by this name of the Service's port.
    Open {
        /// The interceptors' port.
        number: u16,
        /// The name of the Service's port, which slices give to theirs.
        name: Arc<str>,
        /// Whether all interceptors listen there by now.
        listening: bool,
    },
    /// All ports of the range are given away.
    Full,
    /// The namespace has as many as one may have.
    Limit,
    /// The Service's clients connect to pods by their addresses and ports.
    Headless,
    /// The Service, or its port, does not exist.
    Missing,
}

/// How clients reach a Service.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    /// The name of its port.
    pub(crate) port: Arc<str>,
    /// Whether it has addresses of IPv4.
    pub(crate) ipv4: bool,
    /// Whether it has addresses of IPv6.
    pub(crate) ipv6: bool,
}

/// What is known of one direct route.
#[derive(Debug)]
struct Known {
    service: ObjectKey,
    port: Option<ServicePort>,
    /// The port that the status goes on to tell after the route was led from one Service to another: it is that one's.
    left: Option<u16>,
    demand: Demand,
    warm_since: Option<Instant>,
}

/// All that is known.
#[derive(Debug)]
pub(crate) struct Shadows {
    ports: Ports,
    routes: HashMap<ObjectKey, Known>,
    by_service: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    slices: HashMap<ObjectKey, Slice>,
    /// Slices of each Service in which a pod is ready.
    ready: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    own_slices: BTreeMap<ObjectKey, OwnSlice>,
    interceptors: Arc<[Interceptor]>,
    /// The name of the agents' Service.
    agents: Option<String>,
    /// Nodes that have a ready agent, and those that had one until then.
    agent_nodes: BTreeMap<Arc<str>, Option<Instant>>,
    live: HashMap<ObjectKey, ShadowSlice>,
    live_of: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
}

// === impl Demand ===

impl Demand {
    /// Whether interceptors have to be listed because of it, and when that may change by time alone.
    fn needs(self, after: Option<Duration>, now: Instant) -> (bool, Option<Instant>) {
        let Some(after) = after else { return (false, None) };
        let by = |at: Instant| if now >= at { (true, None) } else { (false, Some(at)) };
        match self {
            Self::Unknown(since) => by(since + SILENCE),
            Self::Active => (false, None),
            Self::Quiet(None) => (true, None),
            Self::Quiet(Some(since)) => by(since + after),
        }
    }
}

// === impl Reached ===

impl Reached {
    fn by(&self, address: IpAddr) -> bool {
        if address.is_ipv6() { self.ipv6 } else { self.ipv4 }
    }

    /// A family of its addresses that none of these has.
    fn lacking(&self, interceptors: &[Interceptor]) -> Option<&'static str> {
        let lacks = |ipv6: bool| interceptors.iter().all(|it| it.address.is_ipv6() != ipv6);
        [("IPv4", self.ipv4 && lacks(false)), ("IPv6", self.ipv6 && lacks(true))]
            .into_iter()
            .find_map(|(family, lacks)| lacks.then_some(family))
    }
}

// === impl Shadows ===

impl Shadows {
    /// Ports are given away from `range`.
    pub(crate) fn new(range: RangeInclusive<u16>) -> Self {
        Self {
            ports: Ports::new(range),
            routes: HashMap::new(),
            by_service: BTreeMap::new(),
            slices: HashMap::new(),
            ready: HashMap::new(),
            own_slices: BTreeMap::new(),
            interceptors: Arc::default(),
            agents: None,
            agent_nodes: BTreeMap::new(),
            live: HashMap::new(),
            live_of: HashMap::new(),
        }
    }

    /// The routes that have shadow slices, or shall have.
    pub(crate) fn routes(&self) -> BTreeSet<ObjectKey> {
        self.routes.keys().cloned().collect()
    }

    /// What was told of demand may not be true any more.
    pub(crate) fn forget_demand(&mut self, now: Instant) {
        for known in self.routes.values_mut() {
            known.demand = Demand::Unknown(now);
        }
    }

    /// The status of a route tells this port, or none.
    pub(crate) fn claim(&mut self, key: &ObjectKey, told: Option<(u16, Claim)>) {
        self.ports.claim(key, told);
    }

    /// Begins anew with ports: these the statuses of routes tell, the oldest route's first. Others may have been given away
    /// meanwhile by another operator.
    pub(crate) fn reserve(&mut self, told: Vec<(ObjectKey, Arc<str>, u16)>, now: Instant) {
        self.ports.clear();
        for known in self.routes.values_mut() {
            known.port = None;
        }
        for (key, name, port) in told {
            let Some(known) = self.routes.get_mut(&key) else { continue };
            let named = (known.service.clone(), name);
            let _ = self.ports.of(&named, Some(port), now);
            known.port = Some(named);
        }
    }

    /// How many ports are given away.
    pub(crate) fn ports(&self) -> usize {
        self.ports.len()
    }

    /// The direct routes of a Service.
    pub(crate) fn of_service(&self, service: &ObjectKey) -> Vec<ObjectKey> {
        self.by_service.get(service).into_iter().flatten().cloned().collect()
    }

    /// A route was added or changed.
    pub(crate) fn put_route(&mut self, key: &ObjectKey, route: Option<&Route>, now: Instant) {
        let Some(route) = route.filter(|route| route.data_path == DataPath::Direct) else {
            return self.take_route(key);
        };
        let service = route.target.service.clone();
        let Some(mut known) = self.routes.remove(key) else {
            self.by_service.entry(service.clone()).or_default().insert(key.clone());
            let known = Known { service, port: None, left: None, demand: Demand::Unknown(now), warm_since: None };
            self.routes.insert(key.clone(), known);
            return;
        };
        known.warm_since = None;
        if known.service != service {
            self.leave(key, &known.service);
            self.by_service.entry(service.clone()).or_default().insert(key.clone());
            known.left = known.port.take().and_then(|named| self.ports.number(&named)).or(known.left);
            known.service = service;
            self.free();
        }
        self.routes.insert(key.clone(), known);
    }

    /// A route is gone, or has nothing to do with shadow slices any more.
    pub(crate) fn take_route(&mut self, key: &ObjectKey) {
        if let Some(known) = self.routes.remove(key) {
            self.leave(key, &known.service);
            self.free();
        }
    }

    fn leave(&mut self, key: &ObjectKey, service: &ObjectKey) {
        if let Some(routes) = self.by_service.get_mut(service) {
            routes.remove(key);
            if routes.is_empty() {
                self.by_service.remove(service);
            }
        }
    }

    fn free(&mut self) {
        let used: BTreeSet<_> = self.routes.values().filter_map(|known| known.port.clone()).collect();
        self.ports.keep(|port| used.contains(port));
    }

    /// Demand was told of. The routes that have to be looked at.
    pub(crate) fn put_demand(&mut self, key: &ObjectKey, active: Option<bool>, now: Instant) -> bool {
        let Some(known) = self.routes.get_mut(key) else { return false };
        let before = known.demand;
        known.demand = match (active, before) {
            (Some(true), _) => Demand::Active,
            (Some(false), Demand::Active) => Demand::Quiet(Some(now)),
            (Some(false), Demand::Unknown(_)) => Demand::Quiet(None),
            (Some(false), known) => known,
            (None, Demand::Unknown(since)) => Demand::Unknown(since),
            (None, _) => Demand::Unknown(now),
        };
        known.demand != before
    }

    /// A slice of pods was added or changed. The Services whose routes have to be looked at.
    pub(crate) fn put_slice(&mut self, slice: Slice) -> Vec<ObjectKey> {
        let mut changed = match self.slices.get(&slice.key) {
            Some(old) if *old == slice => return Vec::new(),
            Some(old) if old.service != slice.service => self.take_slice(&slice.key.clone()),
            _ => Vec::new(),
        };
        if self.slices.get(&slice.key).is_some_and(|old| old.nodes != slice.nodes) {
            changed.push(slice.service.clone());
        }
        changed.extend(self.mark(&slice.service, &slice.key, slice.ready));
        self.slices.insert(slice.key.clone(), slice);
        changed
    }

    /// A slice is gone, of pods or of ours.
    pub(crate) fn take_slice(&mut self, key: &ObjectKey) -> Vec<ObjectKey> {
        let Some(old) = self.slices.remove(key) else { return Vec::new() };
        self.mark(&old.service, key, false).into_iter().collect()
    }

    fn mark(&mut self, service: &ObjectKey, slice: &ObjectKey, is_ready: bool) -> Option<ObjectKey> {
        let ready = self.ready.entry(service.clone()).or_default();
        let before = !ready.is_empty();
        if is_ready {
            ready.insert(slice.clone());
        } else {
            ready.remove(slice);
        }
        let after = !ready.is_empty();
        if !after {
            self.ready.remove(service);
            // Also if a pod gets ready within the same batch.
            for key in self.of_service(service) {
                if let Some(known) = self.routes.get_mut(&key) {
                    known.warm_since = None;
                }
            }
        }
        (before != after).then(|| service.clone())
    }

    /// Agents are found by the Service of this name.
    pub(crate) fn set_agents(&mut self, service: Option<String>) {
        self.agents = service;
    }

    /// A slice of interceptors or of agents was added or changed; whether there are others now.
    pub(crate) fn put_own(&mut self, slice: OwnSlice, now: Instant) -> bool {
        self.own_slices.insert(slice.key.clone(), slice);
        self.list(now)
    }

    /// A slice of interceptors or of agents is gone; whether there are others now.
    pub(crate) fn take_own(&mut self, key: &ObjectKey, now: Instant) -> bool {
        self.own_slices.remove(key).is_some() && self.list(now)
    }

    fn list(&mut self, now: Instant) -> bool {
        let (agents, interceptors): (Vec<_>, Vec<_>) =
            self.own_slices.values().partition(|slice| self.agents.as_ref() == Some(&slice.service));
        let by_address: BTreeMap<_, _> =
            interceptors.iter().flat_map(|slice| &slice.interceptors).map(|it| (it.address, it.clone())).collect();
        let mut differs = !self.interceptors.iter().eq(by_address.values());
        let present: BTreeSet<_> = agents.iter().flat_map(|slice| &slice.nodes).cloned().collect();
        if differs {
            self.interceptors = by_address.into_values().collect();
        }
        self.agent_nodes.retain(|_, gone| gone.is_none_or(|at| now < at + AGENT_AWAY));
        for (node, gone) in &mut self.agent_nodes {
            if gone.is_none() && !present.contains(node) {
                *gone = Some(now);
                differs = true;
            }
        }
        for node in present {
            differs |= self.agent_nodes.insert(node, None) != Some(None);
        }
        differs
    }

    /// Nodes with a ready pod of a Service and without a ready agent, and when others may be without theirs for too long.
    fn uncounted(&self, service: &ObjectKey, now: Instant) -> (Vec<Arc<str>>, Option<Instant>) {
        let slices = self.ready.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        let nodes: BTreeSet<_> = slices.flat_map(|slice| &slice.nodes).collect();
        let mut again = None;
        let without = nodes.into_iter().filter(|node| match self.agent_nodes.get(*node) {
            None => true,
            Some(None) => false,
            Some(Some(gone)) if now >= *gone + AGENT_AWAY => true,
            Some(Some(gone)) => {
                again = [again, Some(*gone + AGENT_AWAY)].into_iter().flatten().min();
                false
            }
        });
        (without.cloned().collect(), again)
    }

    /// One of our own slices was added or changed; its route.
    pub(crate) fn put_live(&mut self, slice: ShadowSlice) -> ObjectKey {
        let route = slice.route.0.clone();
        self.take_live(&slice.key);
        self.live_of.entry(route.clone()).or_default().insert(slice.key.clone());
        self.live.insert(slice.key.clone(), slice);
        route
    }

    /// One of them is gone; its route.
    pub(crate) fn take_live(&mut self, key: &ObjectKey) -> Option<ObjectKey> {
        let (route, _) = self.live.remove(key)?.route;
        if let Some(slices) = self.live_of.get_mut(&route) {
            slices.remove(key);
            if slices.is_empty() {
                self.live_of.remove(&route);
            }
        }
        Some(route)
    }

    /// One of ours, if that is what it is.
    pub(crate) fn live(&self, key: &ObjectKey) -> Option<&ShadowSlice> {
        self.live.get(key)
    }

    /// Names of all slices that are known.
    pub(crate) fn slice_keys(&self) -> Vec<ObjectKey> {
        self.slices.keys().chain(self.live.keys()).cloned().collect()
    }

    /// Names of all slices of interceptors and of agents.
    pub(crate) fn own_keys(&self) -> Vec<ObjectKey> {
        self.own_slices.keys().cloned().collect()
    }

    /// What is known of a route, whose `service` is `None` if it or its port does not exist; `after` is the time without demand
    /// after which interceptors are needed, `remembered` the port that its status tells. And when to look again.
    ///
    /// A route that is not direct has no port any more, but perhaps slices.
    pub(crate) fn see(
        &mut self,
        (key, uid): (&ObjectKey, &str),
        service: Option<&Reached>,
        (after, remembered): (Option<Duration>, Option<u16>),
        now: Instant,
    ) -> (Option<Seen>, Option<Instant>) {
        let live: Vec<_> =
            self.live_of.get(key).into_iter().flatten().filter_map(|slice| self.live.get(slice)).collect();
        let live: Vec<_> = live.into_iter().filter(|slice| slice.route.1 == uid).cloned().collect();
        let reached = |it: &Interceptor| service.is_none_or(|service| service.by(it.address));
        let interceptors: Arc<[_]> = self.interceptors.iter().filter(|it| reached(it)).cloned().collect();
        let lacking = service.and_then(|service| service.lacking(&interceptors));
        let (uncounted, alone) = match self.routes.get(key) {
            Some(known) => self.uncounted(&known.service, now),
            None => (Vec::new(), None),
        };
        let Some(known) = self.routes.get_mut(key) else {
            let port = Port::Missing;
            let seen = Seen { port, interceptors, live, ready: false, needed: false, warm: false, uncounted, lacking };
            return (Some(seen).filter(|seen| !seen.live.is_empty()), None);
        };
        let ready = self.ready.contains_key(&known.service);
        let (needed, turns) = known.demand.needs(after, now);
        known.warm_since = if ready && !needed { known.warm_since.or(Some(now)) } else { None };
        let warm_at = known.warm_since.map(|since| since + WARM);
        let warm = warm_at.is_some_and(|at| now >= at);
        known.left = known.left.filter(|left| remembered == Some(*left));
        let remembered = remembered.filter(|_| known.left.is_none());
        let before = known.port.take();
        let has_addresses = service.filter(|service| service.ipv4 || service.ipv6);
        known.port = has_addresses.map(|service| (known.service.clone(), Arc::clone(&service.port)));
        let moved = before.is_some() && before != known.port;
        let (port, listens) = match (service.is_some(), known.port.clone()) {
            (false, _) => (Port::Missing, None),
            (true, None) => (Port::Headless, None),
            (true, Some(named)) => match self.ports.of(&named, remembered, now) {
                Err(Refused::Full) => (Port::Full, Some(now + AGAIN)),
                Err(Refused::Limit) => (Port::Limit, Some(now + AGAIN)),
                Ok(Given { port: number, since }) => {
                    // What a status told before this operator began, interceptors know.
                    let at = since + LISTENING;
                    let listening = remembered == Some(number) && now >= at;
                    (Port::Open { number, name: named.1, listening }, (!listening).then_some(at.max(now)))
                }
            },
        };
        if moved {
            self.free();
        }
        let later = |at: Option<Instant>| at.filter(|at| *at > now);
        let again = [turns, later(warm_at), later(listens), alone].into_iter().flatten().min();
        (Some(Seen { port, interceptors, live, ready, needed, warm, uncounted, lacking }), again)
    }
}

#[cfg(test)]
mod tests;
