//! Held requests let go in order, with a limit to each pod: the core's [`gate`](interceptor_core::gate), shared by the workers.
//!
//! There is a gate for a target only while requests of routes with a limit wait for it, or are still at its pods. Whether
//! there is anybody at any gate is one word that all workers read; nobody else pays for them.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use foldhash::quality::RandomState;
use interceptor_core::{
    Upstream,
    gate::{Gate as Core, Ticket},
    route::Target,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The gates of a process: no more than there are targets, with no more waiters than the hold queue has.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    /// At how many somebody waits.
    waited_at: AtomicUsize,
    all: Mutex<HashMap<Target, Arc<Gate>, RandomState>>,
}

/// One target's gate.
#[derive(Debug)]
struct Gate {
    gates: Arc<Gates>,
    target: Target,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    core: Core,
    /// Whom to tell.
    waiters: HashMap<Ticket, Arc<Notify>, RandomState>,
    /// Of which snapshot the endpoints are.
    seen: Option<Arc<Upstream>>,
    /// It counts among [`Gates::waited_at`].
    is_waited_at: bool,
    /// It has been taken out of [`Gates::all`].
    is_closed: bool,
}

/// A held request's place at a gate; given up when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Arc<Gate>,
    ticket: Ticket,
    told: Arc<Notify>,
}

/// A request's place at a pod, until it ends; given up when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    gate: Arc<Gate>,
    pod: SocketAddr,
}

// === impl Gates ===

impl Gates {
    /// Whether nobody waits at any gate, so that nothing is to be looked up.
    pub(crate) fn are_idle(&self) -> bool {
        self.waited_at.load(Relaxed) == 0
    }

    /// Whether requests wait for `target`, behind which a new one has to go.
    pub(crate) fn is_waited_at(&self, target: &Target) -> bool {
        !self.are_idle() && self.all.lock().get(target).is_some_and(|gate| gate.state.lock().is_waited_at)
    }

    /// A place for a request that goes only to pods with fewer than `limit`.
    pub(crate) fn join(self: &Arc<Self>, target: &Target, limit: NonZeroU32) -> Place {
        let told = Arc::new(Notify::new());
        let mut all = self.all.lock();
        let gate = match all.entry(target.clone()) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(vacant) => Arc::clone(vacant.insert(Arc::new(Gate {
                gates: Arc::clone(self),
                target: target.clone(),
                state: Mutex::default(),
            }))),
        };
        let ticket = {
            let mut state = gate.state.lock();
            let ticket = state.core.join(limit);
            state.waiters.insert(ticket, Arc::clone(&told));
            gate.settle(&mut state);
            ticket
        };
        Place { gate, ticket, told }
    }
}

// === impl Gate ===

impl Gate {
    /// Changes the state, and tells those who may go for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, is_done) = {
            let mut state = self.state.lock();
            let result = change(&mut state);
            self.settle(&mut state);
            (result, state.core.is_done())
        };
        if is_done {
            self.close();
        }
        result
    }

    fn settle(&self, state: &mut State) {
        state.hand_out();
        let is_waited_at = state.core.is_waited_at();
        if is_waited_at != state.is_waited_at {
            state.is_waited_at = is_waited_at;
            if is_waited_at {
                self.gates.waited_at.fetch_add(1, Relaxed);
            } else {
                self.gates.waited_at.fetch_sub(1, Relaxed);
            }
        }
    }

    /// Forgets the gate, unless somebody has come meanwhile. The lock of all is taken first, as who joins does.
    fn close(&self) {
        let mut all = self.gates.all.lock();
        let mut state = self.state.lock();
        if state.core.is_done() && !state.is_closed {
            state.is_closed = true;
            all.remove(&self.target);
        }
    }
}

// === impl State ===

impl State {
    fn hand_out(&mut self) {
        for ticket in self.core.grants() {
            if let Some(waiter) = self.waiters.get(&ticket) {
                waiter.notify_one();
            }
        }
    }
}

// === impl Place ===

impl Place {
    /// Where the request may go, if it may, given the endpoints as they are now.
    pub(crate) fn leave_to_go(&self, upstream: Option<Arc<Upstream>>) -> Option<SocketAddr> {
        self.gate.change(|state| {
            let is_known = match (&state.seen, &upstream) {
                (Some(seen), Some(upstream)) => Arc::ptr_eq(seen, upstream),
                (seen, upstream) => seen.is_none() && upstream.is_none(),
            };
            if !is_known {
                let endpoints = upstream.iter().flat_map(|upstream| upstream.endpoints.keys());
                state.core.list(endpoints.copied());
                state.seen = upstream;
            }
            state.hand_out();
            state.core.grant(self.ticket)
        })
    }

