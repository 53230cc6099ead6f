//! What the programs tell at once.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
};

use dataplane::count::Told;
use interceptor_core::UpstreamId;

use crate::node::{Node, eventually, pair};

/// What is told within a time, but for what the test did not ask for.
fn told(node: &mut Node, wanted: impl Fn(&Told) -> bool) -> bool {
    std::iter::from_fn(|| node.count.told()).any(|told| wanted(&told))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_pod_that_begins_to_listen_is_told_of_with_its_address_and_port() {
    let mut node = Node::new();
    node.list(1, "a1", "127.0.8.1:1".parse().unwrap());
    for addr in ["127.0.8.1:0", "0.0.0.0:0", "[::]:0", "[::1]:0"] {
        let listener = node.socket_of("a1", || TcpListener::bind(addr).unwrap());
        let listens = listener.local_addr().unwrap();
        assert!(told(&mut node, |told| matches!(told, Told::Listens { addr, .. } if *addr == listens)), "{listens}");
    }
    drop(TcpListener::bind("127.0.8.1:0").unwrap());
    assert_eq!(node.count.told(), None, "who listens elsewhere is none of ours");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn pods_at_rest_are_told_of_once_when_they_have_something_to_do() {
    let mut node = Node::new();
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    let busy = |told: &Told| *told == Told::Busy(UpstreamId(1));
    let (mut client, mut server) = pair(&listener);
    let mut exchange = || {
        client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        _ = server.read(&mut [0; 100]).unwrap();
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        _ = client.read(&mut [0; 100]).unwrap();
    };
    exchange();
    assert!(!told(&mut node, busy), "nobody has asked");
    for _ in 0..2 {
        node.count.rest(UpstreamId(1)).unwrap();
        exchange();
        exchange();
        eventually("it is told", || told(&mut node, busy));
        assert!(!told(&mut node, busy), "once");
    }
    assert_eq!(node.count.untold(), 0);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn notices_that_have_no_room_are_counted_and_cost_nothing_else() {
    let mut node = Node::new();
    node.list(1, "a1", "127.0.8.1:1".parse().unwrap());
    let listeners = node.socket_of("a1", || {
        for _ in 0..3000 {
            drop(TcpListener::bind("127.0.8.1:0").unwrap());
        }
        TcpListener::bind("127.0.8.1:0").unwrap()
    });
    let mut read = 0;
    while node.count.told().is_some() {
        read += 1;
    }
    assert_eq!(read + node.count.untold(), 3001);
    assert!(read < 3001 && read > 1000, "{read}: the room is for some hundreds");
    drop(listeners);
    let listener = node.socket_of("a1", || TcpListener::bind("127.0.8.1:0").unwrap());
    let listens = listener.local_addr().unwrap();
    assert!(told(&mut node, |told| matches!(told, Told::Listens { addr, .. } if *addr == listens)), "room again");
}
