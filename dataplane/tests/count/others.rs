//! Programs of others on the same cgroups, and segments that nobody would send.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use dataplane::{Direction, count::Count};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};

use crate::node::{Bpffs, Node, pair};

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
