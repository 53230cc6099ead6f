//! Connections whose first packet is held: which are waiting, when each is tried with a pod, and how each ends. Pure; the
//! agent tells it what the kernel saw, and carries out what it says.
//!
//! ```text
//! first packet ─► waiting ─ a pod is ready ─► tried ─ taken ─► gone
//!                    ▲                          │
//!                    └──── refused, no answer ──┘        expired, or the client has left ─► gone
//! ```
//!
//! A pod that has just been declared ready may not listen yet: then one connection of the Service alone is tried again and
//! again, and the others follow when it was taken.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use foldhash::quality::RandomState;

use crate::UpstreamId;

/// Between two tries of a pod that refuses: a five-hundredth of the time that it has refused, within these bounds, and longer where
/// several Services' pods refuse. A try costs the node some 0.1 ms, so that all of them cost at most a fifth of a processor.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How long a pod may take to answer; doubled each time up to the second.
const FIRST_PATIENCE: Duration = Duration::from_millis(250);
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);

/// A client repeats its first packet after pauses that at most double. One that has been silent for three times its last
/// pause, and for this long, has gone.
const SHORTEST_SILENCE: Duration = Duration::from_secs(4);

/// The two ends of a connection as the client sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Who connects.
    pub client: SocketAddr,
    /// Where to.
    pub service: SocketAddr,
}

/// How many connections may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub all: usize,
    /// For one Service.
    pub of_service: usize,
    /// Of one client's address.
    pub of_client: usize,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// [`Limits::all`].
    All,
    /// [`Limits::of_service`].
    Service,
    /// [`Limits::of_client`].
    Client,
}

/// What is to be done with a connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Send its first packet to this pod.
    Try(Flow, SocketAddr),
    /// It has waited for as long as it may: tell the client, and forget it.
    Expire(Flow),
    /// Its client has gone: forget it.
    Leave(Flow),
}

/// All connections that wait, with what the agent keeps for each.
#[derive(Debug)]
pub struct Holding<K> {
    limits: Limits,
    flows: HashMap<Flow, Held<K>, RandomState>,
    services: BTreeMap<UpstreamId, Service>,
    /// Those whose pods refuse, and that are tried by one connection each.
    refusing: BTreeSet<UpstreamId>,
    clients: HashMap<IpAddr, usize, RandomState>,
    /// When each is to be looked at next.
    timers: BTreeSet<(Duration, Flow)>,
    /// Services whose connections need wait for none of theirs any more: they are looked at together, when something is due next.
    free: BTreeSet<UpstreamId>,
}

#[derive(Debug)]
struct Held<K> {
    kept: K,
    upstream: UpstreamId,
    deadline: Option<Duration>,
    /// When its client sent its packets last, and how long before that the time before.
    last: Duration,
    gap: Duration,
    state: State,
    /// Under which time it is in the timers.
    due: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// For a pod, or for the next try.
    Waiting { not_before: Duration },
    /// For a pod's answer.
    Tried { pod: SocketAddr, at: Duration, patience: Duration },
}

#[derive(Debug, Default)]
struct Service {
    flows: BTreeSet<Flow>,
    /// Which pod is next.
    turn: usize,
    /// The one connection that is tried while pods refuse, and since when.
    lead: Option<(Flow, Duration)>,
    /// When it was tried last, and when one of the pods has begun to listen.
    tried: Duration,
    listens: Option<Duration>,
}

// === impl Holding ===

