//! The ledger against a kernel in memory: steps by hand, and a model that counts each connection for the use of an upstream
//! that owned its address when it was begun.

use std::collections::{HashMap, HashSet};

use interceptor_common::{Conn, Event, Phase, Step};
use interceptor_core::{
    Endpoints, ObjectKey,
    route::{PortRef, Target},
    upstream::{Encryption, Protocol, Resolution},
};
use proptest::{collection::vec, prelude::*};

use super::*;

/// Maps and sockets as the kernel has them.
#[derive(Debug, Default)]
struct InMemory {
    map: Table,
    room: usize,
    stats: HashMap<Slot, Stats>,
    conns: Vec<Conn>,
    broken: Option<i32>,
    log: Vec<MapOp>,
}

impl InMemory {
    fn new(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    /// What `sockops` does when a socket connects.
    fn connect(&mut self, addr: SocketAddr) -> Option<usize> {
        let slot = *self.map.get(&addr)?;
        self.stats.entry(slot).or_default().attempted += 1;
        self.conns.push(Conn { slot: slot.0, phase: Phase::CONNECTING });
        Some(self.conns.len() - 1)
    }

    fn tell(&mut self, conn: usize, event: Event) -> Step {
        let conn = &mut self.conns[conn];
        let step = conn.step(event);
        let stats = self.stats.entry(Slot(conn.slot)).or_default();
        match step {
            Step::Opened => stats.opened += 1,
            Step::Closed => stats.closed += 1,
            Step::Failed => stats.failed += 1,
            Step::Nothing => {}
        }
        step
    }
}

impl Maps for InMemory {
    type Counters = Stats;

    fn set(&mut self, addr: SocketAddr, slot: Slot) -> io::Result<()> {
        if let Some(code) = self.broken {
            return Err(io::Error::from_raw_os_error(code));
        }
        if self.map.len() == self.room && !self.map.contains_key(&addr) {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        self.log.push(MapOp::Set(addr, slot));
        self.map.insert(addr, slot);
        Ok(())
    }

    fn remove(&mut self, addr: SocketAddr) -> io::Result<()> {
        self.log.push(MapOp::Remove(addr));
        self.map.remove(&addr);
        Ok(())
    }

    fn read(&self) -> io::Result<Table> {
        Ok(self.map.clone())
    }

    fn stats(&self, slot: Slot) -> io::Result<Stats> {
        Ok(self.stats.get(&slot).copied().unwrap_or_default())
    }

    fn wait_for_programs(&self) -> io::Result<()> {
        Ok(())
    }
}

const AMPLE: Limits = Limits { addresses: 100, slots: 100 };

fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 80))
}

fn upstream(id: u32, service: &str, addrs: &[u8]) -> Arc<Upstream> {
    Arc::new(Upstream {
        id: UpstreamId(id),
        target: Target { service: ObjectKey::new("ns", service), port: PortRef::Number(80) },
        resolution: Resolution::Found,
        protocol: Protocol::Http1,
        encryption: Encryption::AsReceived,
        affinity: None,
        endpoints: addrs.iter().map(|n| (addr(*n), None)).collect(),
        early: [].into(),
        pending: Endpoints::new(),
        probe: None,
        direct: None,
    })
}

fn counts(ledger: &Ledger<Stats>, maps: &InMemory) -> HashMap<u32, (u64, u64, u64)> {
    let counters = ledger.counters(maps).into_iter();
    counters.map(|(id, stats)| (id.0, stats.map(|s| (s.opened, s.closed, s.failed)).unwrap())).collect()
}

#[test]
fn a_sync_of_the_same_upstreams_asks_nothing_of_the_kernel() {
    let (mut ledger, mut maps) = (Ledger::new(AMPLE), InMemory::new(100));
    ledger.sync(&mut maps, &mut [upstream(1, "a", &[1]), upstream(2, "b", &[])].iter()).unwrap();
    maps.log.clear();
    // Other allocations, the same content, and one more that never had a pod.
    let again = [upstream(1, "a", &[1]), upstream(2, "b", &[]), upstream(3, "c", &[])];
    let report = ledger.sync(&mut maps, &mut again.iter()).unwrap();
    assert_eq!((maps.log.len(), report.addresses), (0, 1));
}

