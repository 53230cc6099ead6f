//! What every level must do, whatever it can do beyond.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use dataplane::{Config, ConnectionCounters, Dataplane, Level, Mode, SyncReport, open};
use interceptor_core::{Upstream, UpstreamId};

use crate::upstreams::upstream;

fn none() -> Box<dyn Dataplane> {
    open(Config { mode: Mode::None, ..Config::default() }).unwrap().0
}

fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([127, 9, 9, n], 9))
}

fn sync(dataplane: &mut dyn Dataplane, upstreams: &[Arc<Upstream>]) -> SyncReport {
    dataplane.sync(&mut upstreams.iter()).unwrap()
}

fn counters(dataplane: &dyn Dataplane) -> BTreeMap<UpstreamId, ConnectionCounters> {
    let counters = dataplane.counters();
    assert!(counters.is_sorted_by_key(|(id, _)| *id), "counters come in the order of ids");
    counters.into_iter().collect()
}

fn suite(mut dataplane: Box<dyn Dataplane>) {
    let dataplane = &mut *dataplane;
    assert!(!dataplane.reason().is_empty(), "a level says why");
    assert!(counters(dataplane).is_empty(), "nothing is counted before the first sync");
    assert_eq!(sync(dataplane, &[]), SyncReport::default());

    let two = [upstream(1, "a", &[addr(1), addr(2)]), upstream(2, "b", &[])];
    let first = sync(dataplane, &two);
    assert!(first.left_out.is_empty() && first.shared.is_empty());
    let again = sync(dataplane, &two);
    assert_eq!((again.added, again.replaced, again.removed), (0, 0, 0), "a sync of the same changes nothing");
    assert_eq!(again.addresses, first.addresses);
    assert!(!dataplane.repair().unwrap().drifted(), "what was just put there has not drifted");
    assert!(counters(dataplane).keys().all(|id| id.0 == 1), "only what had an address has counters");

    let moved = [upstream(1, "a", &[addr(2), addr(3)]), upstream(2, "b", &[addr(1)])];
    let report = sync(dataplane, &moved);
    assert_eq!(report.added + report.replaced + report.removed > 0, dataplane.level() != Level::None);
    for counters in counters(dataplane).values() {
        assert_eq!((counters.opened, counters.closed, counters.failed), (0, 0, 0), "no one has connected");
        assert_eq!(counters.in_flight(), 0);
        assert_eq!(counters.last_activity, None);
    }

    assert_eq!(sync(dataplane, &[]).addresses, 0);
    assert!(counters(dataplane).is_empty(), "an upstream that has gone is not counted");
    assert!(!dataplane.repair().unwrap().drifted());
}

#[test]
fn level_none_conforms() {
    suite(none());
}

#[cfg(ebpf_object)]
mod in_the_kernel {
    use super::*;
    use crate::cell::Cell;

    fn level_self(cell: &Cell) -> Box<dyn Dataplane> {
        let config = Config { mode: Mode::SelfLevel, required: true, cgroup: Some(cell.path().to_owned()) };
        let (dataplane, level, _) = open(config).unwrap();
        assert_eq!(level, Level::SelfLevel);
        dataplane
    }

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn level_self_conforms() {
        let cell = Cell::enter();
        suite(level_self(&cell));
    }

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn level_self_says_which_cgroup_it_is_attached_to() {
        let cell = Cell::enter();
        assert_eq!(level_self(&cell).reason(), format!("attached to {}", cell.path().display()));
    }
}
