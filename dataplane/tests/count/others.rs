//! Programs of others on the same cgroups, and segments that nobody would send.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
};

use dataplane::{Direction, count::Count};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};

use crate::{
    node::{Bpffs, Node, pair},
    theirs::Theirs,
};

fn exchange((client, server): &mut (TcpStream, TcpStream)) {
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    _ = server.read(&mut [0; 100]).unwrap();
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    _ = client.read(&mut [0; 100]).unwrap();
}

fn requests(count: &Count) -> u64 {
    count.counters().1.iter().map(|(_, served)| served.requests()).sum()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn programs_of_others_on_the_same_hooks_before_and_after_ours_change_nothing_and_lose_nothing() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    node.list(1, "a1", "127.0.8.1:1".parse().unwrap());
    // Ours are on the cgroup already: the first are after them, and before those that replace ours.
    let others = node.foreign();
    let listener = node.listen(1, "a1", "127.0.8.2:0");
    let mut connection = pair(&listener);
    exchange(&mut connection);
    assert_eq!((node.counted(1).requests(), requests(&others)), (1, 0), "they do not know the new address");
    node.end();
    std::fs::remove_dir_all(bpffs.path().join("rouse/count-1")).unwrap_or_default();
    Count::remove(Some(bpffs.path())).unwrap();
    let before = node.foreign();
    node.replace();
    let after = node.foreign();
    for _ in 0..3 {
        exchange(&mut pair(&listener));
    }
    assert_eq!((requests(&before), node.counted(1).requests(), requests(&after)), (3, 3, 3));
    drop((before, after));
    exchange(&mut connection);
    exchange(&mut pair(&listener));
    assert_eq!(node.counted(1).requests(), 5, "when the others have gone, ours are still there");
}

/// Somebody else's programs on all hooks that we use.
fn theirs(at: &Path, how: &str) -> [Theirs; 3] {
    ["received", "sent", "sock_ops"].map(|hook| Theirs::on_cgroup(at, &[hook, how]))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn programs_that_know_nothing_of_ours_are_run_and_change_nothing_wherever_they_are_and_whoever_came_first() {
    for (how, ours_first) in ["link", "multi"].into_iter().flat_map(|how| [(how, true), (how, false)]) {
        let mut node = Node::new();
        let folder = node.folder("a1");
        let attach = || [theirs(&folder, how), theirs(folder.parent().unwrap(), how)];
        let before = (!ours_first).then(attach);
        let listener = node.listen(1, "a1", "127.0.8.2:0");
        let theirs = before.unwrap_or_else(attach);
        for _ in 0..3 {
            exchange(&mut pair(&listener));
        }
        let served = node.settles(1);
        assert_eq!((served.requests(), served.opened), (3, 3), "{how}, ours first: {ours_first}");
        for mut theirs in theirs.into_iter().flatten() {
            assert!(theirs.runs() >= 3, "{how}, ours first: {ours_first}");
        }
        exchange(&mut pair(&listener));
        assert_eq!(node.settles(1).requests(), 4, "they have gone, and ours go on");
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn programs_above_a_pod_that_ours_would_put_out_of_force_stay_and_the_pod_is_not_counted() {
    for (hook, how, why) in [
        ("received", "override", "would no longer run"),
        ("sent", "override", "would no longer run"),
        ("sock_ops", "override", "would no longer run"),
        ("sock_ops", "alone", "Operation not permitted"),
    ] {
        let bpffs = Bpffs::mount();
        let mut node = Node::pinned(bpffs.path());
        let folder = node.folder("a1");
        let mut theirs = Theirs::on_cgroup(folder.parent().unwrap(), &[hook, how]);
        let listener = node.listen(1, "a1", "127.0.8.2:0");
        let refused: Vec<_> = node.count.refused().collect();
        let [("a1", said)] = refused[..] else { panic!("{hook}, {how}: {refused:?}") };
        assert!(said.contains(why), "{hook}, {how}: {said}");
        assert_eq!(bpffs.links(), [""; 0], "{hook}, {how}: nothing of ours is left there");
        exchange(&mut pair(&listener));
        assert!(theirs.runs() > 0, "{hook}, {how}: theirs goes on");
        drop(theirs);
        // Links go a moment after their pins, and may have seen the one above.
        let before = node.settles(1).requests();
        node.count.follow().unwrap();
        exchange(&mut pair(&listener));
        assert_eq!(node.settles(1).requests(), before + 1, "{hook}, {how}: it is counted when they have gone");
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn whatever_a_segment_is_made_of_it_passes() {
    let mut node = Node::new();
    // At least an Ethernet header, which the kernel takes off, and the least that it makes a packet of.
    let family = prop_oneof![Just([0x08, 0x00]), Just([0x86, 0xdd]), any::<[u8; 2]>()];
    let first = prop_oneof![Just(0x45), Just(0x60), any::<u8>()];
    let packets = (family, first, vec(any::<u8>(), 60..400)).prop_map(|(family, first, rest)| {
        let mut packet = [&[0; 12][..], &family, &[first], &rest].concat();
        // Half of them are TCP.
        if rest[0] & 1 == 1 {
            packet[14 + 9] = 6;
            packet[14 + 6] = 6;
        }
        packet
    });
    let node = std::cell::RefCell::new(&mut node);
    let ran = TestRunner::default().run(&packets, |packet| {
        for direction in [Direction::In, Direction::Out] {
            let passes = node.borrow_mut().count.passes(direction, &packet);
            prop_assert!(passes.unwrap());
        }
        Ok(())
    });
    ran.unwrap();
}