impl<K> Holding<K> {
    /// Nothing is held.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            flows: HashMap::default(),
            services: BTreeMap::new(),
            refusing: BTreeSet::new(),
            clients: HashMap::default(),
            timers: BTreeSet::new(),
            free: BTreeSet::new(),
        }
    }

    /// How many connections wait.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// What is kept of all connections that wait.
    pub fn kept(&self) -> impl Iterator<Item = &K> {
        self.flows.values().map(|held| &held.kept)
    }

    /// The connections that wait, and what is kept of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Flow, &mut K)> {
        self.flows.iter_mut().map(|(flow, held)| (flow, &mut held.kept))
    }

    /// How many connections wait for a Service.
    pub fn waiting(&self, upstream: UpstreamId) -> usize {
        self.services.get(&upstream).map_or(0, |service| service.flows.len())
    }

    /// What is kept for a connection.
    pub fn get_mut(&mut self, flow: &Flow) -> Option<&mut K> {
        self.flows.get_mut(flow).map(|held| &mut held.kept)
    }

    /// A first packet came of a connection that does not wait yet: it begins to, unless a limit is reached. Then its client
    /// will send another.
    pub fn arrive(
        &mut self,
        flow: Flow,
        upstream: UpstreamId,
        (now, timeout): (Duration, Option<Duration>),
        keep: impl FnOnce() -> K,
    ) -> Result<(), Limit> {
        if let Some(limit) = self.reached(&flow, upstream) {
            return Err(limit);
        }
        let held = Held {
            kept: keep(),
            upstream,
            deadline: timeout.map(|timeout| now.saturating_add(timeout)),
            last: now,
            gap: Duration::ZERO,
            state: State::Waiting { not_before: now },
            due: now,
        };
        self.flows.insert(flow, held);
        self.timers.insert((now, flow));
        self.services.entry(upstream).or_default().flows.insert(flow);
        *self.clients.entry(flow.client.ip()).or_default() += 1;
        Ok(())
    }

    /// A first packet came of a connection that waits. It is looked at anew, for its last try may have been lost.
    pub fn again(&mut self, flow: &Flow, now: Duration) {
        if let Some(held) = self.flows.get_mut(flow) {
            held.gap = now.saturating_sub(held.last);
            held.last = now;
            self.schedule(flow, now);
        }
    }

    /// The pods of a Service may have changed: all that wait for it are looked at.
    pub fn wake(&mut self, upstream: UpstreamId, now: Duration) {
        let Some(service) = self.services.get(&upstream) else { return };
        for flow in &service.flows {
            if let Some(held) = self.flows.get_mut(flow) {
                held.schedule(&mut self.timers, flow, now);
            }
        }
    }

    /// The pod that was tried has refused.
    pub fn refused(&mut self, flow: &Flow, now: Duration) {
        let Some(held) = self.flows.get_mut(flow) else { return };
        let service = self.services.entry(held.upstream).or_default();
        let (lead, since) = *service.lead.get_or_insert((*flow, now));
        self.refusing.insert(held.upstream);
        let share = FIRST_PAUSE * u32::try_from(self.refusing.len()).unwrap_or(u32::MAX);
        let pause = (now.saturating_sub(since) / 500).clamp(FIRST_PAUSE, LONGEST_PAUSE).max(share);
        // What has begun to listen since this was sent has not refused it.
        let tried = if let State::Tried { at, .. } = held.state { at } else { now };
        let not_before = if lead != *flow {
            now
        } else if service.listens.is_some_and(|listens| listens > tried) {
            tried + FIRST_PAUSE
        } else {
            now + pause
        };
        held.state = State::Waiting { not_before };
        self.schedule(flow, now);
    }

    /// A pod has begun to listen, at this address, or at any of its own if it is the unspecified one: the connections that
    /// wait for the next try of such a pod need not wait any longer. `pods` are those of a Service that count as ready.
    pub fn listens<'a>(
        &mut self,
        addr: SocketAddr,
        (at, now): (Duration, Duration),
        pods: impl Fn(UpstreamId) -> &'a [SocketAddr],
    ) {
        let fits =
            |pod: &SocketAddr| pod.port() == addr.port() && (addr.ip().is_unspecified() || pod.ip() == addr.ip());
        let mut leads = Vec::new();
        for (id, service) in &mut self.services {
            if pods(*id).iter().any(fits) {
                service.listens = Some(at);
                leads.extend(service.lead.map(|(lead, _)| (lead, now.max(service.tried + FIRST_PAUSE))));
            }
        }
        for (lead, next) in leads {
            if let Some(Held { state: State::Waiting { not_before }, .. }) = self.flows.get_mut(&lead)
                && *not_before > next
            {
                *not_before = next;
                self.schedule(&lead, next);
            }
        }
    }

    /// The pod that was tried has answered: the connection is the client's and the pod's own. Returns what was kept.
    pub fn taken(&mut self, flow: &Flow) -> Option<K> {
        let (kept, upstream) = self.remove(flow)?;
        if let Some(service) = self.services.get_mut(&upstream)
            && service.lead.take().is_some()
        {
            self.refusing.remove(&upstream);
            self.free.insert(upstream);
        }
        Some(kept)
    }

    /// Ends the wait of a connection. Returns what was kept.
    pub fn forget(&mut self, flow: &Flow) -> Option<K> {
        let (kept, upstream) = self.remove(flow)?;
        if let Some(service) = self.services.get_mut(&upstream)
            && service.lead.is_some_and(|(lead, _)| lead == *flow)
        {
            service.lead = None;
            self.refusing.remove(&upstream);
            self.free.insert(upstream);
        }
        Some(kept)
    }

    /// When [`due`](Self::due) has something to say next.
    pub fn next(&self) -> Option<Duration> {
        if self.free.is_empty() { self.timers.first().map(|(due, _)| *due) } else { Some(Duration::ZERO) }
    }

    /// What is to be done now, at most `most` things. `pods` are those of a Service that count as ready. Connections that
    /// are to expire or to leave stay until they are forgotten.
    pub fn due<'a>(&mut self, now: Duration, most: usize, pods: impl Fn(UpstreamId) -> &'a [SocketAddr]) -> Vec<Act> {
        while let Some(upstream) = self.free.pop_first() {
            self.follow(upstream, now);
        }
        let mut acts = Vec::new();
        while acts.len() < most {
            let Some((due, flow)) = self.timers.first().copied().filter(|(due, _)| *due <= now) else { break };
            self.timers.remove(&(due, flow));
            let Some(held) = self.flows.get_mut(&flow) else { continue };
            let service = self.services.entry(held.upstream).or_default();
            let (act, next) = held.look(&flow, now, service, pods(held.upstream));
            acts.extend(act);
            held.due = next;
            self.timers.insert((next, flow));
        }
        acts
    }

    fn reached(&self, flow: &Flow, upstream: UpstreamId) -> Option<Limit> {
        let Limits { all, of_service, of_client } = self.limits;
        if self.flows.len() >= all {
            Some(Limit::All)
        } else if self.waiting(upstream) >= of_service {
            Some(Limit::Service)
        } else if self.clients.get(&flow.client.ip()).is_some_and(|held| *held >= of_client) {
            Some(Limit::Client)
        } else {
            None
        }
    }

    /// Nobody is tried alone for a Service any more: those that wait are looked at. What is on its way is left there.
    fn follow(&mut self, upstream: UpstreamId, now: Duration) {
        let Some(service) = self.services.get(&upstream) else { return };
        for flow in &service.flows {
            if let Some(held) = self.flows.get_mut(flow)
                && matches!(held.state, State::Waiting { .. })
            {
                held.schedule(&mut self.timers, flow, now);
            }
        }
    }

    fn schedule(&mut self, flow: &Flow, at: Duration) {
        if let Some(held) = self.flows.get_mut(flow) {
            held.schedule(&mut self.timers, flow, at);
        }
    }

    fn remove(&mut self, flow: &Flow) -> Option<(K, UpstreamId)> {
        let held = self.flows.remove(flow)?;
        self.timers.remove(&(held.due, *flow));
        if let Some(service) = self.services.get_mut(&held.upstream) {
            service.flows.remove(flow);
            if service.flows.is_empty() {
                self.services.remove(&held.upstream);
                self.refusing.remove(&held.upstream);
                self.free.remove(&held.upstream);
            }
        }
        let client = flow.client.ip();
        if let Some(held) = self.clients.get_mut(&client) {
            *held -= 1;
            if *held == 0 {
                self.clients.remove(&client);
            }
        }
        Some((held.kept, held.upstream))
    }
}

