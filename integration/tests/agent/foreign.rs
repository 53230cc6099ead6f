//! Filters of others on the same devices, and ours as a filter, as on kernels before 6.6.

use std::{io::ErrorKind, process::Command};

use integration::{agent::Agent, eventually, net::Host, soon};

use crate::{
    bench::{Bench, FRONTEND, VIP},
    clients::{connect, listen},
    pins::Bpffs,
    theirs::{PYTHON, Theirs},
};

/// The client's device on the node.
const DEVICE: &str = "veth10";

/// Somebody else's filter, behind ours: what it does with what clients send to the Service. Of what kernels have, this is in
/// most: to mirror to a device that is down counts and changes nothing, to redirect there drops.
fn filter(node: &Host, does: &str) {
    node.output("ip", &["link", "add", "down0", "type", "veth", "peer", "name", "down1"]);
    tc(node, &format!("qdisc add dev {DEVICE} clsact"));
    let matches = "protocol ip u32 match ip dst 10.96.0.1/32";
    tc(node, &format!("filter add dev {DEVICE} ingress pref 9 {matches} action mirred egress {does} dev down0"));
}

/// Somebody else's program on the client's device, as the first or the last of those that have links.
fn program(node: &Host, at: &str, does: &str) -> Theirs {
    let python = node.command(PYTHON).into_std();
    Theirs::attach(python, &["tcx", DEVICE, at, does, VIP])
}

/// Somebody else's program as a filter of this preference.
fn program_as_filter(node: &Host, bpffs: &Bpffs, pref: u16, does: &str) -> Theirs {
    let pin = bpffs.path().join("theirs").display().to_string();
    let theirs = Theirs::attach(Command::new(PYTHON), &["pin", &pin, does, VIP]);
    tc(node, &format!("filter add dev {DEVICE} ingress pref {pref} bpf direct-action object-pinned {pin}"));
    theirs
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
        filter(&node, "mirror");
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
        filter(&node, "redirect");
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
async fn a_program_of_others_behind_ours_sees_what_is_sent_on_and_one_before_it_all() {
    for (at, is_early) in [("first", true), ("last", true), ("last", false), ("first", false)] {
        let case = format!("{at}, there before the agent: {is_early}");
        let bench = Bench::new();
        let node = bench.net.node();
        let early = is_early.then(|| program(&node, at, "next"));
        let agent = agent(&bench, "auto").await;
        agent.until("web", "cold").await;
        let mut theirs = early.unwrap_or_else(|| program(&node, at, "next"));
        // Ours takes the first place when it comes.
        let is_before_ours = at == "first" && !is_early;
        let held = connect(&bench.client, FRONTEND);
        agent.until_held("web", 1).await;
        assert_eq!(theirs.runs() > 0, is_before_ours, "{case}");
        let before = theirs.runs();
        let _pod = listen(&bench.pod, "web-a").await;
        bench.endpoints(&[&bench.pod]);
        soon("the connection opens", held).await.unwrap().unwrap();
        assert!(theirs.runs() > before, "{case}");
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_program_of_others_that_drops_what_is_sent_on_keeps_it_from_the_pod() {
    let bench = Bench::new();
    let agent = agent(&bench, "auto").await;
    agent.until("web", "cold").await;
    let theirs = program(&bench.net.node(), "last", "drop");
    let mut held = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    let mut pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    let tried = async || (agent.metric("rouse_hold_tries_total").await >= 2).then_some(());
    eventually("it was tried, and tried again", tried).await;
    assert!(held.try_recv().is_err() && pod.clients.try_recv().is_err(), "nobody gets past it");
    drop(theirs);
    soon("the connection opens", held).await.unwrap().unwrap();
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn what_others_take_before_ours_is_not_held() {
    for hooks in ["auto", "filters"] {
        let (bench, bpffs) = (Bench::new(), Bpffs::mount());
        let node = bench.net.node();
        let agent = agent(&bench, hooks).await;
        agent.until("web", "cold").await;
        let before_ours = |does| match hooks {
            "auto" => program(&node, "first", does),
            // The newest of a preference is asked first.
            _ => program_as_filter(&node, &bpffs, 1, does),
        };
        let gone = |theirs: Theirs| {
            if hooks == "filters" {
                // Ours has a handle of its own.
                tc(&node, &format!("filter del dev {DEVICE} ingress pref 1 handle 0x1 bpf"));
            }
            drop(theirs);
        };
        let theirs = before_ours("pass");
        let refused = soon("the node's own rules refuse", connect(&bench.client, FRONTEND)).await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{hooks}");
        gone(theirs);
        let mut theirs = before_ours("drop");
        let held = connect(&bench.client, FRONTEND);
        eventually("its first packet is dropped", async || (theirs.runs() > 0).then_some(())).await;
        assert_eq!(agent.route("web").await["held"], 0, "{hooks}");
        gone(theirs);
        agent.until_held("web", 1).await;
        let _pod = listen(&bench.pod, "web-a").await;
        bench.endpoints(&[&bench.pod]);
        soon("the connection opens", held).await.unwrap().unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_device_whose_first_place_somebody_elses_filter_has_is_named_and_what_comes_from_there_is_not_held() {
    let bench = Bench::new();
    let node = bench.net.node();
    tc(&node, &format!("qdisc add dev {DEVICE} clsact"));
    tc(&node, &format!("filter add dev {DEVICE} ingress pref 1 protocol ip u32 match ip dst {VIP}/32 flowid 1:1"));
    let agent = agent(&bench, "filters").await;
    agent.until("web", "cold").await;
    let state = agent.state().await;
    assert_eq!(state["hold"]["failedDevices"][0]["name"], DEVICE, "{state}");
    let refused = soon("the node's own rules refuse", connect(&bench.client, FRONTEND)).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
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
    assert_eq!([ours("ingress"), ours("egress")], [1, 0], "answers are looked at where something is held");
    let _given_up = connect(&bench.client, FRONTEND);
    first.until_held("web", 1).await;
    eventually("they are now", async || (ours("egress") == 1).then_some(())).await;
    first.kill().await;
    assert_eq!([ours("ingress"), ours("egress")], [1, 1], "nobody has taken them away");
    let mut second = agent(&bench, "filters").await;
    second.until("web", "cold").await;
    let held: Vec<_> = (0..20).map(|_| connect(&bench.client, FRONTEND)).collect();
    second.until_held("web", 21).await;
    eventually("answers are looked at once more", async || (ours("egress") == 1).then_some(())).await;
    assert_eq!(ours("ingress"), 1);
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
