//! Connections to a cold Service's addresses for clients outside of the cluster: external IPs and those of its load balancer, by rules
//! as kube-proxy writes them.

use std::{io::ErrorKind, net::IpAddr};

use integration::{
    agent::Agent,
    net::{Host, NODE, NODE6, Rule},
    soon,
    world::NAMESPACE,
};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, FRONTEND, VIP, VIP6, cold},
    clients::{PORT, connect, listen},
};

/// External IPs, those of a load balancer that leaves packets as they are, and those of one that is a proxy.
const LISTED: [&str; 2] = ["203.0.113.1", "2001:db8:1::1"];
const BALANCER: [&str; 2] = ["203.0.113.2", "2001:db8:1::2"];
const PROXY: [&str; 2] = ["203.0.113.3", "2001:db8:1::3"];

/// A node, whose uplink is no virtual cable, with a client outside that reaches all of these addresses by way of it.
fn bench() -> (Bench, Host) {
    let mut bench = Bench::new();
    let outside = bench.net.outside_by_macvlan();
    for (network, node) in [("203.0.113.0/24", NODE), ("2001:db8:1::/64", NODE6)] {
        outside.output("ip", &["route", "add", network, "via", node]);
    }
    (bench, outside)
}

/// The Service has them all, and more of a spec.
fn service(bench: &Bench, more: Value) {
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIP": VIP, "clusterIPs": [VIP, VIP6], "ipFamilies": ["IPv4", "IPv6"],
        "externalIPs": LISTED, "ports": [{ "name": "http", "port": 80 }],
    });
    let (Value::Object(all), Value::Object(more)) = (&mut spec, more) else { panic!("specs are objects") };
    all.extend(more);
    let vips = BALANCER.map(|ip| json!({ "ip": ip }));
    let proxies = PROXY.map(|ip| json!({ "ip": ip, "ipMode": "Proxy" }));
    let ingress = [vips, proxies].concat();
    bench.world.object(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": NAMESPACE }, "spec": spec,
        "status": { "loadBalancer": { "ingress": ingress } },
    }));
}

fn at(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:80") } else { format!("{ip}:80") }
}

/// The node's rules lead from all of these addresses but the proxy's to the pods, if there are any, and refuse otherwise.
fn rules(bench: &Bench, pods: &[&Host], more: &str) {
    let to = |ip: &str| {
        let frontend: IpAddr = ip.parse().unwrap();
        let pods = pods.iter().map(|pod| (pod.like(frontend), PORT).into()).collect();
        Rule { frontend: (frontend, 80).into(), pods }
    };
    let led = LISTED.iter().chain(&BALANCER).map(|ip| to(ip));
    bench.net.rules(&cold().into_iter().chain(led).collect::<Vec<_>>(), more);
}

