//! From a route to an open connection: waits for a ready endpoint while the workload wakes, and for one that accepts.
//!
//! All waiting is bounded: by the route's readiness deadline while there is no endpoint, by [`DIAL_LIMIT`] while there
//! are endpoints that do not accept, by the request's deadline in either case, and by the queue's limits in number.
//! When the readiness deadline passes, a route with a fallback goes there, where it may wait for [`DIAL_LIMIT`] again.
//! Requests of a route with a limit per pod stand at a [`gate`](super::gate) while they are held, for at most
//! [`HELD_BACK`] after there was an endpoint.
//!
//! No wake is lost: a waiter subscribes to its upstream first, then looks at the snapshot, then waits.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use interceptor_core::{RouteEntry, route::Backend};
use runtime::snapshot::Subscription;
use tokio::{net::TcpStream, time::Instant};

use super::{
    balance::{Balancer, Choice},
    body::RequestBody,
    error::ProxyError,
    gate::Place,
    inflight::InFlight,
    pool::{Lease, Offer, Permit},
    session::Wish,
};
use crate::{
    metrics::ColdEnd,
    worker::{HoldPlace, LocalRoute, Received, Worker},
};

/// How long endpoints that do not accept are tried when the request has no deadline; the add-on's value.
const DIAL_LIMIT: Duration = Duration::from_mins(1);

/// How long a request is held back for want of a pod with room. Then it goes beyond the limit: requests that never end, as
/// tunnels do, must not keep others out for ever.
const HELD_BACK: Duration = Duration::from_mins(1);

/// How a request came to its connection.
#[derive(Debug)]
pub(crate) struct Acquired {
    pub(crate) lease: Lease,
    /// Since when it has it.
    pub(crate) at: Instant,
    /// Whose connection it is.
    pub(crate) backend: Backend,
    /// The workload had no ready endpoint when the request came.
    pub(crate) cold: Option<ColdWait>,
}

/// The times of a cold request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColdWait {
    /// When the first ready endpoint was seen.
    pub(crate) endpoint_seen: Instant,
    /// When a connection to it was open.
    pub(crate) connected: Instant,
    /// How many requests of the route were held just before this one was released.
    pub(crate) held: u64,
}

/// Where in the stages a request failed: errors of the hold stage carry no cold-start header.
#[derive(Debug)]
pub(crate) struct AcquireError {
    pub(crate) error: ProxyError,
    /// There was an endpoint of the target, so the request had passed the hold.
    pub(crate) past_hold: bool,
    pub(crate) cold: bool,
}

/// What bounds a request's waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// While there is no ready endpoint.
    pub(crate) readiness: Option<Instant>,
    /// The whole request.
    pub(crate) request: Option<Instant>,
}

/// What kind of connection a request needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// How it was received.
    pub(crate) received: Received,
    /// It asks for another protocol.
    pub(crate) upgraded: bool,
    /// Which pod it is to go to, if it can.
    pub(crate) wish: Wish,
}

/// Gets an open connection for a request of `route`; it is `now`, or was just before.
///
/// Cancel safe: dropping the future gives up the place in the queue and any connection attempt.
pub(crate) async fn acquire(
    worker: &Rc<Worker>,
    route: &Rc<LocalRoute>,
    (limits, need): (Limits, Need),
    (body, in_flight): (&RequestBody, &InFlight),
    now: Instant,
) -> Result<Acquired, AcquireError> {
    let failed = |error| AcquireError { error, past_hold: false, cold: false };
    let balancer = worker.target(route, need.received).map_err(failed)?;
    // The warm path: no subscription, no place, no timer. Where others are held back, it is theirs first.
    if (worker.shared.gates.are_idle() || !stands_behind(worker, route))
        && let Choice::Offer(Offer::Lease(lease)) = choose(worker, &balancer, need, now)
    {
        remember(worker, &balancer, need, (lease.addr(), now));
        return Ok(Acquired { lease, at: now, backend: Backend::Target, cold: None });
    }
    // Few requests wait, and the future of one that does is large.
    Box::pin(wait(worker, route, balancer, (limits, need), (body, in_flight))).await
}

