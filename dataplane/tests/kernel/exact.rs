//! The kernel's count of connections against what the peers saw: equal, over thousands of connections of every manner.

use std::{net::SocketAddr, os::fd::AsRawFd as _, process::Command, thread, time::Duration};

use dataplane::Dataplane as _;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    cell::{Cell, count, eventually},
    peers::{Closed, Manner, Pod, connect, visit},
    upstreams::upstream,
};

const THREADS: usize = 4;
const ROUNDS: usize = 480;

fn pod(last: u8) -> Pod {
    Pod::start(SocketAddr::from(([127, 0, 7, last], 0)))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn thousands_of_short_and_long_connections_resets_and_refusals_are_counted_exactly() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let pods = [pod(1), pod(2), pod(3)];
    let unlisted = pod(4);
    let closed = Closed::new([127, 0, 7, 5]);
    let ups = [
        upstream(10, "a", &[pods[0].addr, pods[1].addr]),
        upstream(11, "b", &[pods[2].addr]),
        upstream(12, "c", &[closed.addr]),
    ];
    kernel.sync(&mut ups.iter()).unwrap();

    let long: Vec<_> = pods.iter().flat_map(|pod| (0..50).map(|_| connect(pod.addr).unwrap())).collect();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let manner = Manner::ALL[round % Manner::ALL.len()];
                    for pod in &pods {
                        visit(pod.addr, manner);
                    }
                    visit(unlisted.addr, manner);
                    connect(closed.addr).unwrap_err();
                }
            });
        }
    });

    let visits = (THREADS * ROUNDS) as u64;
    eventually("short connections are closed", || {
        (count(&kernel, 10), count(&kernel, 11)) == ((2 * (visits + 50), 2 * visits, 0), (visits + 50, visits, 0))
    });
    assert_eq!(count(&kernel, 12), (0, 0, visits), "refusals are failures and nothing else");
    drop(long);
    for (id, of) in [(10, &pods[..2]), (11, &pods[2..])] {
        let saw = || of.iter().map(Pod::saw).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        eventually("all are closed", || count(&kernel, id).0 == count(&kernel, id).1 && saw().0 == saw().1);
        assert_eq!(count(&kernel, id), (saw().0, saw().1, 0), "the kernel's count is the pods'");
    }
    assert_eq!(unlisted.saw().0, visits, "connections to other addresses happened and were not counted");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn each_manner_of_ending_is_one_opened_and_one_closed() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let pod = pod(1);
    kernel.sync(&mut [upstream(1, "a", &[pod.addr])].iter()).unwrap();
    for (visits, manner) in (1..).zip(Manner::ALL) {
        visit(pod.addr, manner);
        eventually(&format!("{manner:?} is closed"), || count(&kernel, 1) == (visits, visits, 0));
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn half_closed_connections_are_open_until_both_sides_have_closed() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let listener = std::net::TcpListener::bind("127.0.7.9:0").unwrap();
    let addr = listener.local_addr().unwrap();
    kernel.sync(&mut [upstream(1, "a", &[addr])].iter()).unwrap();
    let client = connect(addr).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(count(&kernel, 1), (1, 0, 0));
    drop(server);
    eventually("the other half is closed", || count(&kernel, 1) == (1, 1, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn ipv6_and_ipv4_mapped_sockets_are_counted_like_ipv4() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let (four, six) = (pod(1), Pod::start("[::1]:0".parse().unwrap()));
    kernel.sync(&mut [upstream(1, "a", &[four.addr]), upstream(2, "b", &[six.addr])].iter()).unwrap();
    let std::net::IpAddr::V4(ip) = four.addr.ip() else { panic!("the first pod has an IPv4 address") };
    visit(SocketAddr::new(ip.to_ipv6_mapped().into(), four.addr.port()), Manner::PodCloses);
    visit(four.addr, Manner::PodCloses);
    visit(six.addr, Manner::PodCloses);
    eventually("three are closed", || (count(&kernel, 1), count(&kernel, 2)) == ((2, 2, 0), (1, 1, 0)));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn one_socket_that_connects_again_is_counted_each_time() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let (pod, closed) = (pod(1), Closed::new([127, 0, 7, 5]));
    kernel.sync(&mut [upstream(1, "a", &[pod.addr]), upstream(2, "b", &[closed.addr])].iter()).unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.connect(&closed.addr.into()).unwrap_err();
    socket.connect(&closed.addr.into()).unwrap_err();
    socket.connect(&pod.addr.into()).unwrap();
    assert_eq!((count(&kernel, 1), count(&kernel, 2)), ((1, 0, 0), (0, 0, 2)));
    drop(socket);
    eventually("it is closed", || count(&kernel, 1) == (1, 1, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn connections_into_a_black_hole_fail_when_they_time_out_or_are_given_up() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let hole: SocketAddr = "10.99.0.2:80".parse().unwrap();
    kernel.sync(&mut [upstream(1, "hole", &[hole])].iter()).unwrap();
    let kernel = &kernel;
    // A network namespace belongs to a thread, and goes with it.
    thread::scope(|scope| {
        scope.spawn(|| {
            black_hole();
            let given_up: Vec<_> = (0..200).map(|_| begin(hole)).collect();
            assert_eq!(count(kernel, 1), (0, 0, 0), "nothing is known yet");
            drop(given_up);
            assert_eq!(count(kernel, 1), (0, 0, 200));
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            SockRef::from(&socket).set_tcp_user_timeout(Some(Duration::from_millis(200))).unwrap();
            let error = socket.connect(&hole.into()).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
            assert_eq!(count(kernel, 1), (0, 0, 201));
        });
    });
}

fn begin(addr: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let error = socket.connect(&addr.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "descriptor {}", socket.as_raw_fd());
    socket
}

/// Moves this thread into a network namespace where a neighbour is known that is not there.
fn black_hole() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for command in [
        "link add hole type veth peer name other",
        "link set hole up",
        "link set other up",
        "addr add 10.99.0.1/24 dev hole",
        "neigh add 10.99.0.2 lladdr 02:00:00:00:00:02 dev hole",
    ] {
        let status = Command::new("ip").args(command.split(' ')).status().unwrap();
        assert!(status.success(), "ip {command}: {status}");
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn two_on_one_cgroup_count_the_same_and_the_one_that_stays_goes_on() {
    let cell = Cell::enter();
    let (mut one, mut two) = (cell.open(), cell.open());
    let pod = pod(1);
    for kernel in [&mut one, &mut two] {
        kernel.sync(&mut [upstream(1, "a", &[pod.addr])].iter()).unwrap();
    }
    let held = connect(pod.addr).unwrap();
    visit(pod.addr, Manner::PodCloses);
    eventually("both have counted it", || (count(&one, 1), count(&two, 1)) == ((2, 1, 0), (2, 1, 0)));
    drop(one);
    drop(held);
    eventually("the other goes on", || count(&two, 1) == (2, 2, 0));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn round_trip_time_and_activity_are_told() {
    let cell = Cell::enter();
    let mut kernel = cell.open();
    let pod = pod(1);
    kernel.sync(&mut [upstream(1, "a", &[pod.addr])].iter()).unwrap();
    assert!(kernel.counters().is_empty() || kernel.counters()[0].1.last_activity.is_none());
    for _ in 0..20 {
        visit(pod.addr, Manner::Echo);
    }
    let (_, counters) = kernel.counters()[0];
    assert!((1..1_000_000).contains(&counters.srtt_us), "{counters:?}");
    assert!(counters.last_activity.is_some_and(|ago| ago < Duration::from_mins(1)), "{counters:?}");
}
