//! Programs of others on the same hooks: above pods, as those of networks that translate Services, and on a pod itself.

use std::{net::TcpListener, path::Path};

use dataplane::steer::Steer;

use crate::node::{Node, SERVICE, interceptors, ports, steer};

/// Somebody else's program that translates an address, as those of networks do.
fn translating(at: &Path, from: &str, to: &TcpListener) -> Steer {
    let to = to.local_addr().unwrap();
    let mut other = Steer::open(None).unwrap();
    other.sync(&ports(&[(from, to.port())])).unwrap();
    other.interceptors(&[to.ip()].into()).unwrap();
    assert_eq!(other.attach(&[at.to_owned()]), []);
    other
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_program_above_pods_sees_what_we_have_made_of_an_address_whoever_came_first() {
    for first in ["ours", "theirs"] {
        let node = Node::new();
        let (port, [interceptor]) = interceptors(["127.0.9.1"]);
        let theirs = TcpListener::bind("127.0.9.5:0").unwrap();
        let mut ours = (first == "ours").then(|| steer(&node, port, &["127.0.9.1"]));
        let translates = translating(&node.root(), SERVICE, &theirs);
        let ours = ours.get_or_insert_with(|| steer(&node, port, &["127.0.9.1"]));
        node.connect(SERVICE).unwrap();
        interceptor.accept().unwrap();
        assert_eq!((ours.stats().unwrap().steered, translates.stats().unwrap().steered), (1, 0), "{first} first");
        let warm = ports(&[]);
        ours.sync(&warm).unwrap();
        let client = node.connect(SERVICE).unwrap();
        theirs.accept().unwrap();
        assert_eq!(client.peer_addr().unwrap().to_string(), SERVICE, "theirs tell of it, too");
        assert_eq!(translates.stats().unwrap().steered, 1, "{first} first: warm Services are theirs");
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_program_above_pods_runs_after_ours() {
    let node = Node::new();
    let (port, [interceptor]) = interceptors(["127.0.9.1"]);
    let ours = steer(&node, port, &["127.0.9.1"]);
    let theirs = TcpListener::bind("127.0.9.5:0").unwrap();
    let address = interceptor.local_addr().unwrap().to_string();
    let translates = translating(&node.root(), &address, &theirs);
    node.connect(SERVICE).unwrap();
    theirs.accept().unwrap();
    assert_eq!((ours.stats().unwrap().steered, translates.stats().unwrap().steered), (1, 1));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_program_on_a_pod_itself_runs_before_ours() {
    let node = Node::new();
    let (port, [interceptor]) = interceptors(["127.0.9.1"]);
    let ours = steer(&node, port, &["127.0.9.1"]);
    let theirs = TcpListener::bind("127.0.9.5:0").unwrap();
    let translates = translating(&node.pod("a"), SERVICE, &theirs);
    node.connect(SERVICE).unwrap();
    theirs.accept().unwrap();
    assert_eq!((ours.stats().unwrap().steered, translates.stats().unwrap().steered), (0, 1), "it is another's by then");
    drop(translates);
    // One that makes an address of ours out of another.
    let mut leads = Steer::open(None).unwrap();
    leads.sync(&ports(&[("127.0.10.7:80", 80)])).unwrap();
    leads.interceptors(&["127.0.10.1".parse().unwrap()].into()).unwrap();
    assert_eq!(leads.attach(&[node.pod("a")]), []);
    node.connect("127.0.10.7:80").unwrap();
    interceptor.accept().unwrap();
    assert_eq!((ours.stats().unwrap().steered, leads.stats().unwrap().steered), (1, 1), "both have run");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn programs_of_others_are_told_from_ours() {
    let node = Node::new();
    let (port, [_interceptor]) = interceptors(["127.0.9.1"]);
    let ours = steer(&node, port, &["127.0.9.1"]);
    let others = || ours.others(&node.kubepods()).unwrap();
    let before = others();
    let theirs = TcpListener::bind("127.0.9.5:0").unwrap();
    let translates = translating(&node.root(), SERVICE, &theirs);
    assert_eq!(others(), before + 2, "one for each family");
    drop(translates);
    let on_a_pod = translating(&node.pod("a"), SERVICE, &theirs);
    assert_eq!(others(), before, "what one pod has is no network's");
    drop(on_a_pod);
}
