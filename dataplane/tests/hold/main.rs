//! The hold's programs, run by the kernel on frames that a test makes; they are attached nowhere.
#![cfg(ebpf_object)]
#![expect(clippy::unwrap_used, reason = "tests: the lint knows only functions that bear the attribute")]

mod frames;
mod node;

use std::{net::SocketAddr, time::Duration};

use dataplane::{Direction, Hold, Hooks, Origin, SendError, What, monotonic};
use interceptor_common::hold::{HEARTBEAT_NS, MARK};
use interceptor_core::{
    frontends::{Heat, Table},
    holding::Flow,
};

use self::frames::{ACK, RST, SYN, tcp};

const CLIENTS: [&str; 2] = ["10.244.1.9:40000", "[fd00:244::9]:40000"];
const SERVICES: [&str; 2] = ["10.96.0.1:80", "[fd00:96::1]:80"];

/// A hold that knows a Service of two addresses.
fn hold(heat: Heat) -> Hold {
    let mut hold = Hold::open(None, Hooks::Auto).expect("a test that needs root has the kernel");
    let frontends = SERVICES.map(|address| (address.parse().unwrap(), 7));
    hold.sync(&Table { services: [(7, heat)].into(), frontends: frontends.into() }).unwrap();
    hold.beat().unwrap();
    hold
}

/// Client and Service of each family.
fn flows() -> [Flow; 2] {
    [0, 1].map(|at| Flow { client: CLIENTS[at].parse().unwrap(), service: SERVICES[at].parse().unwrap() })
}

