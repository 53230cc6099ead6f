//! One worker: what its requests share among themselves, and nothing with other workers but one immutable snapshot,
//! the counters' shards and the process's limits.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::Entry},
    fmt,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use interceptor_core::{
    Route, RouteEntry, RouteId, UpstreamId,
    index::Snapshot,
    inflight::{HeldGuard, Share},
    route::{Backend, Headers, PortRef, Timeouts},
    upstream::Resolution,
};
use opentelemetry_sdk::trace::SdkTracer;
use runtime::{
    drain::{self, Phase},
    snapshot::{Cached, Reader, Subscription},
};
use smallvec::SmallVec;
use tokio::{sync::Notify, time::Instant};

mod entrance;
mod hosts;
mod received;

use self::hosts::Hosts;
pub(crate) use self::received::{Manner, Received};
use crate::{
    coldstart::ColdStarts,
    config::ProxyConfig,
    encryption::Upstreams,
    metrics::{Metrics, Outcome, RouteMetrics, Spread},
    probe,
    proxy::{Balancer, Clients, Gates, ProxyError},
    server::connection::{self, Connection},
};

/// How long connections that are cut may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often slow heads and idle upstream connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// What all workers share; written on the cold path alone.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: ProxyConfig,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) cold_starts: ColdStarts,
    pub(crate) probing: probe::Handle,
    pub(crate) held: AtomicUsize,
    pub(crate) gates: Arc<Gates>,
    pub(crate) clients: Clients,
    pub(crate) tls: Upstreams,
    /// Makes spans, if any are wanted.
    pub(crate) tracer: Option<SdkTracer>,
}

/// A place in the hold queue; given up when dropped.
#[must_use]
pub(crate) struct HoldPlace {
    shared: Arc<Shared>,
    _held: HeldGuard<Rc<LocalRoute>>,
}

/// A route as one worker knows it. What each request needs comes first, so that it lies together: with thousands of
/// routes it is in no cache.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct LocalRoute {
    share: Share,
    /// Some of its requests may be answered here.
    pub(crate) has_answers: bool,
    pub(crate) has_fallback: bool,
    pub(crate) has_session: bool,
    has_timeouts: bool,
    target: RefCell<Option<Target>>,
    series: RefCell<SmallVec<[(Outcome, Spread); 1]>>,
    pub(crate) entry: Arc<RouteEntry>,
    pub(crate) metrics: Arc<RouteMetrics>,
}

/// A route's target as of one snapshot.
#[derive(Debug)]
struct Target {
    generation: u64,
    /// Its Service or port is known to be missing, so that waiting can't help.
    is_missing: bool,
    /// Its endpoints, for requests that were received in clear and encrypted, and for bytes.
    balancers: [Option<Rc<Balancer>>; Received::COUNT],
}

/// One worker.
pub(crate) struct Worker {
    pub(crate) id: usize,
    pub(crate) shared: Arc<Shared>,
    reader: Reader,
    snapshot: RefCell<Cached>,
    /// The snapshot that `hosts` and the routes' targets are of, and how many there were before.
    seen: RefCell<Arc<Snapshot>>,
    generation: Cell<u64>,
    hosts: Hosts,
    /// `None` once the worker has ended all that the process's end waits for.
    drain: RefCell<Option<drain::Watch>>,
    routes: RefCell<HashMap<RouteId, Rc<LocalRoute>, RandomState>>,
    /// Apart from each other by how connections are made.
    balancers: RefCell<HashMap<(UpstreamId, Manner), Rc<Balancer>, RandomState>>,
    connections: RefCell<HashMap<u64, Rc<Connection>, RandomState>>,
    next_connection: Cell<u64>,
    room: Notify,
    seed: u64,
}

