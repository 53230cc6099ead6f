//! Since when direct Services have had a ready pod, and whether the node's own rules are sure to know of it. Pure.

use std::{collections::BTreeMap, mem, time::Duration};

use interceptor_core::{Upstream, UpstreamId, frontends::Heat, route::Target};

/// A Service stays cold for so long after its first pod got ready: until then the node's rules may not lead there, and would
/// refuse. kube-proxy writes its rules once a second unless told otherwise.
pub(super) const SETTLE: Duration = Duration::from_secs(3);

/// Since when each has had a ready pod, and what it was then: ids are used again.
#[derive(Debug, Default)]
pub(super) struct Settling(BTreeMap<UpstreamId, (Target, Duration)>);

// === impl Settling ===

impl Settling {
    /// Takes in how these are now, and forgets all others; when the next one of them settles. One that is new here may have settled
    /// while an agent before saw to it.
    pub(super) fn update<'a>(
        &mut self,
        upstreams: impl Iterator<Item = &'a Upstream>,
        had_settled: impl Fn(&Upstream) -> bool,
        now: Duration,
    ) -> Option<Duration> {
        let mut before = mem::take(&mut self.0);
        let ready = upstreams.filter(|upstream| !upstream.endpoints.is_empty());
        let since = ready.map(|upstream| {
            let known = before.remove(&upstream.id).filter(|(target, _)| *target == upstream.target);
            let since = if had_settled(upstream) { now.saturating_sub(SETTLE) } else { now };
            (upstream.id, known.unwrap_or_else(|| (upstream.target.clone(), since)))
        });
        self.0 = since.collect();
        self.0.values().map(|(_, since)| *since + SETTLE).filter(|settles| *settles > now).min()
    }

    /// Whether a Service is cold: it has no ready pod, or the node's own rules may not know of it.
    pub(super) fn heat(&self, id: UpstreamId, now: Duration) -> Heat {
        match self.0.get(&id) {
            Some((_, since)) if now >= *since + SETTLE => Heat::Warm,
            _ => Heat::Cold,
        }
    }
}
