//! From a route to an open connection: waits for a ready endpoint while the workload wakes, and for one that accepts.
//!
//! All waiting is bounded: by the route's readiness deadline while there is no endpoint, by [`DIAL_LIMIT`] while there
//! are endpoints that do not accept, by the request's deadline in either case, and by the queue's limits in number.
//! When the readiness deadline passes, a route with a fallback goes there, where it may wait for [`DIAL_LIMIT`] again.
//!
//! No wake is lost: a waiter subscribes to its upstream first, then looks at the snapshot, then waits.

use std::{io, rc::Rc, sync::Arc, time::Duration};

use interceptor_core::{RouteEntry, route::Backend};
use tokio::{net::TcpStream, time::Instant};

use super::{
    balance::{Balancer, Choice},
    body::RequestBody,
    error::ProxyError,
    pool::{Lease, Offer, Permit},
};
use crate::worker::{LocalRoute, Worker};

/// How long endpoints that do not accept are tried when the request has no deadline; the add-on's value.
const DIAL_LIMIT: Duration = Duration::from_mins(1);

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
pub(crate) struct Manner {
    /// It was received encrypted.
    pub(crate) encrypted: bool,
    /// It asks for another protocol.
    pub(crate) upgraded: bool,
}

/// Gets an open connection for a request of `route`; it is `now`, or was just before.
///
/// Cancel safe: dropping the future gives up the place in the queue and any connection attempt.
pub(crate) async fn acquire(
    worker: &Rc<Worker>,
    route: &Rc<LocalRoute>,
    (limits, manner): (Limits, Manner),
    body: &RequestBody,
    now: Instant,
) -> Result<Acquired, AcquireError> {
    let failed = |error| AcquireError { error, past_hold: false, cold: false };
    let balancer = worker.target(route, manner.encrypted).map_err(failed)?;
    // The warm path: no subscription, no place, no timer.
    if let Choice::Offer(Offer::Lease(lease)) = balancer.choose(now, manner.upgraded) {
        return Ok(Acquired { lease, at: now, backend: Backend::Target, cold: None });
    }
    let mut wait = Wait {
        worker,
        route,
        entry: Arc::clone(&route.entry),
        backend: Backend::Target,
        limits,
        manner,
        balancer,
        cold: false,
        endpoint_seen: None,
        last_error: None,
    };
    let gone = async { if body.is_unread() { body.client_gone().await } else { std::future::pending().await } };
    tokio::select! {
        biased;
        result = wait.run() => match result {
            Ok(acquired) => Ok(acquired),
            Err(error) => {
                let past_hold = wait.backend == Backend::Target && wait.endpoint_seen.is_some();
                Err(AcquireError { error, past_hold, cold: wait.cold })
            }
        },
        () = gone => Err(AcquireError { error: ProxyError::ClientGone, past_hold: false, cold: wait.cold }),
    }
}

struct Wait<'a> {
    worker: &'a Rc<Worker>,
    route: &'a Rc<LocalRoute>,
    /// The route as it is now; it may be edited while the request waits.
    entry: Arc<RouteEntry>,
    backend: Backend,
    limits: Limits,
    manner: Manner,
    balancer: Rc<Balancer>,
    cold: bool,
    /// When the first ready endpoint was seen, or when the fallback took its place.
    endpoint_seen: Option<Instant>,
    last_error: Option<io::Error>,
}

// === impl Wait ===

impl Wait<'_> {
    async fn run(&mut self) -> Result<Acquired, ProxyError> {
        let mut upstream = self.entry.upstream;
        let mut subscription = self.worker.subscribe(upstream);
        let mut place = None;
        loop {
            self.entry = self.worker.current(self.entry.id).ok_or(ProxyError::NoRoute)?;
            let Some((id, _)) = self.entry.backend(self.backend) else { return Err(self.late()) };
            if id != upstream {
                upstream = id;
                subscription = self.worker.subscribe(upstream);
            }
            self.balancer = self.worker.balancer(&self.entry, self.backend, self.manner.encrypted)?;
            let now = Instant::now();
            let choice = self.balancer.choose(now, self.manner.upgraded);
            if !matches!(choice, Choice::Cold) {
                self.endpoint_seen.get_or_insert(now);
            }
            let retry_at = match choice {
                Choice::Offer(Offer::Lease(lease)) => return Ok(self.acquired(lease)),
                Choice::Offer(Offer::Connect(permit)) => {
                    if let Some(lease) = self.connect(permit).await? {
                        return Ok(self.acquired(lease));
                    }
                    continue;
                }
                Choice::Wait(retry_at) => retry_at,
                Choice::Cold if self.worker.is_unresolved(&self.entry, self.backend) => {
                    return Err(ProxyError::Unresolved);
                }
                Choice::Cold if self.backend == Backend::Fallback => None,
                Choice::Cold => {
                    self.cold |= self.endpoint_seen.is_none();
                    self.endpoint_seen = None;
                    None
                }
            };
            if place.is_none() {
                place = Some(self.worker.shared.hold_place(self.route)?);
            }
            let deadline = self.deadline();
            let until = [retry_at, deadline].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = subscription.changed() => {}
                () = self.balancer.changed() => {}
                () = sleep_until(until) => if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    self.fall_back()?;
                },
            }
        }
    }

    /// Opens a connection. `None`: this endpoint did not accept, look again.
    async fn connect(&mut self, permit: Permit) -> Result<Option<Lease>, ProxyError> {
        let _told = Tell(Rc::clone(&self.balancer));
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
        self.last_error = Some(error);
        if self.deadline().is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(self.late());
        }
        Ok(None)
    }

    /// Goes to the fallback if that is what a passed deadline means.
    fn fall_back(&mut self) -> Result<(), ProxyError> {
        let now = Instant::now();
        let held = self.backend == Backend::Target && self.endpoint_seen.is_none();
        let over = self.limits.request.is_some_and(|request| now >= request);
        if !held || over || self.entry.fallback.is_none() {
            return Err(self.late());
        }
        let route = &self.entry.route.key;
        tracing::debug!(%route, "no endpoint became ready in time, the fallback takes the request");
        self.worker.shared.metrics.fell_back(route);
        self.backend = Backend::Fallback;
        self.endpoint_seen = Some(now);
        self.cold = false;
        Ok(())
    }

    /// Until when the request may wait in its present state.
    fn deadline(&self) -> Option<Instant> {
        let own = match self.endpoint_seen {
            None => self.limits.readiness,
            // Without a deadline of its own the request is not tried for ever.
            Some(seen) => self.limits.request.is_none().then(|| seen + DIAL_LIMIT),
        };
        [own, self.limits.request].into_iter().flatten().min()
    }

    fn late(&mut self) -> ProxyError {
        match self.endpoint_seen {
            None => ProxyError::HoldTimeout,
            Some(_) => ProxyError::ConnectTimeout(self.last_error.take()),
        }
    }

    fn acquired(&self, lease: Lease) -> Acquired {
        let connected = Instant::now();
        let cold = self.cold.then(|| ColdWait {
            endpoint_seen: self.endpoint_seen.unwrap_or(connected),
            connected,
            held: self.route.entry.counters.counts().held,
        });
        Acquired { lease, at: connected, backend: self.backend, cold }
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