#[test]
fn a_rolling_update_adds_before_it_removes() {
    let (mut ledger, mut maps) = (Ledger::new(AMPLE), InMemory::new(100));
    ledger.sync(&mut maps, &mut [upstream(1, "a", &[1, 2])].iter()).unwrap();
    maps.log.clear();
    let report = ledger.sync(&mut maps, &mut [upstream(1, "a", &[2, 3])].iter()).unwrap();
    assert!(matches!(maps.log[..], [MapOp::Set(new, _), MapOp::Remove(old)] if (new, old) == (addr(3), addr(1))));
    assert_eq!((report.added, report.replaced, report.removed), (1, 0, 1));
}

#[test]
fn a_failure_that_is_not_want_of_room_is_returned_after_the_rest_and_tried_again() {
    let (mut ledger, mut maps) = (Ledger::new(AMPLE), InMemory::new(100));
    ledger.sync(&mut maps, &mut [upstream(1, "a", &[1])].iter()).unwrap();
    maps.broken = Some(libc::EPERM);
    let next = [upstream(1, "a", &[2])];
    let error = ledger.sync(&mut maps, &mut next.iter()).unwrap_err();
    assert_eq!(error.to_string(), "the kernel's map of pod addresses: 10.0.0.2:80");
    assert!(maps.map.is_empty(), "what had to go has gone all the same");
    maps.broken = None;
    assert_eq!(ledger.sync(&mut maps, &mut next.iter()).unwrap().added, 1);
}

#[test]
fn an_upstream_that_the_kernel_has_no_room_for_is_taken_out_whole_until_there_is() {
    let (mut ledger, mut maps) = (Ledger::new(AMPLE), InMemory::new(2));
    let both = [upstream(1, "a", &[1]), upstream(2, "b", &[2, 3])];
    let report = ledger.sync(&mut maps, &mut both.iter()).unwrap();
    assert_eq!(report.left_out.iter().map(|left| left.upstream.0).collect::<Vec<_>>(), [2]);
    assert_eq!(maps.map.keys().copied().collect::<Vec<_>>(), [addr(1)]);
    maps.room = 3;
    assert_eq!(ledger.sync(&mut maps, &mut both.iter()).unwrap().left_out, []);
    assert_eq!(maps.map.len(), 3);
}

#[derive(Clone, Debug)]
enum Action {
    /// For each id, the Service it means and its addresses; no two upstreams share one.
    Sync(Vec<(u32, u8, bool)>),
    Connect(u8),
    Tell(usize, bool),
    Vanish(u8),
    Repair,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => vec((0_u32..5, 0_u8..3, any::<bool>()), 0..5).prop_map(Action::Sync),
        6 => (0_u8..5).prop_map(Action::Connect),
        6 => (0_usize..64, any::<bool>()).prop_map(|(conn, established)| Action::Tell(conn, established)),
        1 => (0_u8..5).prop_map(Action::Vanish),
        1 => Just(Action::Repair),
    ]
}

/// What the model knows: the present use of each id, and for which use each connection counts.
#[derive(Default)]
struct Model {
    present: HashMap<u32, (u8, usize)>,
    /// The last use of each Service.
    last: HashMap<(u32, u8), usize>,
    uses: Vec<(u64, u64, u64)>,
    conns: Vec<usize>,
    left_out: HashSet<u32>,
}

impl Model {
    /// A Service that `drains` is gone on with.
    fn sync(&mut self, spec: &[(u32, u8, bool)], drains: &HashSet<(u32, u8)>, left_out: HashSet<u32>) {
        let before = std::mem::take(&mut self.present);
        for (id, service, has_pod) in spec {
            let same = before.get(id).filter(|(of, _)| of == service).map(|(_, used)| *used);
            // One that never had a pod has not begun.
            let anew = || drains.get(&(*id, *service)).map_or(self.uses.len(), |key| self.last[key]);
            if let Some(used) = same.or_else(|| has_pod.then(anew)) {
                self.uses.resize(self.uses.len().max(used + 1), (0, 0, 0));
                self.present.insert(*id, (*service, used));
                self.last.insert((*id, *service), used);
            }
        }
        self.left_out = left_out;
    }
}

#[test]
fn a_change_of_endpoints_writes_as_much_as_has_changed() {
    let (mut ledger, mut maps) = (Ledger::new(Limits { addresses: 100, slots: 8 }), InMemory::new(100));
    let mut sync = |all: &[Arc<Upstream>]| {
        let report = ledger.sync(&mut maps, &mut all.iter()).unwrap();
        assert_eq!(maps.map, ledger.desired);
        (report.added, report.replaced, report.removed, report.shared.len(), ledger.patch(all).is_some())
    };
    let all = |a: &[u8], b: &[u8]| [upstream(0, "a", a), upstream(1, "b", b)];
    assert_eq!(sync(&all(&[1, 2, 3], &[9])), (4, 0, 0, 0, true));
    assert_eq!(sync(&all(&[2, 3, 4], &[9])), (1, 0, 1, 0, true));
    assert_eq!(sync(&all(&[2, 3], &[4, 9])), (0, 1, 0, 0, true), "it is never without one of the two");
}

