//! What was read of each upstream, for as long as its id means the same target and the kernel counts for it without a break: counters that
//! begin anew are no sequel.

use std::collections::HashMap;

use dataplane::count::{Load, Meter, Served};
use interceptor_core::{UpstreamId, route::Target};

/// A meter each.
#[derive(Debug, Default)]
pub(super) struct Meters(HashMap<UpstreamId, (Target, Meter)>);

// === impl Meters ===

impl Meters {
    /// Forgets those that are not counted any more.
    pub(super) fn keep(&mut self, is_counted: impl Fn(UpstreamId, &Target) -> bool) {
        self.0.retain(|id, (target, _)| is_counted(*id, target));
    }

    /// Whether something was read of it.
    pub(super) fn knows(&self, upstream: UpstreamId) -> bool {
        self.0.contains_key(&upstream)
    }

    /// Takes what was read at `now_ns`.
    pub(super) fn read(&mut self, (upstream, target): (UpstreamId, &Target), now_ns: u64, served: &Served) -> Load {
        let (_, meter) = self.0.entry(upstream).or_insert_with(|| (target.clone(), Meter::default()));
        meter.read(now_ns, served)
    }
}

#[cfg(test)]
mod tests {
    use interceptor_core::{ObjectKey, route::PortRef};

    use super::*;

    #[test]
    fn an_upstream_that_is_counted_anew_begins_anew() {
        let target = Target { service: ObjectKey::new("ns", "web"), port: PortRef::Number(80) };
        let mut meters = Meters::default();
        let read = |meters: &mut Meters, requests, busy_ns| {
            let served = Served { started: requests, ended: requests, busy_ns, ..Served::default() };
            meters.read((UpstreamId(1), &target), 1 << 40, &served)
        };
        assert_eq!(read(&mut meters, 700, 1 << 50).requests, 700);
        meters.keep(|_, _| true);
        assert_eq!(read(&mut meters, 699, 1 << 50).requests, 700, "a total does not fall");
        meters.keep(|_, _| false);
        assert!(!meters.knows(UpstreamId(1)));
        assert_eq!(read(&mut meters, 3, 9), Load { in_flight: 0, requests: 3 });
    }
}
