//! Watch events in, snapshots out. Owned by the one task that watches; its snapshots are what requests read.
//!
//! Every event costs what it touches: one route's change rewrites that route's places in the table, one slice's change
//! the upstreams of its Service. The result does not depend on the order in which objects arrive.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
};

use crate::{
    ObjectKey, Route, RouteEntry, RouteId, Upstream, UpstreamId,
    inflight::{EdgeSink, RouteCounters},
    route::{Backend, RouteKind, RouteTable, Target},
    service::{Service, ServicePort, Slice},
};

mod bodies;
mod claims;
mod entrances;
mod guard;
mod join;
mod problem;
mod upstreams;
mod way;

use self::{
    bodies::Bodies,
    claims::Claims,
    entrances::Entrances,
    guard::{Barred, Guard, Why},
    upstreams::{Upstreams, Wish},
};
pub use self::{
    bodies::{MAX_BODIES, ResponseBodies},
    entrances::Entrance,
    guard::{ALLOWED_HOSTS_ANNOTATION, AllowedHosts, HostGuard},
    problem::{MAX_PROBLEMS, Problem, ProblemKind},
};

/// A change of one object.
#[expect(
    clippy::large_enum_variant,
    reason = "an event is moved a few times, and a box would be one more place to look at"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A route was added or changed.
    Route(Route),
    /// A route is gone.
    RouteGone(RouteKind, ObjectKey),
    /// A Service was added or changed.
    Service(Service),
    /// A Service is gone.
    ServiceGone(ObjectKey),
    /// An EndpointSlice was added or changed.
    Slice(Slice),
    /// An EndpointSlice is gone.
    SliceGone(ObjectKey),
    /// A ConfigMap with response bodies was added or changed.
    Bodies(ResponseBodies),
    /// A ConfigMap is gone, or is not to be served any more.
    BodiesGone(ObjectKey),
    /// A namespace was added or changed: the hosts that it lists, if it lists any.
    Namespace(Arc<str>, Option<AllowedHosts>),
    /// A namespace is gone.
    NamespaceGone(Arc<str>),
}

/// All objects of one kind, as a list returned them: what is not in it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relist {
    /// All routes of a kind.
    Routes(RouteKind, Vec<Route>),
    /// All Services.
    Services(Vec<Service>),
    /// All EndpointSlices.
    Slices(Vec<Slice>),
    /// All ConfigMaps with response bodies.
    Bodies(Vec<ResponseBodies>),
    /// All namespaces.
    Namespaces(Vec<(Arc<str>, Option<AllowedHosts>)>),
}

/// What is known now; never changes, and is cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// From requests to routes.
    pub table: RouteTable,
    /// Every route by name, those without rules too.
    pub routes: imbl::OrdMap<ObjectKey, Arc<RouteEntry>>,
    /// Response bodies by ConfigMap.
    pub bodies: imbl::HashMap<ObjectKey, Arc<ResponseBodies>>,
    /// Names to be looked up, by the Service whose endpoints are reached by one.
    pub names: imbl::OrdMap<ObjectKey, Arc<str>>,
    /// Ports at which interceptors stand in for Services.
    pub entrances: imbl::OrdMap<NonZeroU16, Arc<Entrance>>,
    ids: imbl::HashMap<RouteId, Arc<RouteEntry>>,
    upstreams: imbl::Vector<Option<Arc<Upstream>>>,
}

/// The state behind the snapshots.
#[derive(Debug)]
pub struct Index {
    shards: usize,
    sink: Arc<dyn EdgeSink>,
    next_route: u64,
    table: RouteTable,
    routes: imbl::OrdMap<ObjectKey, Arc<RouteEntry>>,
    ids: imbl::HashMap<RouteId, Arc<RouteEntry>>,
    /// Each `HTTPScaledObject` that stands behind an `InterceptorRoute` of its name.
    shadowed: BTreeMap<ObjectKey, Route>,
    /// Routes whose rules were dropped, and why.
    refused: BTreeMap<ObjectKey, String>,
    claims: Claims,
    guard: Option<Guard>,
    /// What routes do not get because of the guard.
    barred: BTreeMap<ObjectKey, Vec<Barred>>,
    upstreams: Upstreams,
    bodies: Bodies,
    entrances: Entrances,
}