/// What kube-proxy has for external addresses of a Service whose `externalTrafficPolicy` is Cluster: who is led to a pod by the rules is
/// masqueraded.
fn masquerade(bench: &Bench) {
    let marked = |family: &str, [listed, balancer]: [&str; 2]| {
        format!("{family} daddr {{ {listed}, {balancer} }} tcp dport 80 meta mark set meta mark or 0x4000\n")
    };
    let (v4, v6) = (marked("ip", [LISTED[0], BALANCER[0]]), marked("ip6", [LISTED[1], BALANCER[1]]));
    bench.net.node().nft(&format!(
        "table inet external {{\nchain prerouting {{\ntype nat hook prerouting priority dstnat - 1;\n{v4}{v6}}}\n\
         chain postrouting {{\ntype nat hook postrouting priority srcnat;\nmeta mark & 0x4000 == 0x4000 masquerade\n}}\n}}\n"
    ));
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_client_outside_waits_at_an_external_address_and_reaches_the_pod_with_its_own() {
    for (address, policy) in
        [(LISTED[0], "Cluster"), (BALANCER[0], "Local"), (LISTED[1], "Local"), (BALANCER[1], "Cluster")]
    {
        let (bench, outside) = bench();
        service(&bench, json!({ "externalTrafficPolicy": policy }));
        rules(&bench, &[], "");
        if policy == "Cluster" {
            masquerade(&bench);
        }
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        let mut held = connect(&outside, &at(address));
        agent.until_held("web", 1).await;
        assert!(held.try_recv().is_err(), "it waits");
        let mut pod = listen(&bench.pod, "web-a").await;
        let ip: IpAddr = address.parse().unwrap();
        bench.endpoints_of(&[&bench.pod], ip);
        let answer = soon("the connection opens", held).await.unwrap().unwrap();
        let seen = soon("the pod is connected to", pod.clients.recv()).await.unwrap();
        assert_eq!((seen, seen.ip()), (answer.stream.local_addr().unwrap(), outside.like(ip)), "{address}, {policy}");
        assert_eq!(answer.line, format!("web-a to {seen}: hello"));
        assert_eq!(agent.metric("rouse_hold_connections_total{outcome=\"taken\"}").await, 1);
        rules(&bench, &[&bench.pod], "");
        agent.until("web", "warm").await;
        let tries = agent.metric("rouse_hold_tries_total").await;
        soon("the rules lead there", connect(&outside, &at(address))).await.unwrap().unwrap();
        let seen = soon("the pod is connected to", pod.clients.recv()).await.unwrap();
        let told = if policy == "Cluster" { bench.net.node() } else { outside };
        assert_eq!(seen.ip(), told.like(ip), "{address}, {policy}");
        assert_eq!(agent.metric("rouse_hold_tries_total").await, tries, "by the rules alone");
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_of_the_node_and_the_node_itself_wait_at_external_addresses() {
    let (bench, _outside) = bench();
    service(&bench, json!({}));
    rules(&bench, &[], "");
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let of = |host: &Host| [LISTED, BALANCER].concat().into_iter().map(|ip| connect(host, &at(ip))).collect::<Vec<_>>();
    let (of_pod, of_node) = (of(&bench.client), of(&bench.net.node()));
    agent.until_held("web", 8).await;
    let _pod = listen(&bench.pod, "web-a").await;
    bench.world.endpoints("web", &bench.pod.addresses.map(|ip| (ip, PORT).into()));
    for held in of_pod {
        let answer = soon("the pod's connection opens", held).await.unwrap().unwrap();
        let own = answer.stream.local_addr().unwrap();
        assert_eq!((own.ip(), answer.line), (bench.client.like(own.ip()), format!("web-a to {own}: hello")));
    }
    for held in of_node {
        let answer = soon("the node's connection opens", held).await.unwrap().unwrap();
        assert!(answer.line.starts_with("web-a to "), "{}", answer.line);
    }
    assert_eq!(agent.metric("rouse_hold_connections_total{outcome=\"taken\"}").await, 8);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn an_external_address_leads_to_a_pod_of_another_node_by_the_nodes_own() {
    for (address, node, elsewhere) in [(LISTED[0], NODE, "192.0.2.10/24"), (BALANCER[1], NODE6, "2001:db8::10/64")] {
        let (bench, outside) = bench();
        service(&bench, json!({}));
        rules(&bench, &[], "");
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        let held = connect(&outside, &at(address));
        agent.until_held("web", 1).await;
        // Answers that went to the client itself, past the node, would come from an address that it has never asked.
        outside.output("ip", &["address", "add", elsewhere, "dev", "eth0"]);
        let mut pod = listen(&outside, "web-a").await;
        let ip = elsewhere.split_once('/').unwrap().0;
        bench.world.object(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "web-0", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": if ip.contains(':') { "IPv6" } else { "IPv4" },
            "ports": [{ "name": "http", "port": PORT }],
            "endpoints": [{ "addresses": [ip], "nodeName": "node-2" }],
        }));
        let answer = soon("the connection opens", held).await.unwrap().unwrap();
        assert!(answer.line.starts_with("web-a to "), "{}", answer.line);
        let seen = soon("the pod is connected to", pod.clients.recv()).await.unwrap();
        assert_eq!(seen.ip().to_string(), node);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn an_address_of_a_load_balancer_that_is_a_proxy_is_left_to_it() {
    let (bench, _outside) = bench();
    service(&bench, json!({}));
    let theirs = PROXY.map(|ip| format!("{} daddr {ip} reject;", if ip.contains(':') { "ip6" } else { "ip" }));
    rules(&bench, &[], &theirs.concat());
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    for address in PROXY {
        let refused = soon("it is passed on", connect(&bench.client, &at(address))).await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    let route = agent.route("web").await;
    let frontends = route["frontends"].as_array().unwrap();
    assert_eq!(frontends.len(), 6, "{route}");
    assert!(!PROXY.iter().any(|ip| frontends.contains(&json!(at(ip)))), "{route}");
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn whom_a_load_balancer_is_not_for_wakes_nobody_there_and_meets_the_nodes_own_rules() {
    let (bench, outside) = bench();
    service(&bench, json!({ "loadBalancerSourceRanges": ["10.244.0.0/16", "fd00:244::/64"] }));
    rules(&bench, &[], "");
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    for address in BALANCER {
        let refused = soon("the client is refused", connect(&outside, &at(address))).await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    assert_eq!(agent.metric("rouse_hold_packets_ignored_total").await, 2);
    let held: Vec<_> = (BALANCER.map(|ip| connect(&bench.client, &at(ip))).into_iter())
        .chain([connect(&bench.client, FRONTEND)])
        .chain(LISTED.map(|ip| connect(&outside, &at(ip))))
        .collect();
    agent.until_held("web", 5).await;
    let _pod = listen(&bench.pod, "web-a").await;
    bench.world.endpoints("web", &bench.pod.addresses.map(|ip| (ip, PORT).into()));
    for held in held {
        soon("the connection opens", held).await.unwrap().unwrap();
    }
}