/// A client connection's entry with its worker; removed when dropped.
pub(crate) struct Registered {
    worker: Rc<Worker>,
    id: u64,
}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(
        config: ProxyConfig,
        tls: Upstreams,
        metrics: Arc<Metrics>,
        probing: probe::Handle,
        tracer: Option<SdkTracer>,
    ) -> Self {
        Self {
            config,
            metrics,
            cold_starts: ColdStarts::default(),
            probing,
            held: AtomicUsize::new(0),
            gates: Arc::default(),
            clients: Clients::default(),
            tls,
            tracer,
        }
    }

    /// A place for one more held request of `route`, if the limits allow. The route's own is for those that wait for a pod
    /// to get ready or to have room, and not for those that only wait for a connection.
    pub(crate) fn hold_place(
        self: &Arc<Self>,
        route: &Rc<LocalRoute>,
        connects: bool,
    ) -> Result<HoldPlace, ProxyError> {
        let most = route.entry.route.holding.most.or(self.config.max_held_per_route).filter(|_| !connects);
        let held = HeldGuard::enter(Rc::clone(route), most).ok_or(ProxyError::HoldFull)?;
        let more = |held: usize| (held < self.config.max_held).then_some(held + 1);
        self.held.fetch_update(Relaxed, Relaxed, more).map_err(|_full: usize| ProxyError::HoldFull)?;
        Ok(HoldPlace { shared: Arc::clone(self), _held: held })
    }
}

impl Drop for HoldPlace {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(1, Relaxed);
    }
}

// === impl LocalRoute ===

impl LocalRoute {
    fn new(entry: &Arc<RouteEntry>, worker: usize, metrics: Arc<RouteMetrics>, sessions: bool) -> Self {
        let Route { placeholder, static_routes, timeouts, .. } = &entry.route;
        Self {
            share: entry.counters.share(worker),
            has_answers: placeholder.is_some() || !static_routes.is_empty(),
            has_fallback: entry.fallback.is_some(),
            has_session: sessions && entry.route.session.is_some(),
            has_timeouts: *timeouts != Timeouts::default(),
            target: RefCell::default(),
            metrics,
            series: RefCell::default(),
            entry: Arc::clone(entry),
        }
    }

    /// Its own, where it has any.
    pub(crate) fn timeouts(&self) -> Timeouts {
        if self.has_timeouts { self.entry.route.timeouts } else { Timeouts::default() }
    }

    /// Notes a request that has ended.
    pub(crate) fn record(&self, outcome: Outcome, elapsed: Duration) {
        let mut all = self.series.borrow_mut();
        let known = all.iter().position(|(known, _)| *known == outcome);
        let index = known.unwrap_or_else(|| {
            all.push((outcome, self.metrics.series(outcome)));
            all.len() - 1
        });
        all[index].1.observe(elapsed);
    }
}

impl AsRef<Share> for LocalRoute {
    fn as_ref(&self) -> &Share {
        &self.share
    }
}

// === impl Worker ===

impl Worker {
    pub(crate) fn new(id: usize, shared: Arc<Shared>, reader: Reader, drain: drain::Watch) -> Rc<Self> {
        let seed = std::hash::BuildHasher::hash_one(&RandomState::default(), id);
        Rc::new(Self {
            id,
            shared,
            snapshot: RefCell::new(reader.cached()),
            seen: RefCell::new(reader.load()),
            generation: Cell::new(0),
            hosts: Hosts::default(),
            reader,
            drain: RefCell::new(Some(drain)),
            routes: RefCell::default(),
            balancers: RefCell::default(),
            connections: RefCell::default(),
            next_connection: Cell::new(0),
            room: Notify::new(),
            seed,
        })
    }

    /// Follows the latest snapshot; returns its number.
    fn generation(&self) -> u64 {
        let mut snapshot = self.snapshot.borrow_mut();
        let current = snapshot.load();
        if !Arc::ptr_eq(current, &self.seen.borrow()) {
            self.seen.replace(Arc::clone(current));
            self.generation.set(self.generation.get() + 1);
            self.hosts.forget();
        }
        self.generation.get()
    }

    /// The route of a request.
    pub(crate) fn route(&self, host: &[u8], path: &[u8], headers: &impl Headers) -> Option<Rc<LocalRoute>> {
        self.generation();
        if let Some(route) = self.hosts.find(host) {
            return Some(route);
        }
        let table = &self.seen.borrow().table;
        let name = std::str::from_utf8(host).ok()?;
        let local = self.local(table.lookup(name, path, headers)?);
        if table.takes_all(name, &local.entry) && self.hosts.keep(host, &local) {
            self.shared.metrics.hosts_forgotten.inc();
        }
        Some(local)
    }