    /// Whether the request may go somewhere.
    pub(crate) fn has_leave(&self) -> bool {
        self.gate.state.lock().core.grant(self.ticket).is_some()
    }

    /// The request begins to connect.
    pub(crate) fn trying(&self) {
        self.gate.change(|state| state.core.trying(self.ticket));
    }

    /// The request has a connection.
    pub(crate) fn accepted(self) -> Option<Slot> {
        let pod = self.gate.change(|state| state.core.accepted(self.ticket))?;
        Some(Slot { gate: Arc::clone(&self.gate), pod })
    }

    /// The pod did not accept.
    pub(crate) fn refused(&self) {
        self.gate.change(|state| state.core.refused(self.ticket));
    }

    /// The request has waited long enough.
    pub(crate) fn lift(&self) {
        self.gate.change(|state| state.core.lift(self.ticket));
    }

    /// Told when the request may go.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.change(|state| {
            state.waiters.remove(&self.ticket);
            state.core.leave(self.ticket);
        });
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        self.gate.change(|state| state.core.end(self.pod));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use futures_util::FutureExt as _;
    use interceptor_core::{Endpoints, ObjectKey, UpstreamId, route::PortRef, upstream::Resolution};

    use super::*;

    fn target() -> Target {
        Target { service: ObjectKey::new("shop", "web"), port: PortRef::Number(80) }
    }

    #[expect(clippy::unnecessary_wraps, reason = "what a place asks for")]
    fn upstream(pods: &[u8]) -> Option<Arc<Upstream>> {
        Some(Arc::new(Upstream {
            id: UpstreamId(0),
            target: target(),
            resolution: Resolution::Found,
            protocol: interceptor_core::upstream::Protocol::Http1,
            encryption: interceptor_core::upstream::Encryption::AsReceived,
            affinity: None,
            endpoints: pods.iter().map(|pod| (SocketAddr::from(([10, 0, 0, *pod], 80)), None)).collect(),
            early: [].into(),
            pending: Endpoints::new(),
            probe: None,
            direct: None,
        }))
    }

    fn limit(limit: u32) -> NonZeroU32 {
        NonZeroU32::new(limit).unwrap()
    }

    #[test]
    fn who_may_go_is_told_and_nothing_is_left_when_all_have_gone() {
        let gates = Arc::<Gates>::default();
        let mut places: Vec<_> = (0..3).map(|_| gates.join(&target(), limit(1))).collect();
        assert!(gates.is_waited_at(&target()));
        assert_eq!(places[2].leave_to_go(None), None);
        let pods = upstream(&[1, 2]);
        assert_eq!(places[2].leave_to_go(pods.clone()), None);
        assert!(places[0].told().now_or_never().is_some() && places[1].told().now_or_never().is_some());
        assert!(places[2].told().now_or_never().is_none());
        assert_eq!(places[0].leave_to_go(pods.clone()), Some(([10, 0, 0, 1], 80).into()));
        let slot = places.remove(0).accepted();
        drop(slot);
        assert!(places[1].told().now_or_never().is_some() && places[1].has_leave());
        drop(places.remove(1));
        let slot = places.remove(0).accepted();
        assert!(gates.are_idle(), "nobody waits, one is at a pod");
        drop(slot);
        assert!(gates.all.lock().is_empty());
    }

    #[test]
    fn workers_that_come_and_go_at_once_never_have_more_at_a_pod_than_they_may() {
        let (gates, pods) = (Arc::<Gates>::default(), upstream(&[1, 2]));
        let at: [AtomicUsize; 3] = Default::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let place = gates.join(&target(), limit(2));
                        let pod = loop {
                            if let Some(pod) = place.leave_to_go(pods.clone()) {
                                break pod;
                            }
                            thread::yield_now();
                        };
                        let SocketAddr::V4(pod) = pod else { panic!("pods have addresses of four bytes") };
                        let here = &at[usize::from(pod.ip().octets()[3])];
                        let slot = place.accepted();
                        assert!(here.fetch_add(1, Relaxed) < 2);
                        here.fetch_sub(1, Relaxed);
                        drop(slot);
                    }
                });
            }
        });
        assert!(gates.are_idle() && gates.all.lock().is_empty());
    }
}