fn drops(hold: &mut Hold, direction: Direction, frame: &[u8]) -> bool {
    hold.drops(direction, frame, 0, 1).unwrap()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_first_packet_to_a_cold_service_is_told_of_and_dropped() {
    let mut hold = hold(Heat::Cold);
    for flow in flows() {
        assert!(drops(&mut hold, Direction::In, &tcp(flow.client, flow.service, SYN)));
        let seen = hold.seen().expect("it was told of");
        assert!(matches!(seen.what, What::Syn(syn) if syn.flow() == flow));
        assert!(seen.at <= monotonic());
    }
    assert!(hold.seen().is_none());
    assert_eq!(hold.stats().unwrap().held, 2);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn whatever_else_comes_in_goes_on_untold() {
    let mut hold = hold(Heat::Cold);
    let [flow, six] = flows();
    let syn = tcp(flow.client, flow.service, SYN);
    let changed = |at: usize, byte: u8| {
        let mut frame = syn.clone();
        frame[at] = byte;
        frame
    };
    let other: SocketAddr = "10.96.0.2:80".parse().unwrap();
    let mut cut = syn.clone();
    cut.truncate(40);
    let mut extended = tcp(six.client, six.service, SYN);
    // Hop-by-hop options.
    extended[20] = 0;
    let frames = [
        ("an answer", tcp(flow.client, flow.service, SYN | ACK)),
        ("data", tcp(flow.client, flow.service, ACK)),
        ("a reset", tcp(flow.client, flow.service, RST)),
        ("another Service", tcp(flow.client, other, SYN)),
        ("UDP", changed(23, 17)),
        ("options", changed(14, 0x46)),
        ("a fragment", changed(20, 0x20)),
        ("a later fragment", changed(21, 1)),
        ("a VLAN tag", changed(12, 0x81)),
        ("ARP", changed(13, 6)),
        ("a cut header", cut),
        ("an extension header", extended),
    ];
    for (name, frame) in frames {
        assert!(!drops(&mut hold, Direction::In, &frame), "{name}");
    }
    assert!(!hold.drops(Direction::In, &syn, MARK, 1).unwrap(), "what the agent sends on");
    assert!(hold.drops(Direction::In, &syn, MARK + 1, 1).unwrap(), "somebody else's mark");
    assert_eq!(hold.stats().unwrap().held, 1);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_warm_service_and_one_that_is_forgotten_are_left_alone() {
    let mut hold = hold(Heat::Warm);
    let [flow, _] = flows();
    let syn = tcp(flow.client, flow.service, SYN);
    assert!(!drops(&mut hold, Direction::In, &syn));
    let cold = Table { services: [(7, Heat::Cold)].into(), frontends: [(flow.service, 7)].into() };
    hold.sync(&cold).unwrap();
    assert!(drops(&mut hold, Direction::In, &syn));
    hold.sync(&Table::default()).unwrap();
    assert!(!drops(&mut hold, Direction::In, &syn));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn without_a_sign_of_life_everything_passes() {
    let mut hold = hold(Heat::Cold);
    let [flow, _] = flows();
    let (syn, reset) = (tcp(flow.client, flow.service, SYN), tcp(flow.service, flow.client, RST | ACK));
    hold.note_tried(&flow).unwrap();
    let long_ago = monotonic().saturating_sub(Duration::from_nanos(HEARTBEAT_NS + 1));
    hold.beat_as_of(long_ago).unwrap();
    assert!(!drops(&mut hold, Direction::In, &syn));
    assert!(!drops(&mut hold, Direction::Out, &reset));
    hold.beat().unwrap();
    assert!(drops(&mut hold, Direction::In, &syn));
    assert!(drops(&mut hold, Direction::Out, &reset));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_is_warm_is_told_as_long_as_somebody_sees_to_it() {
    let hold = hold(Heat::Warm);
    assert_eq!(hold.warm().unwrap(), SERVICES.map(|address| address.parse().unwrap()).into());
    let mut hold = self::hold(Heat::Cold);
    assert!(hold.warm().unwrap().is_empty());
    hold.sync(&Table { services: [(7, Heat::Warm)].into(), frontends: [(flows()[0].service, 7)].into() }).unwrap();
    assert_eq!(hold.warm().unwrap().len(), 1);
    hold.beat_as_of(monotonic().saturating_sub(Duration::from_nanos(HEARTBEAT_NS + 1))).unwrap();
    assert!(hold.warm().unwrap().is_empty());
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_refusal_is_kept_from_a_client_only_while_its_connection_is_tried() {
    let mut hold = hold(Heat::Cold);
    for flow in flows() {
        let refusal = tcp(flow.service, flow.client, RST | ACK);
        let taken = tcp(flow.service, flow.client, SYN | ACK);
        assert!(!drops(&mut hold, Direction::Out, &refusal), "nobody was tried");
        hold.note_tried(&flow).unwrap();
        assert!(drops(&mut hold, Direction::Out, &refusal));
        assert_eq!(hold.seen().unwrap().what, What::Refused(flow));
        assert!(!drops(&mut hold, Direction::Out, &tcp(flow.service, flow.client, ACK)));
        assert!(!drops(&mut hold, Direction::Out, &taken));
        assert_eq!(hold.seen().unwrap().what, What::Taken(flow));
        assert!(!drops(&mut hold, Direction::Out, &refusal), "now it is between client and pod");
        assert!(hold.seen().is_none());
    }
    let stats = hold.stats().unwrap();
    assert_eq!((stats.swallowed, stats.taken), (2, 2));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_answer_that_could_not_be_told_is_known_all_the_same() {
    const DEVICE: Origin = Origin::Device(1);
    let mut hold = hold(Heat::Cold);
    for flow in flows() {
        assert!(hold.drops(Direction::In, &tcp(flow.client, flow.service, SYN), 0, 10_000).unwrap(), "no room is left");
        hold.note_tried(&flow).unwrap();
        assert!(drops(&mut hold, Direction::Out, &tcp(flow.service, flow.client, RST | ACK)));
        assert!(hold.withdraw(&flow, DEVICE).unwrap(), "a refusal is none");
        hold.note_tried(&flow).unwrap();
        assert!(!drops(&mut hold, Direction::Out, &tcp(flow.service, flow.client, SYN | ACK)));
        while let Some(seen) = hold.seen() {
            assert!(matches!(seen.what, What::Syn(_)));
        }
        assert!(!hold.withdraw(&flow, DEVICE).unwrap());
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn no_answer_reaches_a_client_while_its_try_is_taken_back() {
    let mut hold = hold(Heat::Cold);
    for flow in flows() {
        let taken = tcp(flow.service, flow.client, SYN | ACK);
        let refusal = tcp(flow.service, flow.client, RST | ACK);
        hold.note_withdrawn(&flow).unwrap();
        assert!(drops(&mut hold, Direction::Out, &taken) && drops(&mut hold, Direction::Out, &refusal));
        assert!(hold.seen().is_none(), "there is nothing to do");
        hold.note_tried(&flow).unwrap();
        assert!(!drops(&mut hold, Direction::Out, &taken), "it came before");
        assert!(!hold.withdraw(&flow, Origin::Device(1)).unwrap());
        assert!(!drops(&mut hold, Direction::Out, &taken) && !drops(&mut hold, Direction::Out, &refusal));
        assert_eq!(hold.seen().unwrap().what, What::Taken(flow));
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_the_agent_sends_on_loses_its_mark_also_when_its_service_has_gone() {
    let mut hold = hold(Heat::Cold);
    let [flow, _] = flows();
    let syn = tcp(flow.client, flow.service, SYN);
    assert_eq!(hold.mark_after(&syn, MARK).unwrap(), 0);
    hold.sync(&Table::default()).unwrap();
    assert_eq!(hold.mark_after(&syn, MARK).unwrap(), 0);
    assert_eq!(hold.mark_after(&syn, MARK + 1).unwrap(), MARK + 1, "somebody else's");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn packets_for_which_there_is_no_room_are_dropped_and_counted() {
    let mut hold = hold(Heat::Cold);
    let [flow, _] = flows();
    let syn = tcp(flow.client, flow.service, SYN);
    assert!(hold.drops(Direction::In, &syn, 0, 10_000).unwrap());
    let mut told = 0;
    while hold.seen().is_some() {
        told += 1;
    }
    let stats = hold.stats().unwrap();
    assert!((5_000..6_000).contains(&told), "{told} fit a mebibyte");
    assert_eq!((stats.held, stats.untold), (told, 10_000 - told));
    assert!(drops(&mut hold, Direction::In, &syn));
    assert!(hold.seen().is_some(), "there is room again");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_packet_for_a_device_that_is_not_there_is_told_of_and_one_that_we_send_is_not_held() {
    // On loopback nobody routes it any further.
    const LOOPBACK: u32 = 1;
    const NO_DEVICE: u32 = 1 << 30;
    let mut hold = hold(Heat::Cold);
    for flow in flows() {
        assert!(drops(&mut hold, Direction::In, &tcp(flow.client, flow.service, SYN)));
        let Some(What::Syn(syn)) = hold.seen().map(|seen| seen.what) else { panic!("it was told of") };
        hold.release((&syn, Origin::Device(LOOPBACK)), Duration::ZERO).unwrap();
        hold.refuse((&syn, Origin::Device(LOOPBACK))).unwrap();
        for error in [
            hold.release((&syn, Origin::Device(NO_DEVICE)), Duration::ZERO).unwrap_err(),
            hold.refuse((&syn, Origin::Device(NO_DEVICE))).unwrap_err(),
        ] {
            assert!(matches!(error, SendError::Device { device: NO_DEVICE, .. }), "{error}");
        }
    }
    assert!(hold.seen().is_none(), "what we send ourselves is not held");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_somebody_else_has_changed_in_the_maps_is_mended() {
    let mut hold = hold(Heat::Cold);
    assert_eq!(hold.repair().unwrap(), 0);
    let [flow, six] = flows();
    hold.tamper(flow.service, six.client).unwrap();
    let syn = tcp(flow.client, flow.service, SYN);
    assert!(!drops(&mut hold, Direction::In, &syn));
    assert_eq!(hold.repair().unwrap(), 2, "one address had gone, and one was foreign");
    assert!(drops(&mut hold, Direction::In, &syn));
    assert_eq!(hold.repair().unwrap(), 0);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_a_sync_could_not_write_is_still_missing_for_the_repair_after_it() {
    let mut hold = hold(Heat::Cold);
    // No map has room for the second.
    let wanted = Table { services: [(7, Heat::Warm), (u32::MAX, Heat::Cold)].into(), ..Table::default() };
    hold.sync(&wanted).unwrap_err();
    hold.repair().unwrap_err();
    hold.sync(&Table::default()).unwrap();
    assert_eq!(hold.repair().unwrap(), 0);
}
