//! Which connections count, for whom, and from when on.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use dataplane::count::Origins;
use interceptor_core::{UpstreamId, network::Network};
use socket2::{Domain, Socket, Type};

use crate::node::{Node, eventually, pair};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const PROBE: &[u8] =
    b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\n\r\n";

/// Connects from an address of its own.
fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// One exchange on a connection from there.
fn exchange(from: [u8; 4], listener: &TcpListener, request: &[u8], times: usize) {
    let mut client = connect(from, listener.local_addr().unwrap());
    let (mut server, _) = listener.accept().unwrap();
    for _ in 0..times {
        client.write_all(request).unwrap();
        server.read_exact(&mut vec![0; request.len()]).unwrap();
        server.write_all(OK).unwrap();
        client.read_exact(&mut [0; OK.len()]).unwrap();
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn only_the_listed_ports_of_a_pod_count_and_its_own_connections_do_not() {
    let mut node = Node::new();
    let listed = node.listen(1, "a1", "127.0.8.1:0");
    let other = node.socket_of("a1", || TcpListener::bind("127.0.8.1:0").unwrap());
    let elsewhere = TcpListener::bind("127.0.8.1:0").unwrap();
    exchange([127, 0, 9, 1], &listed, GET, 1);
    exchange([127, 0, 9, 1], &other, GET, 1);
    let outgoing = node.socket_of("a1", || TcpStream::connect(elsewhere.local_addr().unwrap()).unwrap());
    drop((outgoing, elsewhere.accept().unwrap()));
    let served = node.settles(1);
    assert_eq!((served.requests(), served.opened), (1, 1));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn each_pods_connections_count_for_its_own_route() {
    let mut node = Node::new();
    let pods =
        [node.listen(1, "a1", "127.0.8.1:0"), node.listen(1, "a2", "127.0.8.2:0"), node.listen(2, "b1", "127.0.8.3:0")];
    for (times, pod) in (1..).zip(&pods) {
        for _ in 0..times {
            exchange([127, 0, 9, 1], pod, GET, 2);
        }
    }
    assert_eq!((node.settles(1).requests(), node.settles(2).requests()), (6, 6));
    assert_eq!((node.counted(1).opened, node.counted(2).opened), (3, 3));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn connections_of_interceptors_and_of_what_a_route_ignores_are_left_out() {
    let mut node = Node::new();
    let (one, two) = (node.listen(1, "a1", "127.0.8.1:0"), node.listen(2, "b1", "127.0.8.2:0"));
    let network: Network = "127.0.10.0/24".parse().unwrap();
    node.origins(&Origins {
        own: Vec::new(),
        interceptors: vec!["127.0.9.9".parse().unwrap()],
        ignored: vec![(UpstreamId(2), network)],
        probes: Vec::new(),
    });
    for listener in [&one, &two] {
        for from in [[127, 0, 9, 9], [127, 0, 10, 1], [127, 0, 9, 1]] {
            exchange(from, listener, GET, 3);
        }
    }
    assert_eq!((node.settles(1).requests(), node.settles(2).requests()), (6, 3));
    node.origins(&Origins::default());
    exchange([127, 0, 9, 9], &two, GET, 1);
    assert_eq!(node.settles(2).requests(), 4, "an interceptor that has gone leaves its address to others");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_kubelets_probes_are_no_demand_and_other_clients_of_its_machine_are() {
    let mut node = Node::new();
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    node.origins(&Origins { own: vec!["127.0.9.1".parse().unwrap()], ..Origins::default() });
    for _ in 0..10 {
        drop((connect([127, 0, 9, 1], listener.local_addr().unwrap()), listener.accept().unwrap()));
        exchange([127, 0, 9, 1], &listener, PROBE, 1);
    }
    let served = node.settles(1);
    assert_eq!((served.requests(), served.opened, served.last_ns == 0), (0, 0, false), "{served:?}");
    exchange([127, 0, 9, 1], &listener, GET, 2);
    exchange([127, 0, 9, 2], &listener, PROBE, 1);
    let served = node.settles(1);
    assert_eq!((served.requests(), served.opened), (3, 2), "only this machine's kubelet is believed");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_agents_ask_is_no_demand_whichever_node_they_are_on() {
    const HTTP1: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: 10.0.0.1:8080\r\nuser-agent: mine\r\nrouse: probe\r\n\r\n";
    const HTTP2: &[u8] =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0\0\x02\0\0\0\0\0\x04\0rou\0\x05\0\0\x40\0\
                           \0\0\x01\x01\x05\0\0\0\x01\x82";
    let mut node = Node::new();
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    node.origins(&Origins { own: vec!["127.0.9.1".parse().unwrap()], ..Origins::default() });
    for from in [[127, 0, 9, 1], [127, 0, 9, 2]] {
        exchange(from, &listener, HTTP1, 1);
        exchange(from, &listener, HTTP2, 1);
    }
    exchange([127, 0, 9, 2], &listener, GET, 1);
    assert_eq!(node.settles(1).requests(), 1);
    // Another one's settings are a client's.
    let mut other = HTTP2.to_vec();
    other[44] = b'!';
    exchange([127, 0, 9, 2], &listener, &other, 1);
    assert_eq!(node.settles(1).requests(), 2);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn connections_older_than_the_programs_count_from_their_next_bytes_to_their_end() {
    let mut node = Node::new();
    let listener = node.socket_of("a1", || TcpListener::bind("127.0.8.1:0").unwrap());
    let mut old: Vec<_> = (0..3).map(|_| pair(&listener)).collect();
    node.list(1, "a1", listener.local_addr().unwrap());
    assert_eq!(node.connections(1), (0, 0, 0));
    for (client, server) in &mut old {
        client.write_all(GET).unwrap();
        server.read_exact(&mut [0; GET.len()]).unwrap();
    }
    assert_eq!((node.requests(1), node.connections(1)), ((3, 3), (3, 0, 0)));
    for (client, server) in &mut old {
        server.write_all(OK).unwrap();
        client.read_exact(&mut [0; OK.len()]).unwrap();
    }
    assert_eq!(node.requests(1), (3, 0));
    drop(old);
    assert_eq!(node.settles(1).closed, 3);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_connection_that_was_there_before_its_address_was_listed_counts_from_then_on() {
    let mut node = Node::new();
    let first = node.listen(1, "a1", "127.0.8.1:0");
    let second = node.socket_of("a1", || TcpListener::bind("127.0.8.1:0").unwrap());
    let (mut client, mut server) = pair(&second);
    let mut ask = || {
        client.write_all(GET).unwrap();
        server.read_exact(&mut [0; GET.len()]).unwrap();
        server.write_all(OK).unwrap();
        client.read_exact(&mut [0; OK.len()]).unwrap();
    };
    ask();
    assert_eq!(node.requests(2).0, 0);
    node.list(2, "a1", second.local_addr().unwrap());
    ask();
    assert_eq!((node.requests(2), node.requests(1)), ((1, 0), (0, 0)));
    drop(first);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_pod_that_is_listed_no_more_is_counted_until_its_cgroup_goes() {
    let mut node = Node::new();
    let stays = node.listen(1, "a2", "127.0.8.2:0");
    let leaves = node.listen(1, "a1", "127.0.8.1:0");
    let (mut client, mut server) = pair(&leaves);
    node.unlist(leaves.local_addr().unwrap());
    client.write_all(GET).unwrap();
    server.read_exact(&mut [0; GET.len()]).unwrap();
    assert_eq!(node.requests(1), (1, 1), "the old connection");
    exchange([127, 0, 9, 1], &leaves, GET, 1);
    assert_eq!(node.requests(1), (1, 1), "a new one is nobody's");
    drop((client, server, leaves));
    node.settles(1);
    let folder = node.folder("a1");
    fs::remove_dir(folder.join("container")).unwrap();
    fs::remove_dir(folder).unwrap();
    assert_eq!(node.count.follow().unwrap().gone, 1);
    assert_eq!(node.count.pods().collect::<Vec<_>>(), ["a2"]);
    drop(stays);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_pod_is_attached_to_as_soon_as_its_cgroup_appears() {
    let mut node = Node::new();
    let mut changes = dataplane::pods::Changes::new();
    changes.watch(&node.count.follow().unwrap().parents);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = node.folder("a1");
    let started = tokio::time::Instant::now();
    runtime.block_on(changes.changed());
    assert!(started.elapsed().as_millis() < 1000, "the kernel tells, and nobody has to look");
    assert!(folder.exists());
    let addr: SocketAddr = "127.0.8.1:4000".parse().unwrap();
    node.list(1, "a1", addr);
    assert_eq!(node.count.pods().collect::<Vec<_>>(), ["a1"]);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn thousands_of_connections_from_many_threads_leave_nothing_over() {
    let mut node = Node::new();
    let listener = node.listen(1, "a1", "127.0.8.1:0");
    let addr = listener.local_addr().unwrap();
    let (threads, rounds, turns) = (4, 300, 3);
    thread::spawn(move || {
        while let Ok((mut server, _)) = listener.accept() {
            thread::spawn(move || {
                let mut request = [0; GET.len()];
                while server.read_exact(&mut request).is_ok() {
                    if server.write_all(OK).is_err() {
                        return;
                    }
                }
            });
        }
    });
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..rounds {
                    let mut client = TcpStream::connect(addr).unwrap();
                    for _ in 0..turns {
                        client.write_all(GET).unwrap();
                        client.read_exact(&mut [0; OK.len()]).unwrap();
                    }
                }
            });
        }
    });
    let connections = threads * rounds;
    eventually("all are closed", || node.connections(1) == (connections, connections, 0));
    assert_eq!(node.settles(1).requests(), connections * turns);
}
