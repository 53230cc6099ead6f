//! A connection counts for the upstream whose address its own is now, and until it ends, also if nobody wants it counted any more.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
};

use dataplane::count::Origins;
use interceptor_core::{UpstreamId, network::Network};

use crate::node::{Bpffs, Node, eventually, pair};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
/// What a client of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Sends and waits until it has arrived, so that the kernel has seen it.
fn send(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).unwrap();
    to.read_exact(&mut vec![0; bytes.len()]).unwrap();
}

/// The header of a frame without content.
fn frame(kind: u8, flags: u8, stream: u8) -> [u8; 9] {
    [0, 0, 0, kind, flags, 0, 0, 0, stream]
}

/// A pod that upstream 1 lists, and a connection to it.
fn one(node: &mut Node) -> (TcpListener, TcpStream, TcpStream) {
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    let (client, server) = pair(&listener);
    (listener, client, server)
}

/// The same pod is listed by another upstream alone, in a snapshot later than that in which the first one goes.
fn hand_over(node: &mut Node, listener: &TcpListener, to: u32) {
    let addr = listener.local_addr().unwrap();
    node.unlist(addr);
    node.list(to, "a1", addr);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn requests_of_a_kept_connection_count_for_the_slot_that_its_address_has_come_to() {
    let mut node = Node::new();
    let (listener, mut client, mut server) = one(&mut node);
    send(&mut client, &mut server, GET);
    send(&mut server, &mut client, OK);
    send(&mut client, &mut server, GET);
    assert_eq!((node.requests(1), node.connections(1)), ((2, 1), (1, 0, 0)));
    hand_over(&mut node, &listener, 2);
    assert_eq!((node.requests(2), node.connections(2)), ((0, 0), (0, 0, 0)), "nothing has moved yet");
    send(&mut server, &mut client, OK);
    assert_eq!((node.requests(2), node.connections(2)), ((0, 0), (1, 0, 0)), "the request was the other's");
    for number in 1..=3 {
        send(&mut client, &mut server, GET);
        assert_eq!(node.requests(2), (number, 1));
        send(&mut server, &mut client, OK);
        assert_eq!(node.requests(2), (number, 0));
    }
    drop((client, server));
    let sum = node.settles(2);
    assert_eq!((sum.requests(), sum.opened, sum.failed), (3, 1, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_request_under_way_keeps_the_new_slot_busy_until_it_is_answered() {
    let mut node = Node::new();
    let (listener, mut client, mut server) = one(&mut node);
    send(&mut client, &mut server, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n");
    // Another route of the same pod, whose owner goes: the address is never without a slot.
    let addr = listener.local_addr().unwrap();
    node.list(2, "a1", addr);
    assert_eq!((node.requests(1), node.requests(2)), ((1, 1), (0, 0)));
    node.unlist_of(1, addr);
    send(&mut client, &mut server, b"body");
    assert_eq!(node.requests(2), (0, 1), "in flight, and not a new one");
    send(&mut client, &mut server, b"end.s");
    send(&mut server, &mut client, OK);
    assert_eq!(node.requests(2), (0, 0));
    drop((client, server));
    assert_eq!(node.settles(2).failed, 0);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_connection_that_its_pod_has_closed_halfway_counts_on_where_it_was() {
    let mut node = Node::new();
    let (_listener, mut client, mut server) = one(&mut node);
    send(&mut client, &mut server, GET);
    send(&mut server, &mut client, OK);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let _other = node.listen(2, "b1", "127.0.8.2:0");
    send(&mut client, &mut server, GET);
    assert_eq!((node.requests(1), node.connections(1)), ((2, 1), (1, 0, 0)));
    drop((client, server));
    assert_eq!(node.settles(1).failed, 1);
}

#[test]
#[ignore = "needs root and Linux 5.17: run by cargo xtask test"]
fn open_streams_of_http2_go_along() {
    let mut node = Node::new();
    let (listener, mut client, mut server) = one(&mut node);
    assert_eq!(node.count.without_http2(), None);
    send(&mut client, &mut server, PREFACE);
    send(&mut client, &mut server, &[[0, 0, 1, 1, 4, 0, 0, 0, 1].as_slice(), b"\x82"].concat());
    send(&mut client, &mut server, &[[0, 0, 1, 1, 4, 0, 0, 0, 3].as_slice(), b"\x82"].concat());
    assert_eq!(node.requests(1), (2, 2));
    hand_over(&mut node, &listener, 2);
    send(&mut server, &mut client, &frame(0, 1, 1));
    assert_eq!(node.requests(2), (0, 1), "one has ended");
    send(&mut client, &mut server, &[[0, 0, 1, 1, 4, 0, 0, 0, 5].as_slice(), b"\x82"].concat());
    assert_eq!(node.requests(2), (1, 2));
    send(&mut server, &mut client, &frame(0, 1, 5));
    send(&mut server, &mut client, &frame(0, 1, 3));
    assert_eq!(node.requests(2), (1, 0));
    drop((client, server));
    node.settles(2);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_client_that_the_new_route_leaves_out_counts_no_more() {
    let mut node = Node::new();
    let (listener, mut client, mut server) = one(&mut node);
    send(&mut client, &mut server, GET);
    let addr = listener.local_addr().unwrap();
    node.list(2, "a1", addr);
    let network: Network = "127.0.0.0/8".parse().unwrap();
    node.unlist_of(1, addr);
    node.origins(&Origins { ignored: vec![(UpstreamId(2), network)], ..Origins::default() });
    send(&mut server, &mut client, OK);
    send(&mut client, &mut server, GET);
    assert_eq!((node.requests(2), node.connections(2)), ((0, 0), (0, 0, 0)));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_route_that_is_made_anew_goes_on_with_what_is_open_and_knows_what_has_ended() {
    let mut node = Node::new();
    let (listener, mut client, mut server) = one(&mut node);
    let addr = listener.local_addr().unwrap();
    let (mut hangs, mut hung) = pair(&listener);
    send(&mut client, &mut server, GET);
    send(&mut hangs, &mut hung, GET);
    assert_eq!((node.requests(1), node.connections(1)), ((2, 2), (2, 0, 0)));
    node.unlist(addr);
    node.count.follow().unwrap();
    send(&mut server, &mut client, OK);
    drop((client, server));
    node.list(1, "a1", addr);
    eventually("one has ended while there was no route", || node.connections(1) == (2, 1, 0));
    assert_eq!(node.requests(1), (2, 1), "nobody has said anything on the other one");
    assert_eq!(node.count.pods().collect::<Vec<_>>(), ["a1"]);
    let (mut client, mut server) = pair(&listener);
    send(&mut client, &mut server, GET);
    assert_eq!(node.requests(1), (3, 2), "it is counted once");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_pod_whose_route_has_gone_is_let_go_when_its_last_connection_has_ended() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    let (listener, client, server) = one(&mut node);
    for replaced in [false, true] {
        node.unlist(listener.local_addr().unwrap());
        if replaced {
            node.replace();
        }
        node.count.follow().unwrap();
        assert_eq!(bpffs.links(), ["accepted-a1", "received-a1", "sent-a1"], "by another process: {replaced}");
    }
    drop((client, server));
    eventually("it is let go", || {
        node.count.follow().unwrap();
        bpffs.links().is_empty()
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn cgroups_are_looked_at_again_only_where_other_pods_are_wanted() {
    let mut node = Node::new();
    assert!(node.count.wants_others(), "none was looked for");
    let (listener, _client, _server) = one(&mut node);
    assert!(!node.count.wants_others());
    node.list_elsewhere(1, "127.0.8.9:80".parse().unwrap());
    assert!(!node.count.wants_others(), "it is another node's");
    node.list(1, "a1", ([127, 0, 8, 1], 1).into());
    assert!(!node.count.wants_others(), "another port of the same");
    node.unlist(listener.local_addr().unwrap());
    node.unlist(([127, 0, 8, 1], 1).into());
    assert!(node.count.wants_others());
}

/// A connection of a pod that has gone; its client takes nothing, so that the kernel goes on with it alone.
fn orphan(node: &mut Node) -> TcpStream {
    let (listener, client, server) = one(node);
    server.set_nonblocking(true).unwrap();
    while (&server).write(&[0; 1 << 14]).is_ok() {}
    drop((listener, server));
    assert_eq!(node.connections(1), (1, 0, 0));
    client
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_end_of_a_connection_that_has_outlived_its_pod_is_seen() {
    let mut node = Node::new();
    let client = orphan(&mut node);
    node.remove("a1");
    assert_eq!(node.count.pods().count(), 0);
    node.count.repair().unwrap();
    assert_eq!(node.connections(1), (1, 0, 0), "it may still end");
    drop(client);
    node.settles(1);
    assert_eq!(node.connections(1), (1, 1, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_end_of_a_connection_that_has_outlived_its_pod_and_the_process_is_seen() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    let client = orphan(&mut node);
    node.end();
    node.remove("a1");
    node.replace();
    node.count.repair().unwrap();
    assert_eq!(node.connections(1), (1, 0, 0), "it may still end");
    drop(client);
    node.settles(1);
    assert_eq!(node.connections(1), (1, 1, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_nobody_can_tell_the_end_of_is_taken_for_ended_when_no_pod_is_left() {
    let bpffs = Bpffs::mount();
    let mut node = Node::pinned(bpffs.path());
    let (listener, mut client, mut server) = one(&mut node);
    let addr = listener.local_addr().unwrap();
    send(&mut client, &mut server, GET);
    node.list_elsewhere(1, "127.0.8.9:80".parse().unwrap());
    // Somebody takes the programs off, and the connection ends.
    node.end();
    bpffs.unlink();
    drop((client, server, listener));
    node.replace();
    node.count.repair().unwrap();
    assert_eq!((node.requests(1), node.connections(1)), ((1, 1), (1, 0, 0)), "the pod is there");
    node.remove("a1");
    node.unlist_of(1, addr);
    node.end();
    bpffs.unlink();
    node.replace();
    node.count.repair().unwrap();
    assert_eq!((node.requests(1), node.connections(1)), ((1, 0), (1, 1, 0)), "none is left, nor any program");
    node.replace();
    assert_eq!((node.requests(1), node.connections(1)), ((1, 0), (1, 1, 0)), "the next one knows it, too");
}
