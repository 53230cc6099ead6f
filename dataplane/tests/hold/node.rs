//! The node's own table and its devices, in a network namespace of the test's.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use dataplane::{Devices, Hold, Hooks, ROOM, What, devices};
use interceptor_common::hold::HEARTBEAT_NS;
use interceptor_core::frontends::{Heat, Table};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

/// How long anything may take before a test is taken to hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs in a network namespace of its own.
fn apart(test: impl FnOnce() + Send + 'static) {
    let ran = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a test that needs root may have its own network");
        test();
    });
    ran.join().unwrap();
}

fn hold() -> Hold {
    let mut hold = Hold::open(None, Hooks::Auto).expect("a test that needs root has the kernel");
    hold.hold_node().unwrap();
    hold
}

/// A Service with so many addresses, by turns of either family.
fn table(heat: Heat, addresses: usize) -> Table {
    let address = |n: usize| {
        let [.., a, b] = n.to_be_bytes();
        let text = if n.is_multiple_of(2) { format!("10.96.{a}.{b}:80") } else { format!("[fd00:96::{a}:{b}]:80") };
        (text.parse::<SocketAddr>().unwrap(), 7)
    };
    Table { services: [(7, heat)].into(), frontends: (0..addresses).map(address).collect() }
}

fn nft(args: &str) -> String {
    run("nft", args)
}

fn run(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split(' ')).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Begins to connect, and waits until that is held.
fn held(hold: &mut Hold, service: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(service), Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    assert_eq!(socket.connect(&service.into()).unwrap_err().raw_os_error(), Some(libc::EINPROGRESS), "{service}");
    let late = Instant::now() + PATIENCE;
    while !hold.seen().is_some_and(|seen| matches!(seen.what, What::Syn(syn) if syn.flow().service == service)) {
        assert!(Instant::now() < late, "{service} is not held");
        thread::park_timeout(Duration::from_millis(1));
    }
    socket
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_kernel_lets_the_last_sign_of_life_go_and_then_the_node_is_left_alone() {
    apart(|| {
        let services = [SocketAddr::from((Ipv4Addr::new(10, 96, 0, 0), 80)), "[fd00:96::1]:80".parse().unwrap()];
        run("ip", "link set lo up");
        for service in services {
            run("ip", &format!("address add {} dev lo nodad", service.ip()));
        }
        let mut hold = hold();
        hold.sync(&table(Heat::Cold, 2)).unwrap();
        let alive = nft("--json list set inet rouse alive");
        assert!(alive.contains(&format!("\"timeout\": {}", HEARTBEAT_NS / 1_000_000_000)), "{alive}");
        for service in services {
            held(&mut hold, service);
        }
        // The same elements, which go sooner.
        nft("flush set inet rouse alive");
        nft("add element inet rouse alive { ipv4 timeout 300ms, ipv6 timeout 300ms }");
        for service in services {
            // The kernel repeats the packet until it passes.
            let error = TcpStream::connect_timeout(&service, PATIENCE).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{service}");
        }
        hold.beat().unwrap();
        for service in services {
            held(&mut hold, service);
        }
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn as_many_addresses_fit_into_the_nodes_table_as_into_the_maps() {
    apart(|| {
        let mut hold = hold();
        for heat in [Heat::Cold, Heat::Warm, Heat::Cold] {
            hold.sync(&table(heat, ROOM.frontends)).unwrap();
            assert_eq!(hold.repair().unwrap(), 0, "all of them are there, and no others");
        }
        // Another agent puts its own in their place.
        drop(hold);
        let mut next = self::hold();
        next.sync(&table(Heat::Cold, 10)).unwrap();
        assert_eq!(next.repair().unwrap(), 0);
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_large_change_that_the_kernel_refuses_is_not_taken_for_done() {
    apart(|| {
        let mut hold = hold();
        hold.sync(&table(Heat::Cold, 2_000)).unwrap();
        // What is not there cannot be taken out, so that nothing else is either.
        nft("flush set inet rouse cold4");
        hold.sync(&table(Heat::Warm, 2_000)).unwrap();
        assert_eq!(hold.repair().unwrap(), 0, "what was refused was done in another way");
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_somebody_does_to_the_nodes_table_is_found_and_mended() {
    apart(|| {
        let mut hold = hold();
        hold.sync(&table(Heat::Cold, 6)).unwrap();
        for (change, drifted) in [
            ("delete element inet rouse cold4 { 10.96.0.0 . 80 }", 1),
            ("add element inet rouse cold6 { fd00::1 . 1 }", 1),
            ("flush chain inet rouse output", 5),
            ("delete table inet rouse", 6 + 12),
        ] {
            nft(change);
            assert_eq!(hold.repair().unwrap(), drifted, "{change}");
            assert_eq!(hold.repair().unwrap(), 0, "{change}");
        }
        nft("delete table inet rouse");
        hold.beat().unwrap();
        assert_eq!(hold.repair().unwrap(), 0, "a sign of life brings it back");
        hold.leave_node().unwrap();
        assert!(!Command::new("nft").args(["list", "table", "inet", "rouse"]).status().unwrap().success());
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn only_one_can_hold_connections_of_the_node() {
    apart(|| {
        let _first = hold();
        let mut second = Hold::open(None, Hooks::Auto).unwrap();
        let why = second.hold_node().unwrap_err().to_string();
        assert!(why.contains("log group"), "{why}");
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_leaves_by_a_device_is_looked_at_only_while_something_of_it_is_tried() {
    apart(|| {
        let devices = client();
        let index = *devices.keys().next().unwrap();
        // Filters are easily looked at.
        let mut hold = Hold::open(None, Hooks::Filters).expect("a test that needs root has the kernel");
        assert_eq!(hold.devices(&devices).names, ["client0"]);
        assert_eq!(filters(), [1, 0]);
        hold.expect_answers(index).unwrap();
        assert_eq!(filters(), [1, 1]);
        hold.rest(&BTreeSet::new());
        assert_eq!(filters(), [1, 1], "something has been tried");
        hold.rest(&[index].into());
        assert_eq!(filters(), [1, 1], "something waits");
        hold.rest(&BTreeSet::new());
        assert_eq!(filters(), [1, 0]);
        hold.expect_answers(index).unwrap();
        assert_eq!(filters(), [1, 1]);
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_filter_that_somebody_has_taken_off_is_back_after_a_repair() {
    apart(|| {
        let devices = client();
        let mut hold = Hold::open(None, Hooks::Filters).expect("a test that needs root has the kernel");
        hold.devices(&devices);
        hold.expect_answers(*devices.keys().next().unwrap()).unwrap();
        run("tc", "qdisc del dev client0 clsact");
        assert_eq!(filters(), [0, 0]);
        for _ in 0..2 {
            hold.repair().unwrap();
            assert_eq!(filters(), [1, 1]);
        }
        drop(hold);
        assert_eq!(filters(), [0, 0]);
    });
}

/// A new device, of a client.
fn client() -> Devices {
    run("ip", "link add client0 type veth peer name eth0");
    run("ip", "link set client0 up");
    devices().unwrap().into_iter().filter(|(_, device)| device.name == "client0").collect()
}

/// How many of our filters there are on the device, on the way in and on the way out.
fn filters() -> [usize; 2] {
    ["ingress", "egress"].map(|side| {
        let shown = Command::new("tc").args(["filter", "show", "dev", "client0", side]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap().lines().filter(|line| line.contains("hold_")).count()
    })
}
