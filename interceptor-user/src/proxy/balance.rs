//! The endpoints of one upstream as a worker sees them: in step with the snapshot, picked by power of two choices.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use interceptor_core::{Upstream, UpstreamId, pick};
use tls::client::Client;
use tokio::{sync::Notify, time::Instant};

use super::{
    pool::{Endpoint, Offer, Tls},
    session::{self, PodId},
};
use crate::worker::Manner;

/// One upstream's endpoints with their connections. Owned by a worker; brought up to date by whoever uses it.
#[derive(Debug)]
pub(crate) struct Balancer {
    seen: RefCell<Option<Arc<Upstream>>>,
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    max_idle: usize,
    manner: Manner,
    /// How its endpoints are encrypted, if they are.
    client: Option<Client>,
    random: Cell<u64>,
    /// Clients stay with an endpoint, and for how long after their last request.
    affinity: Cell<Option<Duration>>,
    /// The endpoints as cookies name them, made when a cookie asks.
    pods: RefCell<Option<HashMap<PodId, SocketAddr>>>,
    /// Told when an endpoint has proved that it accepts, or an attempt was given up.
    changed: Notify,
}

/// What an upstream can do for a request now.
pub(crate) enum Choice {
    /// A connection, or leave to make one.
    Offer(Offer),
    /// There are endpoints, but none may be used before this time, or before [`Balancer::changed`].
    Wait(Option<Instant>),
    /// There is no ready endpoint.
    Cold,
}

// === impl Balancer ===

impl Balancer {
    pub(crate) fn new(max_idle: usize, (manner, client): (Manner, Option<Client>), seed: u64) -> Self {
        Self {
            seen: RefCell::default(),
            endpoints: RefCell::default(),
            max_idle,
            manner,
            client,
            random: Cell::new(seed | 1),
            affinity: Cell::new(None),
            pods: RefCell::default(),
            changed: Notify::new(),
        }
    }

    /// Takes the snapshot's endpoints over; connections to those that stay are kept.
    pub(crate) fn update(&self, upstream: &Arc<Upstream>) {
        if self.seen.borrow().as_ref().is_some_and(|seen| Arc::ptr_eq(seen, upstream)) {
            return;
        }
        let mut current = self.endpoints.borrow_mut();
        // Both are in order of the addresses.
        let mut old = std::mem::take(&mut *current).into_iter().peekable();
        let protocol = self.manner.spoken(upstream.protocol);
        for wanted in upstream.endpoints.keys() {
            while let Some(gone) = old.next_if(|have| have.addr < *wanted) {
                gone.retire();
            }
            let tls = self.client.as_ref().map(|client| Tls::new(&upstream.target, *wanted, client));
            let is_same = |have: &Rc<Endpoint>| {
                have.addr == *wanted && have.protocol == protocol && have.is_known_as(tls.as_ref())
            };
            let kept = old.next_if(is_same);
            current.push(kept.unwrap_or_else(|| Rc::new(Endpoint::new(*wanted, protocol, tls, self.max_idle))));
        }
        for gone in old {
            gone.retire();
        }
        self.affinity.set(upstream.affinity);
        self.pods.replace(None);
        self.seen.replace(Some(Arc::clone(upstream)));
    }

    /// Closes all idle connections, when the upstream has gone.
    pub(crate) fn retire(&self) {
        for endpoint in self.endpoints.borrow_mut().drain(..) {
            endpoint.retire();
        }
        self.seen.replace(None);
    }

    /// Where a request may go now; `upgraded` says that its connection is to become another protocol's.
    pub(crate) fn choose(&self, now: Instant, upgraded: bool) -> Choice {
        let endpoints = self.endpoints.borrow();
        let picked = pick::two_choices(endpoints.len(), self.next_random(), |index| endpoints[index].usable_load(now));
        if let Some(index) = picked {
            return Choice::Offer(endpoints[index].offer(upgraded));
        }
        if !endpoints.is_empty() {
            return Choice::Wait(endpoints.iter().filter_map(|endpoint| endpoint.retry_at()).min());
        }
        Choice::Cold
    }