// === impl Snapshot ===

impl Snapshot {
    /// The route of this id, while it exists.
    pub fn route(&self, id: RouteId) -> Option<&Arc<RouteEntry>> {
        self.ids.get(&id)
    }

    /// The upstream of this id. An id outlives its upstream: who kept a [`RouteEntry`] from an older snapshot asks
    /// [`upstream_of`](Self::upstream_of).
    pub fn upstream(&self, id: UpstreamId) -> Option<&Arc<Upstream>> {
        self.upstreams.get(usize::try_from(id.0).ok()?)?.as_ref()
    }

    /// Where `entry`'s requests go, also when `entry` is from another snapshot than this: `None` once nothing refers to its
    /// target any more, never another route's target.
    pub fn upstream_of(&self, entry: &RouteEntry) -> Option<&Arc<Upstream>> {
        self.backend_of(entry, Backend::Target)
    }

    /// The same for either of the route's Services.
    pub fn backend_of(&self, entry: &RouteEntry, backend: Backend) -> Option<&Arc<Upstream>> {
        let (id, target) = entry.backend(backend)?;
        self.upstream(id).filter(|upstream| upstream.target == *target)
    }

    /// All upstreams, in order of their ids.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.iter().flatten()
    }
}

// === impl Index ===

impl Index {
    /// An empty index, whose routes count with `shards` shards and tell `sink` of edges.
    pub fn new(shards: usize, sink: Arc<dyn EdgeSink>) -> Self {
        Self {
            shards,
            sink,
            next_route: 0,
            table: RouteTable::default(),
            routes: imbl::OrdMap::new(),
            ids: imbl::HashMap::new(),
            shadowed: BTreeMap::new(),
            refused: BTreeMap::new(),
            claims: Claims::default(),
            guard: None,
            barred: BTreeMap::new(),
            upstreams: Upstreams::default(),
            bodies: Bodies::default(),
            entrances: Entrances::default(),
        }
    }

    /// The same for requests that go to Services by their names, and not to pods.
    #[must_use]
    pub fn through_services(mut self, through_services: bool) -> Self {
        self.upstreams.go_through_services(through_services);
        self
    }

    /// The same with a guard over hosts. Before anything else.
    #[must_use]
    pub fn guarded(mut self, guard: HostGuard) -> Self {
        self.guard = Guard::new(guard);
        self
    }