proptest! {
    #[test]
    fn step_by_step_the_map_is_what_it_is_at_once(
        steps in vec(vec((0..4_u32, vec(0..8_u8, 0..5)), 0..5), 1..8),
    ) {
        let limits = Limits { addresses: 100, slots: 64 };
        let (mut ledger, mut maps) = (Ledger::new(limits), InMemory::new(100));
        let owners = |ledger: &Ledger<Stats>, maps: &InMemory| -> BTreeMap<_, _> {
            maps.map.iter().map(|(addr, slot)| (*addr, ledger.upstream(*slot).unwrap())).collect()
        };
        for step in steps {
            let all: BTreeMap<_, _> = step.into_iter().collect();
            let all: Vec<_> = all.iter().map(|(id, addrs)| upstream(*id, &id.to_string(), addrs)).collect();
            let report = ledger.sync(&mut maps, &mut all.iter()).unwrap();
            let (mut fresh, mut anew) = (Ledger::new(limits), InMemory::new(100));
            let expected = fresh.sync(&mut anew, &mut all.iter()).unwrap();
            prop_assert_eq!(owners(&ledger, &maps), owners(&fresh, &anew));
            prop_assert_eq!(report.shared, expected.shared);
            prop_assert_eq!(&maps.map, &ledger.installed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn each_connection_counts_for_the_use_that_owned_its_address_and_for_no_later_one(
        actions in vec(action(), 1..60), slots in 2_u32..8,
    ) {
        let (mut ledger, mut maps) = (Ledger::new(Limits { addresses: 100, slots }), InMemory::new(100));
        let mut model = Model::default();
        for action in actions {
            match action {
                Action::Sync(mut spec) => {
                    spec.sort_unstable();
                    spec.dedup_by_key(|(id, ..)| *id);
                    let ups: Vec<_> = spec
                        .iter()
                        .map(|(id, service, has_pod)| {
                            let addrs = has_pod.then_some(u8::try_from(*id).unwrap());
                            upstream(*id, &format!("{id}-{service}"), addrs.as_slice())
                        })
                        .collect();
                    let tag = |(id, service): (u32, u8)| tag(&upstream(id, &format!("{id}-{service}"), &[]).target);
                    let known = model.last.keys().copied();
                    let drains = known.filter(|key| ledger.slots.drains(tag(*key))).collect();
                    let report = ledger.sync(&mut maps, &mut ups.iter()).unwrap();
                    model.sync(&spec, &drains, report.left_out.iter().map(|left| left.upstream.0).collect());
                    let expected = spec.iter().filter(|(id, _, has_pod)| *has_pod && !model.left_out.contains(id)).count();
                    prop_assert_eq!(ledger.desired.len(), expected);
                    prop_assert!(maps.map.len() <= expected, "what vanished is missing until a repair");
                }
                Action::Connect(n) => {
                    if maps.connect(addr(n)).is_some() {
                        model.conns.push(model.present[&u32::from(n)].1);
                    }
                }
                Action::Tell(conn, established) if !model.conns.is_empty() => {
                    let conn = conn % model.conns.len();
                    let used = &mut model.uses[model.conns[conn]];
                    match maps.tell(conn, if established { Event::Established } else { Event::Closed }) {
                        Step::Opened => used.0 += 1,
                        Step::Closed => used.1 += 1,
                        Step::Failed => used.2 += 1,
                        Step::Nothing => {}
                    }
                }
                Action::Tell(..) => {}
                Action::Vanish(n) => _ = maps.map.remove(&addr(n)),
                Action::Repair => {
                    ledger.repair(&mut maps).unwrap();
                    prop_assert!(!ledger.repair(&mut maps).unwrap().drifted());
                    prop_assert_eq!(&maps.map, &ledger.desired);
                }
            }
            for (id, counted) in counts(&ledger, &maps) {
                prop_assert_eq!(counted, model.uses[model.present[&id].1], "upstream {}", id);
            }
            for (id, (_, used)) in &model.present {
                let untold = model.uses[*used];
                prop_assert!(counts(&ledger, &maps).contains_key(id) || untold == (0, 0, 0));
            }
        }
    }
}
