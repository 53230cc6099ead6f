//! What is done for connections that wait, and how their wait ends.

use std::{net::SocketAddr, time::Duration};

use dataplane::{SendError, Translation, monotonic};
use interceptor_core::holding::{Act, Flow};

use super::{
    BATCH, Kept, Task,
    metrics::{End, Failure},
    node,
    report::Way,
};

impl Task {
    /// Does for connections what is due, a batch of it; whether there may be more. In between, answers have to be read: a pod of this node
    /// answers at once.
    pub(super) fn act(&mut self) -> bool {
        for _ in 0..BATCH {
            let Some((syn, origin, at)) = self.anew.pop_front() else { break };
            // Its client may have sent another.
            if self.holding.get_mut(&syn.flow()).is_none() {
                self.arrive(syn, origin, at);
            }
        }
        let services = &self.services;
        let acts = self.holding.due(monotonic(), BATCH, |id| services.pods(id));
        let more = acts.len() == BATCH || !self.anew.is_empty();
        for act in acts {
            match act {
                Act::Try(flow, pod) => self.send(&flow, pod),
                Act::Expire(flow) => self.give_up(&flow, End::Expired),
                Act::Leave(flow) => self.give_up(&flow, End::Left),
            }
        }
        more
    }

    fn send(&mut self, flow: &Flow, pod: SocketAddr) {
        if !self.withdraw(flow) {
            return self.taken(flow, monotonic());
        }
        let passes_by = self.passes_by(flow, pod);
        let (Ok(hold), Some(kept)) = (&mut self.hold, self.holding.get_mut(flow)) else { return };
        let age = monotonic().saturating_sub(kept.at);
        let packet = (&kept.syn, kept.origin);
        let way = kept.way;
        let sent = match way {
            Way::Conntrack => {
                let local = (&self.devices, self.node.as_slice());
                let source = node::source((flow, kept.origin), pod, passes_by, local);
                hold.send(packet, age, &Translation { pod, source })
            }
            Way::Rules if self.services.is_settled(flow.service, monotonic()) => hold.release(packet, age),
            // The rules might refuse it yet.
            Way::Rules => return,
        };
        self.metrics.tried();
        let is_lost = matches!(sent, Err(SendError::Device { .. }));
        let is_refused = matches!(sent, Err(SendError::Conntrack(_)));
        if is_refused {
            kept.way = Way::Rules;
        }
        kept.is_tried = way == Way::Conntrack && sent.is_ok();
        self.note(flow, sent);
        match way {
            _ if is_lost => self.give_up(flow, End::Lost),
            Way::Conntrack => self.report.goes_by(if is_refused { Way::Rules } else { Way::Conntrack }),
            Way::Rules => {
                // From here on it is the rules' own: they have known the pod for a while.
                self.holding.forget(flow);
                self.ended(flow, End::Released);
            }
        }
    }

    /// Whether answers would go past the node, to a client that knows nothing of the pod.
    fn passes_by(&self, flow: &Flow, pod: SocketAddr) -> bool {
        if self.outside != Some(true) {
            return false;
        }
        let snapshot = self.reader.load();
        let upstreams = self.services.at(flow.service).iter().filter_map(|id| snapshot.upstream(*id));
        let node: Vec<_> = self.node.iter().map(|(ip, _)| *ip).collect();
        let mut directs = upstreams.filter_map(|upstream| upstream.direct.as_deref());
        directs.any(|direct| direct.is_for_outside(flow.service, &node) && !direct.is_on(&self.name, pod))
    }

    /// Takes back what was tried, if it was. False if a pod has answered though that was not read yet, or could not be told.
    fn withdraw(&mut self, flow: &Flow) -> bool {
        let (Ok(hold), Some(kept)) = (&mut self.hold, self.holding.get_mut(flow)) else { return true };
        if !kept.is_tried {
            return true;
        }
        let withdrawn = hold.withdraw(flow, kept.origin);
        kept.is_tried = matches!(withdrawn, Ok(false));
        withdrawn.unwrap_or_else(|error| {
            self.note(flow, Err(error));
            true
        })
    }

    /// A pod has answered.
    pub(super) fn taken(&mut self, flow: &Flow, at: Duration) {
        let Some(kept) = self.holding.taken(flow) else { return };
        if let Ok(hold) = &mut self.hold {
            let forgotten = hold.untried(flow);
            self.note(flow, forgotten);
        }
        self.metrics.waited(at.saturating_sub(kept.since).as_secs_f64());
        self.ended(flow, End::Taken);
    }

    fn give_up(&mut self, flow: &Flow, end: End) {
        let Some(kept) = self.drop_from_hold(flow, end) else { return };
        if end == End::Expired
            && self.refuses
            && let Ok(hold) = &mut self.hold
        {
            let refused = hold.refuse((&kept.syn, kept.origin));
            self.note(flow, refused);
        }
    }

    /// Ends the wait of a connection that no pod has answered, and takes away what there is of its tries, if there were any; what was
    /// kept.
    pub(super) fn drop_from_hold(&mut self, flow: &Flow, end: End) -> Option<Kept> {
        if !self.withdraw(flow) {
            self.taken(flow, monotonic());
            return None;
        }
        let kept = self.holding.forget(flow)?;
        self.ended(flow, end);
        Some(kept)
    }

    fn ended(&mut self, flow: &Flow, end: End) {
        self.metrics.ended(end);
        self.metrics.waiting(self.holding.len());
        let holding = &self.holding;
        self.probed.retain(|upstream, _| holding.waiting(*upstream) > 0);
        tracing::debug!(client = %flow.client, service = %flow.service, ?end, "hold of a connection ends");
    }

    pub(super) fn note(&self, flow: &Flow, sent: Result<(), SendError>) {
        let Err(error) = sent else { return };
        self.metrics.failed(match &error {
            SendError::Conntrack(_) => Failure::Conntrack,
            SendError::Tried(_) => Failure::Tried,
            SendError::Device { .. } => Failure::Device,
            SendError::Node(_) => Failure::Node,
        });
        let cause = std::error::Error::source(&error).map(tracing::field::display);
        tracing::debug!(client = %flow.client, service = %flow.service, %error, cause, "held packet is not sent on");
    }
}