    /// Takes one change in.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Route(route) => self.put(route),
            Event::RouteGone(kind, key) => self.take(kind, &key),
            Event::Service(service) => self.upstreams.put_service(service),
            Event::ServiceGone(key) => self.upstreams.take_service(&key),
            Event::Slice(slice) => self.upstreams.put_slice(slice),
            Event::SliceGone(key) => self.upstreams.take_slice(&key),
            Event::Bodies(bodies) => self.bodies.put(bodies),
            Event::BodiesGone(key) => self.bodies.take(&key),
            Event::Namespace(name, hosts) => self.put_namespace(&name, hosts),
            Event::NamespaceGone(name) => self.take_namespace(&name),
        }
    }

    /// A pod of a Service answered its readiness probe: where routes allow it, it counts as ready until a slice says so, or
    /// it goes. One that no slice lists as not ready is not taken in.
    pub fn answered(&mut self, service: &ObjectKey, pod: IpAddr) {
        self.upstreams.put_answer(service, pod);
    }

    /// The answer counts no longer.
    pub fn answer_gone(&mut self, service: &ObjectKey, pod: IpAddr) {
        self.upstreams.take_answer(service, pod);
    }

    /// What one of [`Snapshot::names`] was found to be.
    pub fn found(&mut self, service: &ObjectKey, addresses: &[IpAddr]) {
        self.upstreams.put_found(service, addresses);
    }

    /// Replaces all objects of one kind; those that are the same stay untouched.
    pub fn reset(&mut self, relist: Relist) {
        match relist {
            Relist::Routes(kind, routes) => {
                let listed: HashSet<ObjectKey> = routes.iter().map(|route| route.key.clone()).collect();
                let known = self.routes.values().filter(|entry| entry.route.kind == kind).map(|entry| &entry.route.key);
                let behind = self.shadowed.keys().filter(|_| kind == RouteKind::HttpScaledObject);
                let gone: Vec<_> = known.chain(behind).filter(|key| !listed.contains(*key)).cloned().collect();
                for key in &gone {
                    self.take(kind, key);
                }
                for route in routes {
                    self.put(route);
                }
            }
            Relist::Services(services) => self.upstreams.reset_services(services),
            Relist::Slices(slices) => self.upstreams.reset_slices(slices),
            Relist::Bodies(bodies) => self.bodies.reset(bodies),
            Relist::Namespaces(all) => {
                let listed: HashSet<_> = all.iter().map(|(name, _)| Arc::clone(name)).collect();
                let known = self.guard.as_ref().map(Guard::namespaces).unwrap_or_default();
                for gone in known.iter().filter(|name| !listed.contains(*name)) {
                    self.take_namespace(gone);
                }
                for (name, hosts) in all {
                    self.put_namespace(&name, hosts);
                }
            }
        }
    }

    /// What is known now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            table: self.table.clone(),
            routes: self.routes.clone(),
            bodies: self.bodies.all().clone(),
            names: self.upstreams.names().clone(),
            entrances: self.entrances.all().clone(),
            ids: self.ids.clone(),
            upstreams: self.upstreams.all().clone(),
        }
    }

    /// The slices of a namespace, those of Services that no route leads to included.
    pub fn slices_in(&self, namespace: Arc<str>) -> impl Iterator<Item = &Slice> {
        self.upstreams.slices().filter(move |slice| slice.key.namespace() == &*namespace)
    }

    /// The Service of a target and the port of it that is meant, if both exist.
    pub fn service_port(&self, target: &Target) -> Option<(&Service, &ServicePort)> {
        self.upstreams.service_port(target)
    }

    /// The upstreams that changed since the last call: whose waiters have to look again.
    pub fn take_changed(&mut self) -> Vec<UpstreamId> {
        self.upstreams.take_changed()
    }

    /// What is wrong with which object, at most [`MAX_PROBLEMS`]. None of it stops another object.
    pub fn problems(&self) -> Vec<Problem> {
        self.every_problem().take(MAX_PROBLEMS).collect()
    }

    /// All that is wrong with which object: as many as there are routes, or more.
    pub fn every_problem(&self) -> impl Iterator<Item = Problem> {
        let refused = self.refused.iter().filter_map(|(key, why)| Some(Problem::refused(self.routes.get(key)?, why)));
        let shadowed = self.shadowed.keys().map(Problem::shadowed);
        let barred = self.barred.iter().flat_map(move |(key, barred)| {
            let entry = self.routes.get(key);
            barred.iter().filter_map(move |barred| match &barred.why {
                Why::Owner(owner) => Some(Problem::barred(entry?, barred, &self.routes.get(owner)?.route)),
                Why::NotAllowed(why) => Some(Problem::not_allowed(entry?, barred, why)),
            })
        });
        let contested = self.claims.contests().map(|contest| Problem::conflict(&contest));
        let unresolved = self.upstreams.unresolved().flat_map(|(upstream, service, users)| {
            let users = users.keys().filter_map(|(key, backend)| Some((self.routes.get(key)?, *backend)));
            users.map(move |(entry, backend)| Problem::unresolved(entry, backend, upstream, service))
        });
        let left_out = self.bodies.left_out().map(Problem::left_out);
        refused.chain(shadowed).chain(barred).chain(contested).chain(unresolved).chain(left_out)
    }

    fn put(&mut self, route: Route) {
        let live = self.routes.get(&route.key);
        match (live.map(|entry| entry.route.kind), route.kind) {
            (Some(RouteKind::InterceptorRoute), RouteKind::HttpScaledObject) => {
                self.shadowed.insert(route.key.clone(), route);
            }
            (Some(RouteKind::HttpScaledObject), RouteKind::InterceptorRoute) => {
                let written = self.guard.as_ref().and_then(|guard| guard.written(&route.key));
                let behind = written.unwrap_or(&live.expect("its kind was read").route).clone();
                self.shadowed.insert(behind.key.clone(), behind);
                self.install(route);
            }
            _ => self.install(route),
        }
    }

    fn take(&mut self, kind: RouteKind, key: &ObjectKey) {
        if self.routes.get(key).is_some_and(|entry| entry.route.kind == kind) {
            match self.shadowed.remove(key) {
                Some(behind) => self.install(behind),
                None => self.uninstall(key),
            }
        } else if kind == RouteKind::HttpScaledObject {
            self.shadowed.remove(key);
        }
    }

    fn install(&mut self, route: Route) {
        let Some(guard) = &mut self.guard else { return self.install_as_it_is(route) };
        let key = route.key.clone();
        let touched = guard.put(route);
        self.admit(&key);
        for other in &touched {
            self.admit(other);
        }
    }

    /// Takes in which hosts a namespace lists, if it lists any.
    fn put_namespace(&mut self, name: &Arc<str>, hosts: Option<AllowedHosts>) {
        let touched = self.guard.as_mut().map(|guard| guard.put_namespace(name, hosts)).unwrap_or_default();
        for key in &touched {
            self.admit(key);
        }
    }

    fn take_namespace(&mut self, name: &str) {
        let touched = self.guard.as_mut().map(|guard| guard.take_namespace(name)).unwrap_or_default();
        for key in &touched {
            self.admit(key);
        }
    }

    /// Installs what the guard leaves of a route.
    fn admit(&mut self, key: &ObjectKey) {
        let Some((route, barred)) = self.guard.as_ref().and_then(|guard| guard.admitted(key)) else { return };
        if barred.is_empty() {
            self.barred.remove(key);
        } else {
            self.barred.insert(key.clone(), barred);
        }
        self.install_as_it_is(route);
    }

    fn install_as_it_is(&mut self, mut route: Route) {
        let refused = route.check().err().map(|error| error.to_string());
        if refused.is_some() {
            route.rules.clear();
        }
        match refused {
            Some(why) => self.refused.insert(route.key.clone(), why),
            None => self.refused.remove(&route.key),
        };
        let old = self.routes.get(&route.key).cloned();
        if old.as_ref().is_some_and(|old| old.route == route) {
            return;
        }
        // The new targets before the old ones go: an upstream that stays keeps its id.
        let wish = Wish { probing: route.probing.clone(), data_path: route.data_path };
        let upstream = self.upstreams.acquire(&route.target, (&route.key, Backend::Target), &wish);
        let fallback = route.fallback.as_ref();
        let none = &Wish::default();
        let fallback = fallback.map(|target| self.upstreams.acquire(target, (&route.key, Backend::Fallback), none));
        let (id, counters) = match &old {
            Some(old) => (old.id, old.counters.clone()),
            None => self.next_counters(),
        };
        let entry = Arc::new(RouteEntry { id, route, upstream, fallback, counters });
        if let Some(old) = &old {
            self.table.remove(old);
            self.claims.remove(old);
            self.entrances.remove(old);
            self.release(old, Some(&entry));
        }
        self.table.insert(&entry);
        self.claims.insert(&entry);
        self.entrances.insert(&entry);
        self.ids.insert(entry.id, Arc::clone(&entry));
        self.routes.insert(entry.route.key.clone(), entry);
    }

    fn uninstall(&mut self, key: &ObjectKey) {
        let Some(old) = self.routes.remove(key) else { return };
        self.refused.remove(key);
        self.ids.remove(&old.id);
        self.table.remove(&old);
        self.claims.remove(&old);
        self.entrances.remove(&old);
        self.release(&old, None);
        self.barred.remove(key);
        let touched = self.guard.as_mut().map(|guard| guard.take(key)).unwrap_or_default();
        for other in &touched {
            self.admit(other);
        }
    }

    /// Gives up the upstreams of `old` that `new` does not use.
    fn release(&mut self, old: &RouteEntry, new: Option<&RouteEntry>) {
        for backend in [Backend::Target, Backend::Fallback] {
            let used = |entry: &RouteEntry| entry.backend(backend).map(|(id, _)| id);
            if let Some(id) = used(old).filter(|id| new.and_then(used) != Some(*id)) {
                self.upstreams.release(id, (&old.route.key, backend));
            }
        }
    }

    fn next_counters(&mut self) -> (RouteId, RouteCounters) {
        let id = RouteId(self.next_route);
        self.next_route += 1;
        (id, RouteCounters::new(id, self.shards, &self.sink))
    }
}

#[cfg(test)]
mod tests;
