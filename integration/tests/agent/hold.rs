//! Connections to Services without pods wait, and reach the first pod as if it had been there.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    bench::{Bench, FRONTEND, FRONTEND6, OTHER, VIP, VIP6, cold},
    clients::{PORT, ask, connect, listen},
};
use integration::{
    agent::Agent,
    eventually,
    net::{Host, NODE, Rule},
    soon,
    world::NAMESPACE,
};
use serde_json::json;

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_waits_for_its_pod_and_reaches_it_with_its_own_address() {
    for (frontend, vip) in [(FRONTEND, VIP), (FRONTEND6, VIP6)] {
        let bench = Bench::new();
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        let mut held = connect(&bench.client, frontend);
        agent.until_held("web", 1).await;
        assert!(held.try_recv().is_err(), "it waits");
        let mut pod = listen(&bench.pod, "web-a").await;
        let vip: IpAddr = vip.parse().unwrap();
        bench.endpoints_of(&[&bench.pod], vip);
        let answer = soon("the connection opens", held).await.unwrap().unwrap();
        let seen = soon("the pod is connected to", pod.clients.recv()).await.unwrap();
        assert_eq!(seen, answer.stream.local_addr().unwrap());
        assert_eq!(seen.ip(), bench.client.like(vip));
        assert_eq!(answer.line, format!("web-a to {seen}: hello"));
        agent.until_held("web", 0).await;
        assert_eq!(agent.metric("rouse_hold_connections_total{outcome=\"taken\"}").await, 1);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn connections_of_both_families_to_one_service_reach_its_pod_each_by_its_own() {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let held = [FRONTEND, FRONTEND6].map(|frontend| connect(&bench.client, frontend));
    agent.until_held("web", 2).await;
    let _pod = listen(&bench.pod, "web-a").await;
    bench.world.endpoints("web", &bench.pod.addresses.map(|ip| SocketAddr::new(ip, PORT)));
    for (held, client) in held.into_iter().zip(bench.client.addresses) {
        let answer = soon("the connection opens", held).await.unwrap().unwrap();
        let own = answer.stream.local_addr().unwrap();
        assert_eq!((own.ip(), answer.line), (client, format!("web-a to {own}: hello")));
    }
    agent.until_held("web", 0).await;
    assert_eq!(agent.metric("rouse_hold_connections_total{outcome=\"taken\"}").await, 2);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_that_is_ready_before_it_listens_refuses_nobody() {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let clients: Vec<_> = (0..20).map(|_| connect(&bench.client, FRONTEND)).collect();
    agent.until_held("web", 20).await;
    bench.endpoints(&[&bench.pod]);
    eventually("the pod has refused", async || {
        // The kernel's counters are read every few seconds, tries are counted as they are made.
        (agent.metric("rouse_hold_tries_total").await > 30).then_some(())
    })
    .await;
    let pod = listen(&bench.pod, "web-a").await;
    for client in clients {
        let answer = soon("the connection opens", client).await.unwrap().unwrap();
        assert!(answer.line.starts_with("web-a to "), "{}", answer.line);
    }
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn many_connections_of_several_clients_are_spread_over_the_pods() {
    let mut bench = Bench::new();
    let (other, second) = (bench.net.pod(), bench.net.pod());
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let clients: Vec<_> =
        (0..200).map(|n| connect(if n % 2 == 0 { &bench.client } else { &other }, FRONTEND)).collect();
    agent.until_held("web", 200).await;
    let pods = [listen(&bench.pod, "web-a").await, listen(&second, "web-b").await];
    bench.endpoints(&[&bench.pod, &second]);
    let mut at_first = 0;
    for client in clients {
        let answer = soon("the connection opens", client).await.unwrap().unwrap();
        at_first += usize::from(answer.line.starts_with("web-a to "));
    }
    assert!((60..=140).contains(&at_first), "{at_first} of 200 at one of two pods");
    drop(pods);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_that_has_waited_as_long_as_the_route_allows_is_refused() {
    let bench = Bench::with(json!({ "timeouts": { "readiness": "300ms" } }));
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let error = soon("the wait ends", connect(&bench.client, FRONTEND)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(agent.metric("rouse_hold_connections_total{outcome=\"expired\"}").await, 1);
    agent.until_held("web", 0).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_whose_wait_is_to_end_by_a_drop_goes_on_and_is_held_anew() {
    let bench = Bench::with(json!({ "timeouts": { "readiness": "300ms" } }));
    let agent = Agent::start_by(&bench.net, &bench.world, &["env", "ROUSE_HOLD_EXPIRY=drop"]).await;
    agent.until("web", "cold").await;
    let client = connect(&bench.client, FRONTEND);
    eventually("the wait ends", async || {
        (agent.metric("rouse_hold_connections_total{outcome=\"expired\"}").await > 0).then_some(())
    })
    .await;
    let pod = listen(&bench.pod, "web").await;
    bench.endpoints_of(&[&bench.pod], VIP.parse().unwrap());
    let answer = soon("it repeats its packet", client).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web to "), "{}", answer.line);
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_service_of_somebody_else_is_left_to_the_nodes_own_rules() {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let pod = listen(&bench.pod, "other").await;
    let to = SocketAddr::new(bench.pod.addresses[0], PORT);
    bench.net.rules(&[Rule { frontend: OTHER.parse().unwrap(), pods: vec![to] }], "");
    for _ in 0..10 {
        let answer = soon("the rules lead there", connect(&bench.client, OTHER)).await.unwrap().unwrap();
        assert!(answer.line.starts_with("other to "));
    }
    assert_eq!(agent.metric("rouse_hold_wait_seconds_count").await, 0);
    assert_eq!(agent.metric("rouse_hold_tries_total").await, 0);
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_service_that_has_settled_is_the_nodes_own_and_cold_again_without_pods() {
    let bench = Bench::new();
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "warm").await;
    let to = SocketAddr::new(bench.pod.addresses[0], PORT);
    bench.net.rules(&[Rule { frontend: FRONTEND.parse().unwrap(), pods: vec![to] }], "");
    let answer = soon("the rules lead there", connect(&bench.client, FRONTEND)).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to "));
    assert_eq!(agent.metric("rouse_hold_tries_total").await, 0);
    bench.net.rules(&cold(), "");
    bench.endpoints(&[]);
    agent.until("web", "cold").await;
    let held = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    bench.endpoints(&[&bench.pod]);
    soon("the connection opens", held).await.unwrap().unwrap();
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root and Linux 6.6: run by cargo xtask test"]
async fn a_connection_outlives_the_agent_and_the_rules_that_come_later() {
    let bench = Bench::new();
    let mut agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let held = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    let to = SocketAddr::new(bench.pod.addresses[0], PORT);
    bench.net.rules(&[Rule { frontend: FRONTEND.parse().unwrap(), pods: vec![to] }], "");
    let stream = answer.stream;
    let (stream, line) = bench.client.run(move || ask(&stream).map(|line| (stream, line))).await.unwrap();
    assert!(line.ends_with("hello"));
    agent.kill().await;
    let line = bench.client.run(move || ask(&stream)).await.unwrap();
    assert!(line.ends_with("hello"));
    let answer = soon("the rules lead there", connect(&bench.client, FRONTEND)).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to "));
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_reaches_its_own_service() {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let held = connect(&bench.pod, FRONTEND);
    agent.until_held("web", 1).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to 10.244.1.1:"), "by the node's address: {}", answer.line);
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn rules_of_the_node_judge_what_was_held() {
    let mut bench = Bench::new();
    let banned = bench.net.pod();
    bench.net.rules(&cold(), &format!("ct state new ip saddr {} drop;", banned.addresses[0]));
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let (allowed, mut refused) = (connect(&bench.client, FRONTEND), connect(&banned, FRONTEND));
    agent.until_held("web", 2).await;
    let mut pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    soon("the other connection opens", allowed).await.unwrap().unwrap();
    eventually("the banned one was tried, and tried again", async || {
        (agent.metric("rouse_hold_tries_total").await >= 3).then_some(())
    })
    .await;
    assert!(refused.try_recv().is_err(), "it still waits");
    let first = pod.clients.recv().await.unwrap();
    assert_eq!(first.ip(), bench.client.addresses[0]);
    assert!(pod.clients.try_recv().is_err(), "nobody else has got through");
}

/// A client outside connects to the node's port, waits, and reaches the pod with its own address.
async fn held_by_node_port(bench: &Bench, outside: &Host) -> Agent {
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let held = connect(outside, &format!("{NODE}:30080"));
    agent.until_held("web", 1).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to 192.0.2.9:"), "{}", answer.line);
    drop(pod);
    agent
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_node_port_is_held_for_clients_from_outside() {
    let mut bench = Bench::new();
    let outside = bench.net.outside();
    held_by_node_port(&bench, &outside).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_node_port_is_held_at_an_uplink_that_is_no_virtual_cable_as_long_as_there_is_one() {
    let mut bench = Bench::new();
    let outside = bench.net.outside_by_macvlan();
    let agent = held_by_node_port(&bench, &outside).await;
    bench.world.object(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": NAMESPACE },
        "spec": { "clusterIP": VIP, "clusterIPs": [VIP], "ports": [{ "name": "http", "port": 80 }] },
    }));
    eventually("only pods' devices are looked at", async || {
        let state = agent.state().await;
        let devices = state["hold"]["devices"].as_array()?.clone();
        (!devices.is_empty() && !devices.contains(&json!("uplink0"))).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_node_port_leads_clients_from_outside_to_a_pod_of_another_node_and_answers_back() {
    let mut bench = Bench::new();
    let outside = bench.net.outside();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let held = connect(&outside, &format!("{NODE}:30080"));
    agent.until_held("web", 1).await;
    // Its answers must not go to the client itself, past the node: they would come from an address that it has never asked.
    outside.output("ip", &["address", "add", "192.0.2.10/24", "dev", "eth0"]);
    let mut pod = listen(&outside, "web-a").await;
    bench.world.object(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "web-0", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4", "ports": [{ "name": "http", "port": PORT }],
        "endpoints": [{ "addresses": ["192.0.2.10"], "nodeName": "node-2" }],
    }));
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to "), "{}", answer.line);
    let seen = soon("the pod is connected to", pod.clients.recv()).await.unwrap();
    assert_eq!(seen.ip().to_string(), NODE);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_that_comes_later_is_a_client_like_the_others() {
    let mut bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let late = bench.net.pod();
    let devices = async || agent.state().await["hold"]["devices"].as_array().unwrap().len();
    eventually("its device has the programs", async || (devices().await == 3).then_some(())).await;
    let held = connect(&late, FRONTEND);
    agent.until_held("web", 1).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    soon("the connection opens", held).await.unwrap().unwrap();
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root and Linux 6.12: run by cargo xtask test"]
async fn two_capabilities_are_enough() {
    let bench = Bench::new();
    let few = ["setpriv", "--bounding-set=-all,+bpf,+net_admin", "--inh-caps=-all"];
    let agent = Agent::start_by(&bench.net, &bench.world, &few).await;
    agent.until("web", "cold").await;
    let held = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    soon("the connection opens", held).await.unwrap().unwrap();
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_opens_soon_after_its_pod_listens() {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let held = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    bench.endpoints(&[&bench.pod]);
    let pod = listen(&bench.pod, "web-a").await;
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    let wait = answer.connected.saturating_duration_since(pod.since);
    assert!(wait < Duration::from_millis(900), "{wait:?}: not by the client's own repetition");
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_that_answers_its_readiness_probe_gets_what_is_held_before_any_slice_says_so() {
    let bench = Bench::new();
    bench.probed();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let mut held = bench.held();
    agent.until_held("web", 1).await;
    bench.starting();
    eventually("the pod is probed", async || {
        (agent.metric("rouse_readiness_probes_total{outcome=\"refused\"}").await > 0).then_some(())
    })
    .await;
    assert!(held.try_recv().is_err());
    assert_eq!(agent.metric("rouse_hold_tries_total").await, 0, "nobody is sent to a pod that fails its probe");
    let pod = listen(&bench.pod, "web-a").await;
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to "));
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_client_that_the_route_ignores_wakes_nobody_and_meets_the_nodes_own_rules() {
    let bench = Bench::with(json!({ "demand": { "ignore": { "cidrs": ["10.244.1.10/32"] } } }));
    assert_eq!(bench.client.addresses[0].to_string(), "10.244.1.10");
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let refused = soon("the client is refused", connect(&bench.client, FRONTEND)).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    assert_eq!(agent.metric("rouse_hold_packets_ignored_total").await, 1);
    let held = connect(&bench.pod, FRONTEND);
    agent.until_held("web", 1).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    soon("others are held", held).await.unwrap().unwrap();
    drop(pod);
}
