//! What the kernel holds goes on without its agent, where bpffs is there to pin it to.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use dataplane::{Hold, Hooks, monotonic};
use integration::{agent::Agent, eventually, net::NODE, process::Process, soon};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    bench::{Bench, FRONTEND},
    clients::{connect, listen},
    count,
    upgrades::pinned,
};

/// A bpffs of the test's own.
pub(crate) struct Bpffs(TempDir);

impl Bpffs {
    pub(crate) fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(folder.path()).status().unwrap();
        assert!(mounted.success());
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// What tells an agent of it.
    fn variable(&self) -> String {
        format!("ROUSE_BPFFS={}", self.path().display())
    }

    fn pins(&self) -> PathBuf {
        self.path().join("rouse/hold-1")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Pins go with it, and with them what they held.
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

async fn agent(bench: &Bench, bpffs: &Bpffs) -> Agent {
    agent_with(bench, bpffs, "auto").await
}

async fn agent_with(bench: &Bench, bpffs: &Bpffs, hooks: &str) -> Agent {
    Agent::start_by(&bench.net, &bench.world, &["env", &bpffs.variable(), &format!("ROUSE_TC_HOOKS={hooks}")]).await
}

/// Takes out what agents have left.
fn remove(bench: &Bench, bpffs: &Bpffs) {
    let path = format!("--bpffs={}", bpffs.path().display());
    let program = integration::process::program("interceptor-under-test");
    bench.net.node().output(program.to_str().unwrap(), &["agent", "--remove", &path]);
}

async fn agent_without_objects(bench: &Bench, bpffs: &Bpffs) -> Agent {
    Agent::start_without_objects(&bench.net, &bench.world, &["env", &bpffs.variable()]).await
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn connections_are_held_while_an_agent_is_killed_and_replaced() {
    let (bench, bpffs) = (Bench::new(), Bpffs::mount());
    let mut first = agent(&bench, &bpffs).await;
    first.until("web", "cold").await;
    let before = connect(&bench.client, FRONTEND);
    first.until_held("web", 1).await;
    first.kill().await;
    // Nobody refuses it, though the node's own rules would.
    let between = connect(&bench.client, FRONTEND);
    let second = agent(&bench, &bpffs).await;
    // Both clients send their packets again after a second.
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
async fn an_agent_without_its_objects_does_not_go_on_with_what_one_before_has_held() {
    let (bench, bpffs) = (Bench::new(), Bpffs::mount());
    let mut first = agent(&bench, &bpffs).await;
    first.until("web", "cold").await;
    first.kill().await;
    let long_ago = monotonic().saturating_sub(Duration::from_secs(31));
    Hold::open(Some(bpffs.path()), Hooks::Auto).unwrap().beat_as_of(long_ago).unwrap();
    let mut second = agent_without_objects(&bench, &bpffs).await;
    let refused = soon("the rules refuse", connect(&bench.client, FRONTEND)).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let state = second.state().await;
    assert_eq!(
        (&state["ready"], &state["pending"], &state["hold"]["active"]),
        (&false.into(), &json!(["objects"]), &false.into())
    );
    second.kill().await;
    let third = agent(&bench, &bpffs).await;
    third.until("web", "cold").await;
    let _held = connect(&bench.client, FRONTEND);
    third.until_held("web", 1).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_client_outside_is_held_while_an_agent_has_not_read_its_objects_yet() {
    let (mut bench, bpffs) = (Bench::new(), Bpffs::mount());
    let outside = bench.net.outside_by_macvlan();
    let mut first = agent(&bench, &bpffs).await;
    first.until("web", "cold").await;
    first.kill().await;
    let before = pinned(&bpffs.pins());
    let mut second = agent_without_objects(&bench, &bpffs).await;
    assert_eq!(pinned(&bpffs.pins()), before);
    // Nobody refuses it, though the node's own rules would.
    let _held = connect(&outside, &format!("{NODE}:30080"));
    second.kill().await;
    agent(&bench, &bpffs).await.until_held("web", 1).await;
}

#[tokio::test]
#[ignore = "needs root and Linux 6.6: run by cargo xtask test"]
async fn an_agent_with_the_other_kind_of_hook_leaves_none_of_the_one_before() {
    for [before, after] in [["auto", "filters"], ["filters", "auto"]] {
        let (bench, bpffs) = (Bench::new(), Bpffs::mount());
        let mut first = agent_with(&bench, &bpffs, before).await;
        first.until("web", "cold").await;
        let held = connect(&bench.client, FRONTEND);
        first.until_held("web", 1).await;
        first.kill().await;
        let second = agent_with(&bench, &bpffs, after).await;
        second.until_held("web", 1).await;
        let _pod = listen(&bench.pod, "web-a").await;
        bench.endpoints(&[&bench.pod]);
        let opens = soon(&format!("the connection opens with {after} after {before}"), held).await;
        assert!(opens.unwrap().unwrap().line.starts_with("web-a to "));
        assert_eq!(second.metric("rouse_hold_connections_total{outcome=\"taken\"}").await, 1);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn filters_outlive_an_agent_that_ends_in_order_and_are_replaced_by_the_next_ones() {
    let (bench, bpffs) = (Bench::new(), Bpffs::mount());
    let filters = || {
        let shown = bench.net.node().output("tc", &["filter", "show", "dev", "veth10", "ingress"]);
        shown.lines().filter(|line| line.contains("hold_ingress")).count()
    };
    let mut first = agent_with(&bench, &bpffs, "filters").await;
    first.until("web", "cold").await;
    first.end().await;
    assert_eq!(filters(), 1);
    // Nobody refuses it, though the node's own rules would.
    let held = connect(&bench.client, FRONTEND);
    let mut second = agent_with(&bench, &bpffs, "filters").await;
    second.until_held("web", 1).await;
    assert_eq!(filters(), 1);
    let _pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    assert!(soon("the connection opens", held).await.unwrap().unwrap().line.starts_with("web-a to "));
    second.end().await;
    remove(&bench, &bpffs);
    assert_eq!(filters(), 0);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn filters_of_an_agent_before_are_taken_off_devices_that_are_left_alone_now() {
    let (mut bench, bpffs) = (Bench::new(), Bpffs::mount());
    let _outside = bench.net.outside_by_macvlan();
    let filters = || bench.net.node().output("tc", &["filter", "show", "dev", "uplink0", "ingress"]);
    let mut first = agent_with(&bench, &bpffs, "filters").await;
    first.until("web", "cold").await;
    assert!(filters().contains("hold_ingress"));
    first.kill().await;
    bench.world.remove("InterceptorRoute", "web");
    let _second = agent_with(&bench, &bpffs, "filters").await;
    eventually("nothing is left", async || filters().is_empty().then_some(())).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_replaced_agent_mends_what_changed_while_there_was_none() {
    let (bench, bpffs) = (Bench::new(), Bpffs::mount());
    let mut first = agent(&bench, &bpffs).await;
    first.until("web", "cold").await;
    first.kill().await;
    bench.world.remove("InterceptorRoute", "web");
    let second = agent(&bench, &bpffs).await;
    let services = async || second.metric("rouse_hold_services").await;
    eventually("no Service is held", async || (services().await == 0).then_some(())).await;
    let pod = listen(&bench.pod, "web-a").await;
    bench.warm();
    let answer = soon("the rules lead there", connect(&bench.client, FRONTEND)).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to "));
    assert_eq!(second.metric("rouse_hold_tries_total").await, 0);
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn what_was_warm_is_not_held_for_as_long_as_it_would_take_to_settle_by_the_next_agent() {
    let (bench, bpffs) = (Bench::new(), Bpffs::mount());
    let _pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    bench.warm();
    let mut first = agent(&bench, &bpffs).await;
    first.until("web", "warm").await;
    first.kill().await;
    let second = agent(&bench, &bpffs).await;
    let heat = async || Some(second.route("web").await["heat"].clone()).filter(|heat| heat != "unknown");
    assert_eq!(eventually("the Service is known", heat).await, "warm");
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn what_an_agent_has_left_can_be_removed() {
    let (bench, bpffs) = (Bench::new(), Bpffs::mount());
    let mut first = agent(&bench, &bpffs).await;
    first.until("web", "cold").await;
    first.kill().await;
    assert!(bpffs.pins().exists());
    remove(&bench, &bpffs);
    assert!(!bpffs.pins().exists());
    let pod = listen(&bench.pod, "web-a").await;
    bench.warm();
    let answer = soon("the rules lead there", connect(&bench.client, FRONTEND)).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to "));
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn an_agent_tells_whether_what_the_kernel_has_outlives_it() {
    let (bench, bpffs, none) = (count::Bench::new(), Bpffs::mount(), tempfile::tempdir().unwrap());
    for (path, pinned, why) in [(bpffs.path(), true, json!(null)), (none.path(), false, json!("it is no bpffs"))] {
        let mut agent = bench.agent_with(&format!("ROUSE_BPFFS={}", path.display())).await;
        let state = agent.state().await;
        for part in ["hold", "count", "steer"] {
            let told = (&state[part]["pinned"], &state[part]["pinnedReason"]);
            assert_eq!(told, (&json!(pinned), &why), "{part}");
            let metric = format!("rouse_dataplane_pinned{{part=\"{part}\"}}");
            assert_eq!(agent.metric(&metric).await, u64::from(pinned));
        }
        agent.kill().await;
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_second_agent_of_a_node_ends_with_the_cause_and_leaves_the_first_ones_programs_alone() {
    let (bench, bpffs) = (Bench::new(), Bpffs::mount());
    let first = agent(&bench, &bpffs).await;
    first.until("web", "cold").await;
    let mut command = bench.net.node().command("env");
    command.args([&bpffs.variable(), "ROUSE_AGENT_PORT=9098", "NODE_NAME=node-1"]);
    command.arg(integration::process::program("interceptor-under-test")).args(["agent", "--zap-encoder=json"]);
    command.arg(format!("--source=dir:{}", bench.world.path().display()));
    let mut second = Process::start(command, None);
    assert!(!soon("the second ends", second.ended()).await.success());
    let log = second.log();
    assert!(log.contains("another agent runs on this node"), "{log}");
    let _held = connect(&bench.client, FRONTEND);
    first.until_held("web", 1).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn requests_count_on_while_an_agent_is_killed_and_replaced() {
    let (bench, bpffs) = (count::Bench::new(), Bpffs::mount());
    let path = format!("ROUSE_BPFFS={}", bpffs.path().display());
    bench.list(true);
    bench.cgroup();
    let mut first = bench.agent_with(&path).await;
    bench.serve().await;
    bench.ask(&bench.client, 3, &[]);
    count::requests(&first, 3).await;
    first.kill().await;
    bench.ask(&bench.client, 4, &[]);
    let mut second = bench.agent_with(&path).await;
    count::requests(&second, 7).await;
    bench.ask(&bench.client, 5, &[]);
    count::requests(&second, 12).await;
    second.kill().await;
    let program = integration::process::program("interceptor-under-test");
    let flag = format!("--bpffs={}", bpffs.path().display());
    bench.net.node().output(program.to_str().unwrap(), &["agent", "--remove", &flag]);
    assert!(!bpffs.path().join("rouse/count-1").exists());
}
