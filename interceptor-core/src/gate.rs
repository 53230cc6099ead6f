//! Lets held requests go to the pods of one upstream: in the order of their coming, no more than a limit to each pod, spread
//! over them as they get ready. Written by whoever waits; asked by the same who may go where.
//!
//! ```text
//! join ─► queue ─ grants ─► granted ─ trying ─► accepted ─► in flight ─ end ─► room for the next
//!            ▲                 │ refused, or the pod has gone
//!            └─────────────────┘ at its old place
//! ```
//!
//! After each change, [`Gate::grants`] hands out all that can be: then either nobody waits, or no listed pod has room.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU32,
};

/// A request's place, in the order of coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The requests that wait for one upstream, and those it let go.
#[derive(Debug, Default)]
pub struct Gate {
    next: u64,
    /// Those that wait, with how many a pod may have for them to go there.
    queue: BTreeMap<Ticket, u32>,
    granted: BTreeMap<Ticket, Grant>,
    pods: BTreeMap<SocketAddr, Pod>,
}

/// Leave to go to a pod.
#[derive(Clone, Copy, Debug)]
struct Grant {
    pod: SocketAddr,
    limit: u32,
    /// It has begun to connect, and is not called back.
    trying: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pod {
    /// It is an endpoint now; one that is none is kept only while it has requests.
    listed: bool,
    /// Requests that were let go to it and have not ended, those included that are about to connect.
    in_flight: u32,
    /// Of those, the ones that are about to connect.
    granted: u32,
    /// It has refused a connection since it accepted one: it is tried by one request at a time, and after the others.
    refused: bool,
}

// === impl Gate ===

impl Gate {
    /// A place at the end of the queue, for a request that goes only where fewer than `limit` are.
    pub fn join(&mut self, limit: NonZeroU32) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.queue.insert(ticket, limit.get());
        ticket
    }

    /// The request waits no more, wherever it stood.
    pub fn leave(&mut self, ticket: Ticket) {
        self.queue.remove(&ticket);
        if let Some(grant) = self.granted.remove(&ticket) {
            self.take_back(grant);
        }
    }

    /// These are the endpoints now. Who was to go to another waits again, unless he is connecting there.
    pub fn list(&mut self, pods: impl IntoIterator<Item = SocketAddr>) {
        for pod in self.pods.values_mut() {
            pod.listed = false;
        }
        for addr in pods {
            self.pods.entry(addr).or_default().listed = true;
        }
        let gone: BTreeSet<_> = self.pods.iter().filter(|(_, pod)| !pod.listed).map(|(addr, _)| *addr).collect();
        self.call_back(|grant| gone.contains(&grant.pod));
        self.pods.retain(|_, pod| pod.listed || pod.in_flight > 0);
    }

    /// Where the request may go, if it may.
    pub fn grant(&self, ticket: Ticket) -> Option<SocketAddr> {
        self.granted.get(&ticket).map(|grant| grant.pod)
    }

    /// The request connects where it may go.
    pub fn trying(&mut self, ticket: Ticket) {
        if let Some(grant) = self.granted.get_mut(&ticket) {
            grant.trying = true;
        }
    }

    /// The request has a connection: it counts at its pod until [`end`](Self::end). `None` if it had no leave.
    #[must_use]
    pub fn accepted(&mut self, ticket: Ticket) -> Option<SocketAddr> {
        let Grant { pod: addr, .. } = self.granted.remove(&ticket)?;
        if let Some(pod) = self.pods.get_mut(&addr) {
            pod.granted -= 1;
            pod.refused = false;
        }
        Some(addr)
    }

    /// The pod did not accept: the request waits again at its old place, and so do others that were to go there.
    pub fn refused(&mut self, ticket: Ticket) {
        let Some(grant) = self.granted.get_mut(&ticket) else { return };
        grant.trying = false;
        let addr = grant.pod;
        if let Some(pod) = self.pods.get_mut(&addr) {
            pod.refused = true;
        }
        self.call_back(|grant| grant.pod == addr);
    }

    /// A request that was let go to `addr` has ended.
    pub fn end(&mut self, addr: SocketAddr) {
        let Some(pod) = self.pods.get_mut(&addr) else { return };
        pod.in_flight = pod.in_flight.saturating_sub(1);
        if pod.in_flight == 0 && !pod.listed {
            self.pods.remove(&addr);
        }
    }

    /// The request has waited long enough, and with it those before it: they go wherever the least is to be done.
    pub fn lift(&mut self, ticket: Ticket) {
        for (_, limit) in self.queue.range_mut(..=ticket) {
            *limit = u32::MAX;
        }
    }

    /// Hands out what can be, and tells who may go now.
    pub fn grants(&mut self) -> Vec<Ticket> {
        let mut handed = Vec::new();
        while let Some((&ticket, &limit)) = self.queue.first_key_value() {
            let Some((&addr, pod)) =
                self.pods.iter_mut().filter(|(_, pod)| pod.has_room(limit)).min_by_key(|(_, pod)| pod.rank())
            else {
                break;
            };
            pod.in_flight += 1;
            pod.granted += 1;
            self.queue.remove(&ticket);
            self.granted.insert(ticket, Grant { pod: addr, limit, trying: false });
            handed.push(ticket);
        }
        handed
    }

    /// Whether anybody waits, or is about to connect.
    pub fn is_waited_at(&self) -> bool {
        !self.queue.is_empty() || !self.granted.is_empty()
    }

    /// Whether there is nothing that it would have to remember.
    pub fn is_done(&self) -> bool {
        !self.is_waited_at() && self.pods.values().all(|pod| pod.in_flight == 0)
    }

    /// Puts those back who were to go somewhere and have not begun to.
    fn call_back(&mut self, which: impl Fn(&Grant) -> bool) {
        let back: Vec<_> = self
            .granted
            .iter()
            .filter(|(_, grant)| !grant.trying && which(grant))
            .map(|(ticket, grant)| (*ticket, *grant))
            .collect();
        for (ticket, grant) in back {
            self.granted.remove(&ticket);
            self.take_back(grant);
            self.queue.insert(ticket, grant.limit);
        }
    }

    fn take_back(&mut self, grant: Grant) {
        if let Some(pod) = self.pods.get_mut(&grant.pod) {
            pod.granted -= 1;
        }
        self.end(grant.pod);
    }
}

// === impl Pod ===

impl Pod {
    fn has_room(&self, limit: u32) -> bool {
        self.listed && self.in_flight < limit && !(self.refused && self.granted > 0)
    }

    /// Who has the lowest is taken first.
    fn rank(&self) -> (bool, u32) {
        (self.refused, self.in_flight)
    }
}

#[cfg(test)]
mod tests;