    fn local(&self, entry: &Arc<RouteEntry>) -> Rc<LocalRoute> {
        if let Some(local) = self.routes.borrow().get(&entry.id)
            && Arc::ptr_eq(&local.entry, entry)
        {
            return Rc::clone(local);
        }
        let local = Rc::new(LocalRoute::new(
            entry,
            self.id,
            self.shared.metrics.route(&entry.route.key),
            self.shared.config.direct_pods,
        ));
        self.routes.borrow_mut().insert(entry.id, Rc::clone(&local));
        local
    }

    /// Whether the Service or the port of the route's target is known to be missing, so that waiting can't help.
    pub(crate) fn lacks_target(&self, route: &LocalRoute) -> bool {
        self.known(route, |target| target.is_missing)
    }

    /// The endpoints of the route's target as of the latest snapshot.
    pub(crate) fn target(&self, route: &LocalRoute, received: Received) -> Result<Rc<Balancer>, ProxyError> {
        self.known(route, |target| {
            let known = &mut target.balancers[received.index()];
            if let Some(balancer) = known {
                return Ok(Rc::clone(balancer));
            }
            Ok(Rc::clone(known.insert(self.balancer(&route.entry, Backend::Target, received)?)))
        })
    }

    fn known<T>(&self, route: &LocalRoute, look: impl FnOnce(&mut Target) -> T) -> T {
        let generation = self.generation();
        let mut target = route.target.borrow_mut();
        look(match &mut *target {
            Some(target) if target.generation == generation => target,
            target => target.insert(Target {
                generation,
                is_missing: self.is_unresolved(&route.entry, Backend::Target),
                balancers: [const { None }; Received::COUNT],
            }),
        })
    }

