//! The kernel's map in step with the upstreams: withdrawal, reuse of ids, drift, want of room.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use aya::maps::{HashMap, Map, MapData};
use dataplane::{Dataplane as _, Kernel, Limits, RepairReport};
use interceptor_common::AddrKey;
use interceptor_core::UpstreamId;

use crate::{
    cell::{Cell, count, eventually},
    peers::{Manner, Pod, connect, visit},
    upstreams::upstream,
};

fn pod(last: u8) -> Pod {
    Pod::start(std::net::SocketAddr::from(([127, 0, 8, last], 0)))
}

/// The kernel's map, as somebody else would reach it.
fn map_of(kernel: &Kernel) -> HashMap<MapData, AddrKey, u32> {
    let id = kernel.address_map_id().expect("the kernel tells its map's id");
    Map::HashMap(MapData::from_id(id).unwrap()).try_into().unwrap()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn connections_of_a_withdrawn_address_are_counted_to_their_end_and_new_ones_are_not() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let (old, new) = (pod(1), pod(2));
    kernel.sync(&mut [upstream(1, "a", &[old.addr])].iter()).unwrap();
    let open: Vec<_> = (0..10).map(|_| connect(old.addr).unwrap()).collect();
    kernel.sync(&mut [upstream(1, "a", &[new.addr])].iter()).unwrap();
    visit(old.addr, Manner::PodCloses);
    visit(new.addr, Manner::PodCloses);
    eventually("the visit to the new pod is closed", || count(&kernel, 1) == (11, 1, 0));
    drop(open);
    eventually("those to the old pod are", || count(&kernel, 1) == (11, 11, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_upstream_scaled_to_zero_and_back_goes_on_where_it_was() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let pod = pod(1);
    for visits in 1..4 {
        kernel.sync(&mut [upstream(1, "a", &[pod.addr])].iter()).unwrap();
        visit(pod.addr, Manner::PodCloses);
        eventually("it is closed", || count(&kernel, 1) == (visits, visits, 0));
        kernel.sync(&mut [upstream(1, "a", &[])].iter()).unwrap();
        assert_eq!(count(&kernel, 1), (visits, visits, 0));
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_reused_id_starts_at_zero_and_old_sockets_do_not_count_for_it() {
    let cell = Cell::enter();
    // Room for one upstream that is there and two that drain.
    let mut kernel = cell.open_with(Limits { addresses: 16, slots: 4 });
    let pods = [pod(1), pod(2)];
    let mut held = Vec::new();
    for round in 0..30 {
        let addr = pods[round % 2].addr;
        // The id is the same, the Service is not.
        let next = [upstream(1, &format!("s{round}"), &[addr])];
        eventually("there is a slot", || kernel.sync(&mut next.iter()).unwrap().left_out.is_empty());
        assert_eq!(count(&kernel, 1), (0, 0, 0), "round {round} starts at zero");
        let now: Vec<_> = (0..5).map(|_| connect(addr).unwrap()).collect();
        // Those of the round before end while this one counts.
        drop(std::mem::replace(&mut held, now));
        assert_eq!(count(&kernel, 1), (5, 0, 0), "round {round}");
        if round % 3 == 0 {
            held.clear();
            eventually("they are closed", || count(&kernel, 1) == (5, 5, 0));
        }
        if round % 3 == 1 {
            kernel.sync(&mut [].iter()).unwrap();
            held.clear();
        }
    }
    drop(held);
    eventually("pods saw all of them", || pods.iter().map(|pod| pod.saw().1).sum::<u64>() == 150);
    eventually("the last round's are closed", || count(&kernel, 1) == (5, 5, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_slot_with_open_connections_is_not_given_out_again() {
    let cell = Cell::enter();
    let mut kernel = cell.open_with(Limits { addresses: 16, slots: 2 });
    let (first, second) = (pod(1), pod(2));
    kernel.sync(&mut [upstream(1, "a", &[first.addr])].iter()).unwrap();
    let open = connect(first.addr).unwrap();
    let next = [upstream(1, "b", &[second.addr])];
    let report = kernel.sync(&mut next.iter()).unwrap();
    assert_eq!(report.left_out.len(), 1, "the only slot still drains: {report:?}");
    assert_eq!(report.left_out[0].upstream, UpstreamId(1));
    assert!(report.left_out[0].why.contains("no counters are free: 1 upstreams"), "{report:?}");
    visit(second.addr, Manner::PodCloses);
    assert_eq!(count(&kernel, 1), (0, 0, 0));
    drop(open);
    eventually("the slot is free", || kernel.sync(&mut next.iter()).unwrap().left_out.is_empty());
    assert_eq!(count(&kernel, 1), (0, 0, 0), "what the old socket did is not the new upstream's");
    visit(second.addr, Manner::PodCloses);
    eventually("the new upstream counts", || count(&kernel, 1) == (1, 1, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn drift_is_found_reported_and_mended() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let pods = [pod(1), pod(2), pod(3)];
    let ups = [upstream(1, "a", &[pods[0].addr]), upstream(2, "b", &[pods[1].addr])];
    kernel.sync(&mut ups.iter()).unwrap();
    let mut map = map_of(&kernel);
    let before: Vec<_> = map.iter().map(Result::unwrap).collect();
    let slot_of = |pod: &Pod| map_slot(&before, pod);
    let (one, two) = (slot_of(&pods[0]), slot_of(&pods[1]));

    map.remove(&AddrKey::new(pods[0].addr)).unwrap();
    map.insert(AddrKey::new(pods[1].addr), one, 0).unwrap();
    map.insert(AddrKey::new(pods[2].addr), two, 0).unwrap();
    assert_eq!(kernel.repair().unwrap(), RepairReport { missing: 1, foreign: 1, wrong: 1, detached: false });
    assert_eq!(kernel.repair().unwrap(), RepairReport::default());
    let mut after: Vec<_> = map.iter().map(Result::unwrap).collect();
    let mut expected = before.clone();
    after.sort_by_key(|(key, _)| key.socket_addr());
    expected.sort_by_key(|(key, _)| key.socket_addr());
    assert_eq!(after, expected);
    visit(pods[0].addr, Manner::PodCloses);
    visit(pods[2].addr, Manner::PodCloses);
    eventually("counted as before", || (count(&kernel, 1), count(&kernel, 2)) == ((1, 1, 0), (0, 0, 0)));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_program_that_was_taken_off_is_put_back_and_counts_anew() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let pod = pod(1);
    kernel.sync(&mut [upstream(1, "a", &[pod.addr])].iter()).unwrap();
    let open = [connect(pod.addr).unwrap(), connect(pod.addr).unwrap()];
    assert_eq!(count(&kernel, 1), (2, 0, 0));
    kernel.detach();
    visit(pod.addr, Manner::PodCloses);
    assert_eq!(kernel.repair().unwrap(), RepairReport { detached: true, ..RepairReport::default() });
    assert_eq!(kernel.repair().unwrap(), RepairReport::default());
    drop(open);
    visit(pod.addr, Manner::PodCloses);
    eventually("it counts what came after, and that alone", || count(&kernel, 1) == (1, 1, 0));
}

fn map_slot(entries: &[(AddrKey, u32)], pod: &Pod) -> u32 {
    entries.iter().find(|(key, _)| key.socket_addr() == pod.addr).expect("the pod is in the map").1
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn while_addresses_come_and_go_and_change_hands_every_connection_counts_once() {
    const THREADS: u64 = 3;
    const VISITS: u64 = 600;
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let (steady, wandering, flickering) = (pod(1), pod(2), pod(3));
    let running = AtomicU64::new(THREADS);
    let mut before = (0, 0);
    let round = |round: u32| {
        // One address stays, one changes hands, and one is listed every third time.
        let (mut one, mut two) = (vec![steady.addr], Vec::new());
        if round.is_multiple_of(2) { &mut one } else { &mut two }.push(wandering.addr);
        two.extend(round.is_multiple_of(3).then_some(flickering.addr));
        [upstream(1, "a", &one), upstream(2, "b", &two)]
    };
    kernel.sync(&mut round(0).iter()).unwrap();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for visits in 0..VISITS {
                    let manner = Manner::ALL[usize::try_from(visits).unwrap() % Manner::ALL.len()];
                    for pod in [&steady, &wandering, &flickering] {
                        visit(pod.addr, manner);
                    }
                }
                running.fetch_sub(1, Relaxed);
            });
        }
        for n in 1.. {
            if running.load(Relaxed) == 0 {
                break;
            }
            kernel.sync(&mut round(n).iter()).unwrap();
            let now = (count(&kernel, 1).0, count(&kernel, 2).0);
            assert!(now.0 >= before.0 && now.1 >= before.1, "counters only grow: {before:?}, then {now:?}");
            before = now;
        }
    });
    let closed = |id| count(&kernel, id).0 == count(&kernel, id).1;
    eventually("all are closed", || closed(1) && closed(2));
    let (one, two, visits) = (count(&kernel, 1), count(&kernel, 2), THREADS * VISITS);
    assert_eq!((one.2, two.2), (0, 0), "none has failed");
    // Those to the first two pods were always listed for one or the other.
    assert!((2 * visits..=3 * visits).contains(&(one.0 + two.0)), "{one:?} {two:?}, {visits} visits to each");
    assert!(one.0 >= visits, "those to the steady pod are all the first's: {one:?}");
    assert!(!kernel.repair().unwrap().drifted());
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_full_map_costs_the_one_upstream_that_did_not_fit_and_is_tried_again() {
    let cell = Cell::enter();
    let mut kernel = cell.open_with(Limits { addresses: 4, slots: 16 });
    let (first, second) = (pod(1), pod(2));
    let one = upstream(1, "a", &[first.addr]);
    kernel.sync(&mut [&one].into_iter()).unwrap();
    // Somebody else's entries fill the kernel's map.
    let mut map = map_of(&kernel);
    let foreign = (1..=7).map(|n| AddrKey::new(std::net::SocketAddr::from(([127, 0, 99, n], 1))));
    foreign.for_each(|key| map.insert(key, 0, 0).unwrap());
    let both = [one, upstream(2, "b", &[second.addr])];
    let report = kernel.sync(&mut both.iter()).unwrap();
    let [left] = &report.left_out[..] else { panic!("one upstream is left out: {report:?}") };
    assert_eq!(left.upstream, UpstreamId(2));
    assert!(left.why.contains("Argument list too long"), "the kernel's words: {}", left.why);
    visit(first.addr, Manner::PodCloses);
    visit(second.addr, Manner::PodCloses);
    eventually("the first still counts", || count(&kernel, 1) == (1, 1, 0));
    assert_eq!(count(&kernel, 2), (0, 0, 0));
    assert_eq!(kernel.repair().unwrap().foreign, 7);
    assert_eq!(kernel.sync(&mut both.iter()).unwrap().left_out, []);
    visit(second.addr, Manner::PodCloses);
    eventually("now the second counts too", || count(&kernel, 2) == (1, 1, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn more_addresses_than_planned_for_are_left_out_upstream_by_upstream() {
    let cell = Cell::enter();
    let mut kernel = cell.open_with(Limits { addresses: 2, slots: 16 });
    let pods = [pod(1), pod(2), pod(3)];
    let ups = [upstream(1, "a", &[pods[0].addr]), upstream(2, "b", &[pods[1].addr, pods[2].addr])];
    let report = kernel.sync(&mut ups.iter()).unwrap();
    assert_eq!((report.addresses, report.left_out.len(), report.left_out[0].upstream), (1, 1, UpstreamId(2)));
    let smaller = [Arc::clone(&ups[0]), upstream(2, "b", &[pods[1].addr])];
    let report = kernel.sync(&mut smaller.iter()).unwrap();
    assert_eq!((report.addresses, report.left_out.len()), (2, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_address_of_two_upstreams_is_counted_for_one_and_reported() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let pod = pod(1);
    let ups = [upstream(1, "z", &[pod.addr]), upstream(2, "a", &[pod.addr])];
    let report = kernel.sync(&mut ups.iter()).unwrap();
    let [shared] = report.shared[..] else { panic!("one address is shared: {report:?}") };
    assert_eq!((shared.addr, shared.owner, shared.other), (pod.addr, UpstreamId(2), UpstreamId(1)));
    visit(pod.addr, Manner::PodCloses);
    eventually("the first by name counts", || count(&kernel, 2) == (1, 1, 0));
    assert_eq!(count(&kernel, 1), (0, 0, 0));
}
