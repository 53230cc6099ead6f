//! Steering of what processes in pods' cgroups connect to, on loopback.
#![cfg(ebpf_object)]
#![expect(clippy::unwrap_used, reason = "tests: the lint knows only functions that bear the attribute")]

mod node;
mod others;
mod pins;
#[path = "../theirs/program.rs"]
mod theirs;

use std::{
    collections::BTreeSet,
    io::ErrorKind::ConnectionRefused,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use dataplane::{monotonic, steer::Steer};
use interceptor_common::{hold::HEARTBEAT_NS, steer::INTERCEPTORS};
use socket2::{Domain, Socket, Type};

use self::node::{Node, SERVICE, SERVICE6, interceptors, lead, ports, steer};

/// Asserts that a connection of a pod's is refused, as by whoever is at the address itself.
fn refused(node: &Node, to: &str) {
    assert_eq!(node.connect(to).unwrap_err().kind(), ConnectionRefused, "{to}");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_connection_to_a_cold_service_reaches_an_interceptor_and_its_client_sees_the_service() {
    let node = Node::new();
    let (port, [four, six]) = interceptors(["127.0.9.1", "::1"]);
    let steer = steer(&node, port, &["127.0.9.1", "::1"]);
    for (to, interceptor) in [(SERVICE, &four), (SERVICE6, &six), ("[::ffff:127.0.10.1]:80", &four)] {
        let client = node.connect(to).unwrap();
        let (accepted, from) = interceptor.accept().unwrap();
        let local = client.local_addr().unwrap();
        assert_eq!(from, SocketAddr::new(local.ip().to_canonical(), local.port()), "{to}");
        assert_eq!(client.peer_addr().unwrap().to_string(), to, "the client is told what it asked for");
        assert_eq!(accepted.peer_addr().unwrap(), from, "others are told the truth");
    }
    let stats = steer.stats().unwrap();
    assert_eq!((stats.steered, stats.seen_through, stats.nobody), (3, 0, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn connections_are_spread_over_the_interceptors() {
    let node = Node::new();
    let (port, listeners) = interceptors(["127.0.9.1", "127.0.9.2", "127.0.9.3"]);
    let _steer = steer(&node, port, &["127.0.9.1", "127.0.9.2", "127.0.9.3"]);
    let clients: Vec<_> = (0..90).map(|_| node.connect(SERVICE).unwrap()).collect();
    let taken = listeners.map(|listener| {
        listener.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| listener.accept().ok()).count()
    });
    assert_eq!(taken.iter().sum::<usize>(), clients.len());
    assert!(taken.iter().all(|taken| *taken > 5), "{taken:?} of 90 at three interceptors");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn whatever_else_connects_is_left_alone() {
    let node = Node::new();
    let (port, [interceptor]) = interceptors(["127.0.9.1"]);
    let mut steer = steer(&node, port, &["127.0.9.1"]);
    refused(&node, "127.0.10.1:81");
    refused(&node, "127.0.10.2:80");
    refused(&node, SERVICE6);
    let outside = node.outside(|| TcpStream::connect(SERVICE));
    assert_eq!(outside.unwrap_err().kind(), ConnectionRefused, "it is in no pod");
    let datagrams = node.within("a", || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(SERVICE).unwrap();
        socket.peer_addr().unwrap()
    });
    assert_eq!(datagrams.to_string(), SERVICE);
    assert_eq!(steer.stats().unwrap().steered, 0);
    assert_eq!(steer.stats().unwrap().nobody, 1, "there is no interceptor of IPv6");
    steer.sync(&ports(&[])).unwrap();
    refused(&node, SERVICE);
    lead(&mut steer, port, &["127.0.9.1"]);
    node.connect(SERVICE).unwrap();
    interceptor.accept().unwrap();
    lead(&mut steer, port, &[]);
    refused(&node, SERVICE);
    lead(&mut steer, port, &["127.0.9.1"]);
    assert_eq!(steer.attach(&[]), []);
    refused(&node, SERVICE);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_interceptors_connect_to_themselves_is_left_alone() {
    let node = Node::new();
    let (port, [_interceptor]) = interceptors(["127.0.9.1"]);
    let mut steer = steer(&node, port, &["127.0.9.1"]);
    let connect = |uid: &str| node.within(uid, || TcpStream::connect(SERVICE)).map(drop).map_err(|error| error.kind());
    assert_eq!(connect("b"), Ok(()));
    assert_eq!(steer.leave_out(&[node.pod("b")]).unwrap(), 0);
    assert_eq!(connect("b"), Err(ConnectionRefused));
    assert_eq!(connect("a"), Ok(()));
    assert_eq!(steer.leave_out(&[]).unwrap(), 0);
    assert_eq!(connect("b"), Ok(()));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn without_a_sign_of_life_everything_is_left_alone() {
    let node = Node::new();
    let (port, [_interceptor]) = interceptors(["127.0.9.1"]);
    let mut steer = steer(&node, port, &["127.0.9.1"]);
    let (silence, second) = (Duration::from_nanos(HEARTBEAT_NS), Duration::from_secs(1));
    steer.beat_as_of((monotonic() + second).saturating_sub(silence)).unwrap();
    node.connect(SERVICE).unwrap();
    steer.beat_as_of(monotonic().saturating_sub(silence + second)).unwrap();
    refused(&node, SERVICE);
    steer.beat().unwrap();
    node.connect(SERVICE).unwrap();
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_socket_that_connects_anew_is_told_of_its_new_peer() {
    let node = Node::new();
    let (port, [interceptor]) = interceptors(["127.0.9.1"]);
    let _steer = steer(&node, port, &["127.0.9.1"]);
    drop(interceptor);
    let listener = TcpListener::bind("127.0.9.4:0").unwrap();
    let other = listener.local_addr().unwrap();
    let peer = node.within("a", || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let service: SocketAddr = SERVICE.parse().unwrap();
        assert_eq!(socket.connect(&service.into()).unwrap_err().kind(), ConnectionRefused);
        socket.connect(&other.into()).unwrap();
        socket.peer_addr().unwrap().as_socket().unwrap()
    });
    assert_eq!(peer, other);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_list_that_changes_leads_nowhere_else_in_between() {
    let node = Node::new();
    let (port, listeners) = interceptors(["127.0.9.1", "127.0.9.2"]);
    let mut steer = steer(&node, port, &["127.0.9.1", "127.0.9.2"]);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut connected = 0;
            while !ended.load(Relaxed) {
                node.connect(SERVICE).unwrap();
                connected += 1;
            }
            connected
        });
        for listener in &listeners {
            listener.set_nonblocking(true).unwrap();
        }
        let mut taken = 0;
        let mut round = 0_u32;
        while taken < 200 {
            let list: &[&str] = if round.is_multiple_of(2) { &["127.0.9.2"] } else { &["127.0.9.1", "127.0.9.2"] };
            lead(&mut steer, port, list);
            taken += listeners.iter().map(|it| std::iter::from_fn(|| it.accept().ok()).count()).sum::<usize>();
            round += 1;
        }
        ended.store(true, Relaxed);
        assert!(clients.join().unwrap() >= 200);
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn interceptors_beyond_the_maps_room_are_left_out_and_named() {
    let mut steer = Steer::open(None).unwrap();
    let most = usize::try_from(INTERCEPTORS).unwrap();
    let many: BTreeSet<IpAddr> = (0..300).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n).into()).collect();
    let listed = steer.interceptors(&many).unwrap();
    assert_eq!((listed.addresses.len(), listed.left_out), (most, 300 - most));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn maps_that_somebody_has_changed_are_mended() {
    let node = Node::new();
    let (port, [_interceptor]) = interceptors(["127.0.9.1"]);
    let mut steer = steer(&node, port, &["127.0.9.1"]);
    assert_eq!(steer.repair().unwrap(), 0);
    steer.tamper(SERVICE.parse().unwrap(), "127.0.10.2:80".parse().unwrap()).unwrap();
    refused(&node, SERVICE);
    assert_eq!(steer.repair().unwrap(), 2);
    node.connect(SERVICE).unwrap();
    refused(&node, "127.0.10.2:80");
}
