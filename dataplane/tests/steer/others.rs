//! Programs of others on the same hooks: above pods, as those of networks that translate Services, and on a pod itself.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
};

use dataplane::steer::Steer;

use crate::{
    node::{Node, SERVICE, SERVICE6, interceptors, lead, ports, refused_at_last, steer},
    theirs::Theirs,
};

/// How somebody else may attach a program that runs beside those below.
const BESIDE: [&str; 2] = ["link", "multi"];
/// On a pod itself it is all the same whether it would.
const ON_A_POD: [&str; 4] = ["link", "multi", "override", "alone"];
/// A Service, its interceptor, a pod that somebody else leads to, and the hook of the family.
const FAMILIES: [(&str, &str, &str, &str); 2] =
    [(SERVICE, "127.0.9.1", "127.0.9.5:0", "connect4"), (SERVICE6, "::1", "[::1]:0", "connect6")];

/// Ours and theirs, attached one after the other.
fn attached<T>(ours_first: bool, ours: impl FnOnce() -> Steer, theirs: impl FnOnce() -> T) -> (Steer, T) {
    if ours_first {
        let ours = ours();
        (ours, theirs())
    } else {
        let theirs = theirs();
        (ours(), theirs)
    }
}

/// Somebody else's program that makes one address of another.
fn translating(at: &Path, (hook, how): (&str, &str), from: &str, to: SocketAddr) -> Theirs {
    Theirs::on_cgroup(at, &[hook, how, from, &to.to_string()])
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn one_that_only_looks_changes_nothing_wherever_it_is_and_whoever_came_first() {
    let (port, interceptors) = interceptors(["127.0.9.1", "::1"]);
    let above = BESIDE.map(|how| (how, true)).into_iter();
    let cases = above.chain(ON_A_POD.map(|how| (how, false)));
    for ((how, is_above), ours_first) in cases.flat_map(|case| [(case, true), (case, false)]) {
        let case = format!("{how}, above pods: {is_above}, ours first: {ours_first}");
        let node = Node::new();
        let at = if is_above { node.root() } else { node.pod("a") };
        let ours = || steer(&node, port, &["127.0.9.1", "::1"]);
        let theirs = || ["connect4", "connect6"].map(|hook| Theirs::on_cgroup(&at, &[hook, how]));
        let (ours, mut theirs) = attached(ours_first, ours, theirs);
        for (to, interceptor) in [SERVICE, SERVICE6].into_iter().zip(&interceptors) {
            let client = node.connect(to).unwrap();
            interceptor.accept().unwrap();
            assert_eq!(client.peer_addr().unwrap().to_string(), to, "{case}");
        }
        assert_eq!((ours.stats().unwrap().steered, theirs.each_mut().map(Theirs::runs)), (2, [1, 1]), "{case}");
        drop(theirs);
        node.connect(SERVICE).unwrap();
        assert_eq!(ours.stats().unwrap().steered, 3, "{case}: it has gone, and ours goes on");
        interceptors[0].accept().unwrap();
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn one_above_pods_that_translates_has_the_warm_services_whoever_came_first() {
    for (service, at, elsewhere, hook) in FAMILIES {
        let (port, [interceptor]) = interceptors([at]);
        for (how, ours_first) in BESIDE.into_iter().flat_map(|how| [(how, true), (how, false)]) {
            let case = format!("{hook}, {how}, ours first: {ours_first}");
            let node = Node::new();
            let pod = TcpListener::bind(elsewhere).unwrap();
            let theirs = || translating(&node.root(), (hook, how), service, pod.local_addr().unwrap());
            let (mut ours, mut theirs) = attached(ours_first, || steer(&node, port, &[at]), theirs);
            node.connect(service).unwrap();
            interceptor.accept().unwrap();
            ours.sync(&ports(&[])).unwrap();
            node.connect(service).unwrap();
            pod.accept().unwrap();
            assert_eq!((ours.stats().unwrap().steered, theirs.runs()), (1, 2), "{case}");
        }
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn one_above_pods_runs_after_ours_and_one_on_a_pod_before() {
    for (service, at, elsewhere, hook) in FAMILIES {
        let (port, [interceptor]) = interceptors([at]);
        let pod = TcpListener::bind(elsewhere).unwrap();
        let to = pod.local_addr().unwrap();
        for how in BESIDE {
            let node = Node::new();
            let ours = steer(&node, port, &[at]);
            let interceptor = interceptor.local_addr().unwrap().to_string();
            let _above = translating(&node.root(), (hook, how), &interceptor, to);
            node.connect(service).unwrap();
            pod.accept().unwrap();
            assert_eq!(ours.stats().unwrap().steered, 1, "{hook}, {how}: it gets what ours has made of it");
        }
        for how in ON_A_POD {
            let node = Node::new();
            let ours = steer(&node, port, &[at]);
            let first = translating(&node.pod("a"), (hook, how), service, to);
            node.connect(service).unwrap();
            pod.accept().unwrap();
            assert_eq!(ours.stats().unwrap().steered, 0, "{hook}, {how}: the Service is another's by then");
            drop(first);
            let before = service.replace("80", "81").replace("]:1", "]:2");
            let _leads = translating(&node.pod("a"), (hook, how), &before, service.parse().unwrap());
            node.connect(&before).unwrap();
            interceptor.accept().unwrap();
            assert_eq!(ours.stats().unwrap().steered, 1, "{hook}, {how}: ours gets what it has made of it");
        }
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn one_above_pods_that_ours_would_put_out_of_force_stays_and_ours_is_not_attached() {
    for (how, why) in [("override", "would no longer run"), ("alone", "Operation not permitted")] {
        for hook in ["connect4", "connect6"] {
            let node = Node::new();
            let (port, [_interceptor]) = interceptors(["127.0.9.1"]);
            let mut theirs = Theirs::on_cgroup(&node.root(), &[hook, how]);
            let mut ours = Steer::open(None).unwrap();
            lead(&mut ours, port, &["127.0.9.1"]);
            let refused = ours.attach(&[node.kubepods()]);
            let [(cgroup, said)] = &refused[..] else { panic!("{how}: {refused:?}") };
            assert!(*cgroup == node.kubepods() && said.contains(why), "{how}: {said}");
            for service in [SERVICE, SERVICE6] {
                refused_at_last(&node, service);
            }
            assert!(theirs.runs() > 0, "{how}: theirs goes on");
            drop(theirs);
            assert_eq!(ours.attach(&[node.kubepods()]), []);
            node.connect(SERVICE).unwrap();
        }
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn programs_of_others_are_told_from_ours() {
    for how in BESIDE {
        let node = Node::new();
        let (port, [_interceptor]) = interceptors(["127.0.9.1"]);
        let ours = steer(&node, port, &["127.0.9.1"]);
        let others = || ours.others(&node.kubepods()).unwrap();
        let before = others();
        let above = ["connect4", "connect6"].map(|hook| Theirs::on_cgroup(&node.root(), &[hook, how]));
        assert_eq!(others(), before + 2, "one for each family");
        drop(above);
        let _on_a_pod = Theirs::on_cgroup(&node.pod("a"), &["connect4", how]);
        assert_eq!(others(), before, "what one pod has is no network's");
    }
}