    /// The same, but at `wanted` if that is an endpoint which accepts connections.
    pub(crate) fn choose_near(&self, wanted: Option<SocketAddr>, now: Instant, upgraded: bool) -> Choice {
        let near = wanted.and_then(|wanted| {
            let endpoints = self.endpoints.borrow();
            let endpoint = endpoints.iter().find(|endpoint| endpoint.addr == wanted)?;
            match endpoint.usable_load(now) {
                Some(_) => Some(Choice::Offer(endpoint.offer(upgraded))),
                // Somebody finds out just now whether it does.
                None if endpoint.retry_at().is_none() => Some(Choice::Wait(None)),
                None => None,
            }
        });
        near.unwrap_or_else(|| self.choose(now, upgraded))
    }

    /// How long clients stay with an endpoint after their last request, if they shall.
    pub(crate) fn affinity(&self) -> Option<Duration> {
        self.affinity.get()
    }

    /// Of which upstream it is.
    pub(crate) fn id(&self) -> Option<UpstreamId> {
        self.seen.borrow().as_ref().map(|seen| seen.id)
    }

    /// Whether this is an endpoint.
    pub(crate) fn has(&self, addr: SocketAddr) -> bool {
        self.endpoints.borrow().iter().any(|endpoint| endpoint.addr == addr)
    }

    /// Where a client goes that is not known.
    pub(crate) fn first_pod(&self, client: IpAddr) -> Option<SocketAddr> {
        session::first_pod(client, self.endpoints.borrow().iter().map(|endpoint| endpoint.addr))
    }

    /// The endpoint that a cookie names.
    pub(crate) fn named(&self, pod: PodId) -> Option<SocketAddr> {
        let mut pods = self.pods.borrow_mut();
        let seen = self.seen.borrow();
        let all = seen.iter().flat_map(|seen| &seen.endpoints);
        let all = || all.map(|(addr, pod)| (PodId::of(*addr, pod.as_deref()), *addr)).collect();
        pods.get_or_insert_with(all).get(&pod).copied()
    }

    /// What a cookie calls an endpoint.
    pub(crate) fn name_of(&self, addr: SocketAddr) -> Option<PodId> {
        let seen = self.seen.borrow();
        let pod = seen.as_ref()?.endpoints.get(&addr)?;
        Some(PodId::of(addr, pod.as_deref()))
    }

    /// Whether there is no ready endpoint.
    pub(crate) fn is_empty(&self) -> bool {
        self.endpoints.borrow().is_empty()
    }

    /// The same as [`choose`](Self::choose) at one endpoint.
    pub(crate) fn choose_at(&self, addr: SocketAddr, now: Instant, upgraded: bool) -> Choice {
        let endpoints = self.endpoints.borrow();
        match endpoints.iter().find(|endpoint| endpoint.addr == addr) {
            Some(endpoint) if endpoint.usable_load(now).is_some() => Choice::Offer(endpoint.offer(upgraded)),
            Some(endpoint) => Choice::Wait(endpoint.retry_at()),
            None => Choice::Wait(None),
        }
    }

    /// The endpoints, as of which snapshot they are.
    pub(crate) fn seen(&self) -> Option<Arc<Upstream>> {
        self.seen.borrow().clone()
    }

    /// Resolves after [`Balancer::tell`].
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Lets all who wait look again.
    pub(crate) fn tell(&self) {
        self.changed.notify_waiters();
    }

    /// Closes connections that are of no more use, and those beyond `limit`; returns what is left of it.
    pub(crate) fn sweep(&self, now: Instant, limit: usize) -> usize {
        self.endpoints.borrow().iter().fold(limit, |left, endpoint| endpoint.sweep(now, left))
    }

    /// xorshift64* (Vigna, 2016): one worker's own, no lock, good enough to choose between pods.
    fn next_random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
