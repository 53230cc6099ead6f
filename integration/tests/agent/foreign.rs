//! Filters of others on the same devices, and ours as a filter, as on kernels before 6.6.

use integration::{agent::Agent, eventually, net::Host, soon};

use crate::{
    bench::{Bench, FRONTEND},
    clients::{connect, listen},
};

/// The client's device on the node.
const DEVICE: &str = "veth10";

/// Somebody else's filter, behind ours: what it does with what clients send to the Service. Of what kernels have, this is in
/// most: to mirror to a device that is down counts and changes nothing, to redirect there drops.
fn theirs(node: &Host, does: &str) {
    node.output("ip", &["link", "add", "down0", "type", "veth", "peer", "name", "down1"]);
    tc(node, &format!("qdisc add dev {DEVICE} clsact"));
    let matches = "protocol ip u32 match ip dst 10.96.0.1/32";
    tc(node, &format!("filter add dev {DEVICE} ingress pref 9 {matches} action mirred egress {does} dev down0"));
}

async fn agent(bench: &Bench, hooks: &str) -> Agent {
    Agent::start_by(&bench.net, &bench.world, &["env", &format!("ROUSE_TC_HOOKS={hooks}")]).await
}

fn tc(node: &Host, args: &str) -> String {
    node.output("tc", &args.split(' ').collect::<Vec<_>>())
}

/// How many packets somebody else's filter has seen.
fn seen(node: &Host) -> u64 {
    let text = tc(node, &format!("-s filter show dev {DEVICE} ingress pref 9"));
    let sent = text.lines().find_map(|line| line.trim().strip_prefix("Sent ")).unwrap_or_else(|| panic!("{text}"));
    let words: Vec<_> = sent.split(' ').collect();
    words[2].parse().unwrap_or_else(|_| panic!("{text}"))
}

#[tokio::test]
#[ignore = "needs root and Linux 6.6: run by cargo xtask test"]
async fn a_filter_of_others_sees_what_is_sent_on_and_not_what_is_held_with_either_kind_of_hook() {
    for hooks in ["auto", "filters"] {
        let bench = Bench::new();
        let node = bench.net.node();
        theirs(&node, "mirror");
        let agent = agent(&bench, hooks).await;
        agent.until("web", "cold").await;
        let held = connect(&bench.client, FRONTEND);
        agent.until_held("web", 1).await;
        assert_eq!(seen(&node), 0, "{hooks}");
        let pod = listen(&bench.pod, "web-a").await;
        bench.endpoints(&[&bench.pod]);
        soon("the connection opens", held).await.unwrap().unwrap();
        assert!(seen(&node) > 0, "{hooks}");
        drop(pod);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_filter_of_others_that_refuses_a_client_keeps_what_was_held_from_the_pod() {
    for hooks in ["auto", "filters"] {
        let bench = Bench::new();
        let node = bench.net.node();
        theirs(&node, "redirect");
        let agent = agent(&bench, hooks).await;
        agent.until("web", "cold").await;
        let mut held = connect(&bench.client, FRONTEND);
        agent.until_held("web", 1).await;
        let mut pod = listen(&bench.pod, "web-a").await;
        bench.endpoints(&[&bench.pod]);
        eventually("it was tried, and tried again", async || {
            (agent.metric("rouse_hold_tries_total").await >= 2).then_some(())
        })
        .await;
        assert!(held.try_recv().is_err() && pod.clients.try_recv().is_err(), "{hooks}: nobody gets past it");
        tc(&node, &format!("filter del dev {DEVICE} ingress pref 9"));
        soon("the connection opens", held).await.unwrap().unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn filters_of_an_agent_that_was_killed_are_replaced_by_those_of_the_next_and_can_be_removed() {
    let bench = Bench::new();
    let node = bench.net.node();
    let ours = |direction: &str| {
        let all = tc(&node, &format!("filter show dev {DEVICE} {direction}"));
        all.lines().filter(|line| line.contains("hold_")).count()
    };
    let mut first = agent(&bench, "filters").await;
    first.until("web", "cold").await;
    assert_eq!([ours("ingress"), ours("egress")], [1, 1]);
    first.kill().await;
    assert_eq!([ours("ingress"), ours("egress")], [1, 1], "nobody has taken them away");
    let mut second = agent(&bench, "filters").await;
    second.until("web", "cold").await;
    assert_eq!([ours("ingress"), ours("egress")], [1, 1]);
    let held: Vec<_> = (0..20).map(|_| connect(&bench.client, FRONTEND)).collect();
    second.until_held("web", 20).await;
    bench.endpoints(&[&bench.pod]);
    eventually("the pod has refused", async || (second.metric("rouse_hold_tries_total").await > 30).then_some(()))
        .await;
    let pod = listen(&bench.pod, "web-a").await;
    for held in held {
        soon("the connection opens", held).await.unwrap().unwrap();
    }
    second.kill().await;
    let program = integration::process::program("interceptor-under-test");
    node.output(program.to_str().unwrap(), &["agent", "--remove"]);
    assert_eq!([ours("ingress"), ours("egress")], [0, 0]);
    drop(pod);
}