/// Waits for an open connection.
async fn wait(
    worker: &Rc<Worker>,
    route: &Rc<LocalRoute>,
    balancer: Rc<Balancer>,
    (limits, need): (Limits, Need),
    (body, in_flight): (&RequestBody, &InFlight),
) -> Result<Acquired, AcquireError> {
    let mut wait = Wait {
        worker,
        route,
        entry: Arc::clone(&route.entry),
        backend: Backend::Target,
        limits,
        need,
        balancer,
        in_flight,
        cold: false,
        cold_since: None,
        endpoint_seen: None,
        dials_since: None,
        gate: None,
        last_error: None,
    };
    let gone = async { if body.is_unread() { body.client_gone().await } else { std::future::pending().await } };
    tokio::select! {
        biased;
        result = wait.run() => match result {
            Ok(acquired) => Ok(acquired),
            Err(error) => {
                wait.got_out(ColdEnd::Timeout);
                let past_hold = wait.backend == Backend::Target && wait.endpoint_seen.is_some();
                Err(AcquireError { error, past_hold, cold: wait.cold })
            }
        },
        () = gone => Err(AcquireError { error: ProxyError::ClientGone, past_hold: false, cold: wait.cold }),
    }
}

/// Where a request to the target may go: to the pod that it or its client belongs to, or to any.
fn choose(worker: &Worker, balancer: &Balancer, need: Need, now: Instant) -> Choice {
    let wanted = match need.wish {
        Wish::Pod(pod) => balancer.named(pod),
        Wish::Any(client) if balancer.affinity().is_some() => {
            let known = balancer.id().and_then(|id| worker.shared.clients.pod(id, client, now));
            known.filter(|pod| balancer.has(*pod)).or_else(|| balancer.first_pod(client))
        }
        Wish::Any(_) => return balancer.choose(now, need.upgraded),
    };
    balancer.choose_near(wanted, now, need.upgraded)
}

/// Lets a client stay with the pod that it has got, where the Service asks for it.
fn remember(worker: &Worker, balancer: &Balancer, need: Need, (pod, now): (SocketAddr, Instant)) {
    let (Some(timeout), Wish::Any(client)) = (balancer.affinity(), need.wish) else { return };
    let Some((id, until)) = balancer.id().zip(now.checked_add(timeout)) else { return };
    if !worker.shared.clients.keep(id, client, pod, (now, until)) {
        worker.shared.metrics.client_forgotten();
    }
}

/// Whether requests are held back for the route's target, and this one has to go behind them.
fn stands_behind(worker: &Worker, route: &LocalRoute) -> bool {
    let route = &route.entry.route;
    route.holding.per_pod.is_some() && worker.shared.gates.is_waited_at(&route.target)
}

struct Wait<'a> {
    worker: &'a Rc<Worker>,
    route: &'a Rc<LocalRoute>,
    /// The route as it is now; it may be edited while the request waits.
    entry: Arc<RouteEntry>,
    backend: Backend,
    limits: Limits,
    need: Need,
    balancer: Rc<Balancer>,
    in_flight: &'a InFlight,
    cold: bool,
    /// Since when it waits for an endpoint; until there is one.
    cold_since: Option<Instant>,
    /// When the first ready endpoint was seen, or when the fallback took its place.
    endpoint_seen: Option<Instant>,
    /// Since when it may connect.
    dials_since: Option<Instant>,
    /// Its place among those that are held back.
    gate: Option<Place>,
    last_error: Option<io::Error>,
}

// === impl Wait ===