// === impl Held ===

impl<K> Held<K> {
    fn schedule(&mut self, timers: &mut BTreeSet<(Duration, Flow)>, flow: &Flow, at: Duration) {
        timers.remove(&(self.due, *flow));
        self.due = at;
        timers.insert((at, *flow));
    }

    /// What is to be done, and when to look next.
    fn look(
        &mut self,
        flow: &Flow,
        now: Duration,
        service: &mut Service,
        pods: &[SocketAddr],
    ) -> (Option<Act>, Duration) {
        let silent = self.last + SHORTEST_SILENCE.max(self.gap * 3);
        let ends = self.deadline.map_or(silent, |deadline| deadline.min(silent));
        if now >= ends {
            let expired = self.deadline.is_some_and(|deadline| now >= deadline);
            // Should nobody forget it, it is not asked about all the time.
            return (Some(if expired { Act::Expire(*flow) } else { Act::Leave(*flow) }), now + SHORTEST_SILENCE);
        }
        let patience = match self.state {
            // The client has sent another packet, or there are other pods: an answer may still come.
            State::Tried { pod, at, patience } if now < at + patience && pods.contains(&pod) => {
                return (None, ends.min(at + patience));
            }
            State::Tried { patience, .. } => (patience * 2).min(LONGEST_PATIENCE),
            State::Waiting { not_before } if now < not_before => return (None, not_before.min(ends)),
            State::Waiting { .. } => FIRST_PATIENCE,
        };
        let is_led = service.lead.is_some_and(|(lead, _)| lead != *flow);
        let pod = if is_led { None } else { service.choose(flow.service.ip(), pods) };
        let Some(pod) = pod else {
            self.state = State::Waiting { not_before: now };
            return (None, ends);
        };
        self.state = State::Tried { pod, at: now, patience };
        service.tried = now;
        (Some(Act::Try(*flow, pod)), ends.min(now + patience))
    }
}

// === impl Service ===

impl Service {
    /// The next pod in turn that has an address of the family.
    fn choose(&mut self, like: IpAddr, pods: &[SocketAddr]) -> Option<SocketAddr> {
        let fits = |pod: &&SocketAddr| pod.is_ipv4() == like.is_ipv4();
        let count = pods.iter().filter(fits).count();
        if count == 0 {
            return None;
        }
        let chosen = pods.iter().filter(fits).nth(self.turn % count).copied();
        self.turn = self.turn.wrapping_add(1);
        chosen
    }
}

#[cfg(test)]
mod tests;
