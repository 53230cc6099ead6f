//! Connections that the node itself opens, and pods in its network: no device sees them, a table in the node's packet filter
//! does.

use std::{io::ErrorKind, net::IpAddr};

use integration::{
    agent::Agent,
    eventually,
    net::{Host, NODE, NODE6},
    soon,
};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, FRONTEND, FRONTEND6, VIP, VIP6},
    clients::{connect, listen},
};

const FRONTENDS: [(&str, &str); 2] = [(FRONTEND, VIP), (FRONTEND6, VIP6)];

/// The elements of a set of our table's.
fn elements(node: &Host, set: &str) -> Vec<Value> {
    let text = node.output("nft", &["--json", "list", "set", "inet", "rouse", set]);
    let listed: Value = serde_json::from_str(&text).unwrap();
    let sets = listed["nftables"].as_array().unwrap().iter();
    let found = sets.filter_map(|entry| entry["set"]["elem"].as_array()).flatten();
    found.cloned().collect()
}

fn tables(node: &Host) -> Vec<String> {
    node.output("nft", &["list", "tables"]).lines().map(str::to_owned).collect()
}

fn remove(bench: &Bench) {
    let program = integration::process::program("interceptor-under-test");
    bench.net.node().output(program.to_str().unwrap(), &["agent", "--remove"]);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_of_the_node_itself_waits_for_its_pod() {
    for (frontend, vip) in FRONTENDS {
        let bench = Bench::new();
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        let mut held = connect(&bench.net.node(), frontend);
        agent.until_held("web", 1).await;
        assert!(held.try_recv().is_err(), "it waits");
        let mut pod = listen(&bench.pod, "web-a").await;
        let vip: IpAddr = vip.parse().unwrap();
        bench.endpoints_of(&[&bench.pod], vip);
        let answer = soon("the connection opens", held).await.unwrap().unwrap();
        let seen = soon("the pod is connected to", pod.clients.recv()).await.unwrap();
        assert_eq!(seen.ip(), bench.net.node().like(vip));
        assert_eq!(answer.line, format!("web-a to {seen}: hello"));
        agent.until_held("web", 0).await;
        assert_eq!(agent.metric("rouse_hold_connections_total{outcome=\"taken\"}").await, 1);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_of_the_node_itself_reaches_a_pod_elsewhere_by_an_address_that_answers_find() {
    for ((frontend, vip), node) in FRONTENDS.into_iter().zip([NODE, NODE6]) {
        let mut bench = Bench::new();
        let elsewhere = bench.net.outside();
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        // The way to the Service is the bridge's, whose addresses nobody outside knows the way to.
        let held = connect(&bench.net.node(), frontend);
        agent.until_held("web", 1).await;
        let mut pod = listen(&elsewhere, "web-a").await;
        bench.endpoints_of(&[&elsewhere], vip.parse().unwrap());
        let answer = soon("the connection opens", held).await.unwrap().unwrap();
        assert_eq!(answer.stream.local_addr().unwrap().ip(), bench.net.node().like(vip.parse().unwrap()));
        let seen = soon("the pod is connected to", pod.clients.recv()).await.unwrap();
        assert_eq!(seen.ip().to_string(), node);
        assert!(answer.line.starts_with("web-a to "));
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_of_the_node_itself_that_has_waited_as_long_as_it_may_is_refused() {
    for (frontend, _) in FRONTENDS {
        let bench = Bench::with(json!({ "timeouts": { "readiness": "300ms" } }));
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        let error = soon("the wait ends", connect(&bench.net.node(), frontend)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(agent.metric("rouse_hold_connections_total{outcome=\"expired\"}").await, 1);
        agent.until_held("web", 0).await;
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_that_is_ready_before_it_listens_refuses_nobody_of_the_node() {
    for (frontend, vip) in FRONTENDS {
        let bench = Bench::new();
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        let clients: Vec<_> = (0..20).map(|_| connect(&bench.net.node(), frontend)).collect();
        agent.until_held("web", 20).await;
        bench.endpoints_of(&[&bench.pod], vip.parse().unwrap());
        eventually("the pod has refused", async || (agent.metric("rouse_hold_tries_total").await > 30).then_some(()))
            .await;
        let pod = listen(&bench.pod, "web-a").await;
        for client in clients {
            let answer = soon("the connection opens", client).await.unwrap().unwrap();
            assert!(answer.line.starts_with("web-a to "), "{}", answer.line);
        }
        drop(pod);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_in_the_nodes_own_network_is_reached_from_there_once_it_listens() {
    for (frontend, vip) in FRONTENDS {
        let bench = Bench::new();
        let node = bench.net.node();
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        let held = connect(&node, frontend);
        agent.until_held("web", 1).await;
        bench.endpoints_of(&[&node], vip.parse().unwrap());
        eventually("the pod has refused", async || (agent.metric("rouse_hold_tries_total").await > 2).then_some(()))
            .await;
        let pod = listen(&node, "web-a").await;
        let answer = soon("the connection opens", held).await.unwrap().unwrap();
        assert!(answer.line.starts_with("web-a to "), "{}", answer.line);
        drop(pod);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn rules_of_others_see_no_mark_of_ours() {
    let bench = Bench::new();
    let node = bench.net.node();
    // At the priority of what is called raw, and where most rules are.
    let chain = |name: &str, priority: i32| {
        format!("chain {name} {{\ntype filter hook output priority {priority};\nmeta mark != 0 drop\n}}\n")
    };
    node.nft(&format!("table inet theirs {{\n{}{}}}\n", chain("raw", -300), chain("output", 0)));
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let held = connect(&node, FRONTEND);
    agent.until_held("web", 1).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    soon("the connection opens", held).await.unwrap().unwrap();
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_node_port_is_held_for_the_node_itself() {
    let mut bench = Bench::new();
    bench.net.outside();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let held = connect(&bench.net.node(), &format!("{NODE}:30080"));
    agent.until_held("web", 1).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to 10.244.1.1:"), "{}", answer.line);
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_service_that_has_settled_is_no_longer_in_the_nodes_table() {
    let bench = Bench::new();
    let node = bench.net.node();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    assert_eq!([elements(&node, "cold4").len(), elements(&node, "cold6").len()], [2, 2], "and node ports");
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    bench.warm();
    agent.until("web", "warm").await;
    assert!(elements(&node, "cold4").is_empty() && elements(&node, "cold6").is_empty());
    let answer = soon("the rules lead there", connect(&node, FRONTEND)).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to "));
    assert_eq!(agent.metric("rouse_hold_tries_total").await, 0);
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn the_nodes_own_rules_judge_what_was_held_of_the_node() {
    let bench = Bench::new();
    let node = bench.net.node();
    let banned = format!(
        "table inet theirs {{\nchain output {{\ntype filter hook output priority 0;\n\
         ct state new ip daddr {} drop\n}}\n}}\n",
        bench.pod.addresses[0]
    );
    node.nft(&banned);
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let mut held = connect(&node, FRONTEND);
    agent.until_held("web", 1).await;
    let mut pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    eventually("it was tried, and tried again", async || {
        (agent.metric("rouse_hold_tries_total").await >= 2).then_some(())
    })
    .await;
    assert!(held.try_recv().is_err() && pod.clients.try_recv().is_err(), "it still waits");
    node.nft("delete table inet theirs");
    soon("the connection opens", held).await.unwrap().unwrap();
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_client_on_the_node_that_the_route_ignores_meets_the_nodes_own_rules() {
    // Either way of refusing reaches it: by a message of ICMP, and by a reset, which is none of a pod that we have tried.
    for more in [
        String::new(),
        format!(
            "table inet theirs {{\nchain output {{\ntype filter hook output priority -105;\n\
             ct state new ip daddr {VIP} meta l4proto tcp reject with tcp reset\n}}\n}}\n"
        ),
    ] {
        let bench = Bench::with(json!({ "demand": { "ignore": { "cidrs": ["10.244.1.1/32"] } } }));
        let node = bench.net.node();
        node.nft(&more);
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        let refused = soon("the client is refused", connect(&node, FRONTEND)).await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{more}");
        assert!(agent.metric("rouse_hold_packets_ignored_total").await > 0);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn connections_of_the_node_itself_are_held_while_an_agent_is_killed_and_replaced() {
    let bench = Bench::new();
    let node = bench.net.node();
    let mut first = Agent::start(&bench.net, &bench.world).await;
    first.until("web", "cold").await;
    let before = connect(&node, FRONTEND);
    first.until_held("web", 1).await;
    first.kill().await;
    let between = connect(&node, FRONTEND);
    let second = Agent::start(&bench.net, &bench.world).await;
    second.until_held("web", 2).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    for held in [before, between] {
        let answer = soon("the connection opens", held).await.unwrap().unwrap();
        assert!(answer.line.starts_with("web-a to "));
    }
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn without_an_agent_the_nodes_table_goes_idle_by_itself() {
    let bench = Bench::new();
    let node = bench.net.node();
    let mut agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    agent.kill().await;
    let alive = elements(&node, "alive");
    assert_eq!(alive.len(), 2);
    for element in alive {
        assert!(element["elem"]["expires"].as_u64().unwrap() <= 30, "{element}");
    }
    // What the kernel does when their time is over.
    node.nft("flush set inet rouse alive");
    for (frontend, _) in FRONTENDS {
        let refused = soon("the client is refused", connect(&node, frontend)).await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_table_that_somebody_takes_out_is_put_back() {
    let bench = Bench::new();
    let node = bench.net.node();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    node.nft("delete table inet rouse");
    eventually("the table is back", async || {
        tables(&node).iter().any(|table| table == "table inet rouse").then_some(())
    })
    .await;
    let held = connect(&node, FRONTEND);
    agent.until_held("web", 1).await;
    drop(held);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn the_nodes_table_can_be_removed_and_no_other_was_touched() {
    let bench = Bench::new();
    let node = bench.net.node();
    let others = || node.output("nft", &["list", "table", "inet", "kube-proxy"]);
    let before = others();
    let mut agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    assert_eq!(tables(&node), ["table inet kube-proxy", "table inet rouse"]);
    agent.kill().await;
    remove(&bench);
    assert_eq!(tables(&node), ["table inet kube-proxy"]);
    assert_eq!(others(), before);
    // Where there is none.
    remove(&bench);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn without_the_right_or_the_wish_connections_of_the_node_are_left_alone_and_that_is_told() {
    let few = ["setpriv", "--bounding-set=-all,+bpf,+net_admin,+perfmon", "--inh-caps=-all"];
    let wish = ["env", "ROUSE_NODE_CLIENTS=leave"];
    for (by, why) in [(&few[..], "CAP_NET_RAW"), (&wish[..], "ROUSE_NODE_CLIENTS")] {
        let bench = Bench::new();
        let node = bench.net.node();
        let mut before = Agent::start(&bench.net, &bench.world).await;
        before.until("web", "cold").await;
        before.kill().await;
        let agent = Agent::start_by(&bench.net, &bench.world, by).await;
        agent.until("web", "cold").await;
        let state = agent.state().await;
        assert_eq!([&state["hold"]["active"], &state["hold"]["node"]["active"]], [true, false]);
        assert!(state["hold"]["node"]["reason"].as_str().unwrap().contains(why), "{state}");
        assert_eq!(agent.metric("rouse_hold_node_active").await, 0);
        assert_eq!(tables(&node), ["table inet kube-proxy"], "nor does the table of an agent before stay");
        let refused = soon("the client is refused", connect(&node, FRONTEND)).await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
}

#[tokio::test]
#[ignore = "needs root and Linux 6.12: run by cargo xtask test"]
async fn three_capabilities_are_enough_for_connections_of_the_node() {
    let bench = Bench::new();
    let few = ["setpriv", "--bounding-set=-all,+bpf,+net_admin,+net_raw", "--inh-caps=-all"];
    let agent = Agent::start_by(&bench.net, &bench.world, &few).await;
    agent.until("web", "cold").await;
    assert_eq!(agent.metric("rouse_hold_node_active").await, 1);
    let held = [connect(&bench.net.node(), FRONTEND), connect(&bench.client, FRONTEND)];
    agent.until_held("web", 2).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    for held in held {
        soon("the connection opens", held).await.unwrap().unwrap();
    }
    drop(pod);
}