impl Wait<'_> {
    async fn run(&mut self) -> Result<Acquired, ProxyError> {
        let mut upstream = self.entry.upstream;
        let mut subscription = self.worker.subscribe(upstream);
        let mut place = None;
        if stands_behind(self.worker, self.route) {
            self.join(&mut place)?;
        }
        loop {
            self.entry = self.worker.current(self.entry.id).ok_or(ProxyError::NoRoute)?;
            let Some((id, _)) = self.entry.backend(self.backend) else { return Err(self.late()) };
            if id != upstream {
                upstream = id;
                subscription = self.worker.subscribe(upstream);
                self.gate = None;
            }
            self.balancer = self.worker.balancer(&self.entry, self.backend, self.need.received)?;
            let now = Instant::now();
            let retry_at = match self.choose(now) {
                Choice::Offer(Offer::Lease(lease)) => return Ok(self.acquired(lease)),
                Choice::Offer(Offer::Connect(permit)) => {
                    if let Some(lease) = self.connect(permit).await? {
                        return Ok(self.acquired(lease));
                    }
                    continue;
                }
                Choice::Wait(retry_at) => {
                    if place.is_none() {
                        place = Some(self.worker.shared.hold_place(self.route, true)?);
                    }
                    retry_at
                }
                Choice::Cold if self.worker.is_unresolved(&self.entry, self.backend) => {
                    return Err(ProxyError::Unresolved);
                }
                Choice::Cold => {
                    self.stays_cold(&mut place, now)?;
                    None
                }
            };
            self.pause(&mut subscription, retry_at).await?;
        }
    }

    /// Where it may go now.
    fn choose(&mut self, now: Instant) -> Choice {
        let choice = match &self.gate {
            None if self.backend == Backend::Target => choose(self.worker, &self.balancer, self.need, now),
            None => self.balancer.choose(now, self.need.upgraded),
            Some(gate) => match gate.leave_to_go(self.balancer.seen()) {
                Some(pod) => self.balancer.choose_at(pod, now, self.need.upgraded),
                None if self.balancer.is_empty() => Choice::Cold,
                None => Choice::Wait(None),
            },
        };
        if !matches!(choice, Choice::Cold) {
            self.endpoint_seen.get_or_insert(now);
            self.got_out(ColdEnd::Ready);
            self.dials_since = if self.is_held_back() { None } else { self.dials_since.or(Some(now)) };
        }
        choice
    }

    /// There is no endpoint.
    fn stays_cold(&mut self, place: &mut Option<HoldPlace>, now: Instant) -> Result<(), ProxyError> {
        self.join(place)?;
        if self.backend == Backend::Target {
            self.cold |= self.endpoint_seen.is_none();
            self.endpoint_seen = None;
            self.dials_since = None;
            self.cold_since.get_or_insert(now);
            self.in_flight.set_cold();
        }
        Ok(())
    }

    /// Takes a place in the hold queue, and at the gate if the route has one.
    fn join(&mut self, place: &mut Option<HoldPlace>) -> Result<(), ProxyError> {
        if place.is_none() {
            *place = Some(self.worker.shared.hold_place(self.route, false)?);
        }
        let route = &self.entry.route;
        if let Some(limit) = route.holding.per_pod.filter(|_| self.backend == Backend::Target && self.gate.is_none()) {
            self.gate = Some(self.worker.shared.gates.join(&route.target, limit));
        }
        Ok(())
    }

    /// Waits for something to change, but not beyond the deadline.
    async fn pause(&mut self, subscription: &mut Subscription, retry_at: Option<Instant>) -> Result<(), ProxyError> {
        let deadline = self.deadline();
        let until = [retry_at, deadline].into_iter().flatten().min();
        let told = async {
            match &self.gate {
                Some(gate) => gate.told().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = subscription.changed() => {}
            () = self.balancer.changed() => {}
            () = told => {}
            () = sleep_until(until) => if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.pass_deadline()?;
            },
        }
        Ok(())
    }

    /// Whether there is an endpoint, but none with room.
    fn is_held_back(&self) -> bool {
        self.endpoint_seen.is_some() && self.gate.as_ref().is_some_and(|gate| !gate.has_leave())
    }

    /// It does not wait for an endpoint any more.
    fn got_out(&mut self, end: ColdEnd) {
        if let Some(since) = self.cold_since.take() {
            self.route.metrics.waited(end, since.elapsed());
        }
    }

    /// Opens a connection. `None`: this endpoint did not accept, look again.
    async fn connect(&mut self, permit: Permit) -> Result<Option<Lease>, ProxyError> {
        let _told = Tell(Rc::clone(&self.balancer));
        if let Some(gate) = &self.gate {
            gate.trying();
        }
        let limit = Instant::now() + self.worker.shared.config.connect_timeout;
        let deadline = self.deadline().map_or(limit, |deadline| deadline.min(limit));
        let attempt = tokio::time::timeout_at(deadline, TcpStream::connect(permit.endpoint().addr)).await;
        let error = match attempt {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return permit.accepted(stream).await.map(Some);
            }
            Ok(Err(error)) => error,
            Err(_elapsed) => io::Error::from(io::ErrorKind::TimedOut),
        };
        tracing::debug!(endpoint = %permit.endpoint().addr, %error, "endpoint did not accept");
        self.worker.shared.metrics.connect_failed(&self.route.entry.route.key);
        self.worker.shared.probing.refused(permit.endpoint().addr);
        permit.failed();
        if let Some(gate) = &self.gate {
            gate.refused();
        }
        self.last_error = Some(error);
        if self.deadline().is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(self.late());
        }
        Ok(None)
    }

    /// Does what a passed deadline means: goes beyond the limit, or to the fallback, or nowhere.
    fn pass_deadline(&mut self) -> Result<(), ProxyError> {
        let now = Instant::now();
        let route = &self.entry.route.key;
        let over = self.limits.request.is_some_and(|request| now >= request);
        if let Some(gate) = self.gate.as_ref().filter(|_| !over && self.is_held_back()) {
            gate.lift();
            if !gate.has_leave() {
                return Err(self.late());
            }
            tracing::debug!(%route, "no pod has had room for too long, the request goes beyond the limit");
            self.worker.shared.metrics.overran(route);
            return Ok(());
        }
        let held = self.backend == Backend::Target && self.endpoint_seen.is_none();
        if !held || over || self.entry.fallback.is_none() {
            return Err(self.late());
        }
        tracing::debug!(%route, "no endpoint became ready in time, the fallback takes the request");
        self.worker.shared.metrics.fell_back(route);
        self.got_out(ColdEnd::Timeout);
        self.gate = None;
        self.backend = Backend::Fallback;
        self.endpoint_seen = Some(now);
        self.dials_since = Some(now);
        self.cold = false;
        Ok(())
    }

    /// Until when the request may wait in its present state.
    fn deadline(&self) -> Option<Instant> {
        let own = match (self.endpoint_seen, self.dials_since) {
            (None, _) => self.limits.readiness,
            (Some(seen), None) => Some(seen + HELD_BACK),
            // Without a deadline of its own the request is not tried for ever.
            (Some(_), Some(since)) => self.limits.request.is_none().then(|| since + DIAL_LIMIT),
        };
        [own, self.limits.request].into_iter().flatten().min()
    }

    fn late(&mut self) -> ProxyError {
        match self.endpoint_seen {
            None => ProxyError::HoldTimeout,
            Some(_) => ProxyError::ConnectTimeout(self.last_error.take()),
        }
    }

    fn acquired(&mut self, lease: Lease) -> Acquired {
        let connected = Instant::now();
        if self.backend == Backend::Target {
            remember(self.worker, &self.balancer, self.need, (lease.addr(), connected));
        }
        self.in_flight.set_slot(self.gate.take().and_then(Place::accepted));
        let cold = self.cold.then(|| ColdWait {
            endpoint_seen: self.endpoint_seen.unwrap_or(connected),
            connected,
            held: self.route.entry.counters.counts().held,
        });
        Acquired { lease, at: connected, backend: self.backend, cold }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        // Who has not got out by himself was left by his client.
        self.got_out(ColdEnd::Cancelled);
    }
}

/// Lets the others look again when an attempt has ended, however it ended.
struct Tell(Rc<Balancer>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.tell();
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