    /// What is known now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.snapshot.borrow_mut().load())
    }

    /// Whether the Service or its port is known to be missing, so that waiting can't help.
    pub(crate) fn is_unresolved(&self, entry: &RouteEntry, backend: Backend) -> bool {
        let mut snapshot = self.snapshot.borrow_mut();
        snapshot.load().backend_of(entry, backend).is_none_or(|upstream| match upstream.resolution {
            Resolution::Found => false,
            // A number may be right although the Service is not there yet or does not list it; a name must be listed.
            Resolution::NoService | Resolution::NoPort => matches!(upstream.target.port, PortRef::Name(_)),
        })
    }

    /// The route as it is now, for a request that has waited meanwhile; `None` when it has been deleted.
    pub(crate) fn current(&self, id: RouteId) -> Option<Arc<RouteEntry>> {
        self.snapshot.borrow_mut().load().route(id).cloned()
    }

    /// The endpoints of one of the route's Services as of the latest snapshot. The upstream's id alone would not do: it
    /// may have been given to another target since the route was looked up.
    pub(crate) fn balancer(
        &self,
        entry: &RouteEntry,
        backend: Backend,
        received: Received,
    ) -> Result<Rc<Balancer>, ProxyError> {
        let Shared { config, tls, .. } = &*self.shared;
        let new = |manner, client, id: u32| {
            Rc::new(Balancer::new(config.max_idle_per_endpoint, (manner, client), self.seed ^ u64::from(id)))
        };
        let mut snapshot = self.snapshot.borrow_mut();
        let Some(upstream) = snapshot.load().backend_of(entry, backend) else {
            return Ok(new(Manner::Clear, None, entry.upstream.0));
        };
        let own = entry.route.identity.as_ref().filter(|_| backend == Backend::Target && received != Received::Raw);
        let (manner, identity) = match own {
            Some(secret) => tls.identity(secret).map(|(id, identity)| (Manner::EncryptedAs(id), Some(identity)))?,
            None => (received.goes_on(upstream.encryption), None),
        };
        let mut balancers = self.balancers.borrow_mut();
        let balancer = match balancers.entry((upstream.id, manner)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let client = manner.is_encrypted().then(|| tls.client()).transpose()?;
                let client = client.map(|client| identity.map_or(client.clone(), |identity| client.shown_as(identity)));
                vacant.insert(new(manner, client, upstream.id.0))
            }
        };
        balancer.update(upstream);
        Ok(Rc::clone(balancer))
    }

    /// Told when the upstream's endpoints change.
    pub(crate) fn subscribe(&self, id: UpstreamId) -> Subscription {
        self.reader.subscribe(id)
    }

    /// Whether clients are to be told to go.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain.borrow().as_ref().is_none_or(|watch| watch.phase() >= Phase::Draining)
    }

    /// A watch for a tunnel, which the end does not wait for.
    pub(crate) fn tunnel_watch(&self) -> drain::TunnelWatch {
        self.watch().into_tunnel()
    }

    /// Resolves when no more connections are to be accepted.
    pub(crate) async fn closing(&self) {
        self.watch().reached(Phase::Closing).await;
    }

    fn watch(&self) -> drain::Watch {
        self.drain.borrow().clone().expect("the watch is kept until the last connection has ended")
    }

    /// Resolves when one more client may connect.
    pub(crate) async fn room_for_connection(&self) {
        while self.connections.borrow().len() >= self.shared.config.max_connections_per_worker {
            self.shared.metrics.connection_limit_reached();
            self.room.notified().await;
        }
    }

    /// Enters a client connection.
    pub(crate) fn register(self: &Rc<Self>, connection: &Rc<Connection>) -> Registered {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        self.connections.borrow_mut().insert(id, Rc::clone(connection));
        self.shared.metrics.connections.inc();
        Registered { worker: Rc::clone(self), id }
    }

    /// Looks after connections and caches every second, until the worker is cut.
    pub(crate) async fn sweep_loop(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP);
        loop {
            ticks.tick().await;
            self.sweep(Instant::now());
        }
    }

    fn sweep(&self, now: Instant) {
        for connection in self.connections.borrow().values() {
            if connection.check_head(now) {
                self.shared.metrics.slow_head();
            }
        }
        // Also without requests: what was found for a host must not keep a route that has gone.
        self.generation();
        let snapshot = Arc::clone(self.snapshot.borrow_mut().load());
        self.routes
            .borrow_mut()
            .retain(|id, local| snapshot.routes.get(&local.entry.route.key).is_some_and(|current| current.id == *id));
        let mut left = self.shared.config.max_idle_per_worker;
        self.balancers.borrow_mut().retain(|(id, encrypted), balancer| {
            let is_outdated = match encrypted {
                Manner::Clear | Manner::Encrypted | Manner::Raw => false,
                Manner::EncryptedAs(identity) => !self.shared.tls.identities().is_current(*identity),
            };
            if is_outdated || snapshot.upstream(*id).is_none() {
                balancer.retire();
                return false;
            }
            left = balancer.sweep(now, left);
            true
        });
    }

    /// Follows the process's end: lets connections finish, then cuts them.
    pub(crate) async fn end(self: Rc<Self>) {
        let mut phase = self.watch();
        phase.reached(Phase::Closing).await;
        self.advance_all(connection::Phase::Closing);
        let done = async || {
            while !self.connections.borrow().is_empty() {
                self.room.notified().await;
            }
        };
        tokio::select! {
            () = done() => {}
            () = phase.reached(Phase::Cut) => {
                self.advance_all(connection::Phase::Cut);
                // Each ends as soon as it has its turn, in which it can still answer.
                let _ = tokio::time::timeout(LAST_WORDS, done()).await;
            }
        }
        self.drain.borrow_mut().take();
    }

    fn advance_all(&self, phase: connection::Phase) {
        for connection in self.connections.borrow().values() {
            connection.advance(phase);
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("id", &self.id).finish_non_exhaustive()
    }
}

// === impl Registered ===

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().remove(&self.id);
        self.worker.shared.metrics.connections.dec();
        self.worker.room.notify_waiters();
        self.worker.room.notify_one();
    }
}

#[cfg(test)]
mod tests;
