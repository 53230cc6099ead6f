//! Connections to cold Services that are an interceptor's to take reach one without the node's own rules.

use std::{net::SocketAddr, process::Stdio};

use dataplane::steer::Steer;
use integration::{
    World,
    agent::Agent,
    cgroup::{MOUNT_CGROUPS, PodTree},
    eventually,
    net::{Host, Net, Rule},
    process::{Process, program},
    soon,
    world::{INTERCEPTORS, NAMESPACE},
};
use serde_json::{Value, json};

use crate::{
    bench::{FRONTEND, FRONTEND6, VIP, VIP6, cold},
    clients::{PORT, connect, listen, listen_at},
    pins::Bpffs,
    theirs::Theirs,
};

const CLIENT: &str = "4f5c1c9e-9f0d-4d0c-8f0e-1d2e3f4a5b6c";
const INTERCEPTOR: &str = "0e1d2c3b-9f0d-4d0c-8f0e-1d2e3f4a5b6c";
const AGENT: &str = "7a7b7c7d-9f0d-4d0c-8f0e-1d2e3f4a5b6c";
/// Where interceptors stand in for the Service.
const ENTRANCE: u16 = 20_000;

const ASK: &str = "
import socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
print(*client.getpeername()[:2])
client.sendall(b'hello\\n')
print(client.makefile().readline(), end='')
";

/// A node with a client, a pod and an interceptor, whose rules refuse connections to the Service.
struct Bench {
    net: Net,
    client: Host,
    interceptor: Host,
    pod: Host,
    world: World,
    cgroups: PodTree,
}

impl Bench {
    /// A route whose replicas may take longer than a connection can be held.
    fn patient() -> Self {
        Self::with(json!({ "timeouts": { "readiness": "200s" } }))
    }

    fn with(more: Value) -> Self {
        let mut net = Net::new();
        let (client, interceptor, pod) = (net.pod(), net.pod(), net.pod());
        let world = World::new();
        world.direct("web", &[VIP, VIP6], json!({}));
        world.standing_in("web", ENTRANCE, json!([]), more);
        net.rules(&cold(), "");
        let bench = Self { net, client, interceptor, pod, world, cgroups: PodTree::new() };
        bench.cgroups.pod(CLIENT);
        bench.cgroups.pod(INTERCEPTOR);
        bench.world.service(INTERCEPTORS);
        bench.interceptors(true);
        bench
    }

    /// Lists the interceptor, of both families, or as one that is not ready.
    fn interceptors(&self, ready: bool) {
        for (family, address) in ["IPv4", "IPv6"].into_iter().zip(self.interceptor.addresses) {
            self.world.object(&json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{INTERCEPTORS}-{}", family.to_lowercase()), "namespace": NAMESPACE,
                    "labels": { "kubernetes.io/service-name": INTERCEPTORS },
                },
                "addressType": family, "ports": [{ "name": "http", "port": 9090 }],
                "endpoints": [{
                    "addresses": [address.to_string()], "conditions": { "ready": ready },
                    "targetRef": { "kind": "Pod", "name": "interceptor", "uid": INTERCEPTOR },
                }],
            }));
        }
    }

    /// Starts an agent with no more rights than it is given in a cluster.
    async fn agent(&self, variables: &[&str]) -> Agent {
        self.agent_after(MOUNT_CGROUPS, variables).await
    }

    /// The same after what a shell does before.
    async fn agent_after(&self, script: &str, variables: &[&str]) -> Agent {
        let root = format!("ROUSE_CGROUP_ROOT={}", self.cgroups.within());
        let namespace = format!("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE={NAMESPACE}");
        let service = format!("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE={INTERCEPTORS}");
        let script = format!("{script}exec \"$@\"");
        let few = ["setpriv", "--bounding-set=-all,+bpf,+net_admin,+perfmon", "--inh-caps=-all"];
        let by = [&["sh", "-c", &script, "sh", "env", &root, &namespace, &service], variables, &few].concat();
        Agent::start_by(&self.net, &self.world, &by).await
    }

    /// What a process in a pod's cgroup is told of its peer, and what that answers.
    async fn ask(&self, from: &Host, uid: &str, to: &str) -> Result<(SocketAddr, String), String> {
        let to: SocketAddr = to.parse().unwrap();
        let script = format!("{}exec python3 -c \"$0\" \"$@\"", self.cgroups.enter(uid));
        let mut command = from.command("sh");
        command.args(["-c", &script, ASK, &to.ip().to_string(), &to.port().to_string()]);
        let output = soon("the client ends", command.output()).await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let Some((peer, line)) = said.split_once('\n').filter(|_| output.status.success()) else {
            return Err(String::from_utf8(output.stderr).unwrap());
        };
        let (ip, port) = peer.split_once(' ').unwrap();
        Ok((SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap()), line.trim_end().to_owned()))
    }

    /// A client's connection is refused by the node's own rules: once programs that were pinned have gone, a moment after their
    /// pins.
    async fn refused(&self, from: &Host, uid: &str) {
        let ask = async || self.ask(from, uid, FRONTEND).await.err();
        let error = eventually("the node's own rules refuse", ask).await;
        assert!(error.contains("ConnectionRefusedError"), "{error}");
    }

    /// The pod is ready, and the node's rules lead there.
    fn warm(&self) {
        let rules = [(FRONTEND, 0), (FRONTEND6, 1)].map(|(frontend, family)| Rule {
            frontend: frontend.parse().unwrap(),
            pods: vec![(self.pod.addresses[family], PORT).into()],
        });
        self.net.rules(&rules, "");
        self.world.endpoints("web", &self.pod.addresses.map(|ip| SocketAddr::new(ip, PORT)));
    }
}

async fn until_steered(agent: &Agent, steered: bool) {
    let what = format!("the Service is steered: {steered}");
    let cgroups = async || agent.state().await["steer"]["cgroups"].as_array().unwrap().len();
    eventually(&what, async || (agent.route("web").await["steered"] == steered).then_some(())).await;
    eventually(&what, async || (cgroups().await == usize::from(steered)).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_reaches_an_interceptor_of_a_cold_service_and_the_workloads_pod_of_a_warm_one() {
    let bench = Bench::patient();
    let agent = bench.agent(&[]).await;
    until_steered(&agent, true).await;
    let mut interceptor = listen_at(&bench.interceptor, ENTRANCE, "interceptor").await;
    let pod = listen(&bench.pod, "web-a").await;
    for frontend in [FRONTEND, FRONTEND6] {
        let (peer, line) = bench.ask(&bench.client, CLIENT, frontend).await.unwrap();
        assert_eq!(peer.to_string(), frontend, "the client is told of the Service");
        let from = interceptor.clients.recv().await.unwrap();
        assert_eq!(line, format!("interceptor to {from}: hello"));
        assert_eq!(from.ip(), bench.client.like(peer.ip()), "it comes from the client itself");
    }
    let counted = async || agent.metric("rouse_steer_connections_total").await;
    eventually("both are counted", async || (counted().await == 2).then_some(())).await;
    assert_eq!(agent.metric("rouse_hold_tries_total").await, 0);
    bench.warm();
    until_steered(&agent, false).await;
    for frontend in [FRONTEND, FRONTEND6] {
        let (peer, line) = bench.ask(&bench.client, CLIENT, frontend).await.unwrap();
        assert_eq!(peer.to_string(), frontend);
        assert!(line.starts_with("web-a to "), "{line}");
    }
    bench.net.rules(&cold(), "");
    bench.world.endpoints("web", &[]);
    until_steered(&agent, true).await;
    let (_, line) = bench.ask(&bench.client, CLIENT, FRONTEND).await.unwrap();
    assert!(line.starts_with("interceptor to "), "{line}");
    drop(pod);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_cold_service_shows_its_placeholder_and_then_its_pod() {
    let placeholder = json!({ "statusCode": 503, "body": "soon" });
    let bench = Bench::with(json!({ "coldStart": { "placeholder": { "response": placeholder } } }));
    let mut command = bench.interceptor.command("sh");
    let script = format!("{}exec \"$0\" \"$@\"", bench.cgroups.enter(INTERCEPTOR));
    let source = format!("dir:{}", bench.world.path().display());
    let interceptor = program("interceptor-under-test");
    command.args(["-c", &script, interceptor.to_str().unwrap(), "--zap-encoder=json", "--dataplane=none"]);
    command.args(["--source", &source]).env_remove("KUBECONFIG").envs([
        ("KEDA_HTTP_PROXY_PORT", "8080"),
        ("KEDA_HTTP_ADMIN_PORT", "9090"),
        ("OTEL_PROM_EXPORTER_PORT", "0"),
    ]);
    let mut interceptor = Process::start(command, None);
    interceptor.says("interceptor starts").await;
    eventually("it listens for the Service", async || {
        let state = bench.interceptor.json(9090, "/state").await;
        (state["entrances"].as_array()?.len() == 1 && state["entrances"][0]["error"].is_null()).then_some(())
    })
    .await;
    let agent = bench.agent(&[]).await;
    until_steered(&agent, true).await;
    let get = async || {
        let script = format!("{}exec curl -sS -w ' %{{http_code}}' http://{VIP}/", bench.cgroups.enter(CLIENT));
        let mut command = bench.client.command("sh");
        let output = command.args(["-c", &script]).stderr(Stdio::inherit()).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(get().await, "soon 503");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("index.html"), "from the pod").unwrap();
    let mut server = bench.pod.command("python3");
    server.args(["-m", "http.server", &PORT.to_string(), "--bind", "::"]).current_dir(folder.path());
    let _server = server.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    bench.warm();
    eventually("the pod answers", async || (get().await == "from the pod 200").then_some(())).await;
    until_steered(&agent, false).await;
    assert_eq!(get().await, "from the pod 200");
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn processes_in_the_nodes_network_are_steered_if_they_are_of_pods_and_interceptors_never_are() {
    let bench = Bench::patient();
    let agent = bench.agent(&[]).await;
    until_steered(&agent, true).await;
    let _interceptor = listen_at(&bench.interceptor, ENTRANCE, "interceptor").await;
    let node = bench.net.node();
    let (_, line) = bench.ask(&node, CLIENT, FRONTEND).await.unwrap();
    assert!(line.starts_with("interceptor to "), "{line}");
    bench.refused(&bench.interceptor, INTERCEPTOR).await;
    let outside = soon("the node's own rules refuse", connect(&node, FRONTEND)).await.unwrap().unwrap_err();
    assert_eq!(outside.kind(), std::io::ErrorKind::ConnectionRefused, "it is in no pod");
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn of_several_kubelets_on_a_machine_an_agent_steers_the_pods_of_its_own() {
    let bench = Bench::patient();
    let second = bench.cgroups.path().join("node2/kubepods");
    std::fs::create_dir_all(&second).unwrap();
    // What another agent has there is none of a network's.
    let mut other = Steer::open(None).unwrap();
    assert_eq!(other.attach(&[second]), []);
    let agent = bench.agent_after(&bench.cgroups.enter(AGENT), &[]).await;
    until_steered(&agent, true).await;
    let steer = agent.state().await["steer"].clone();
    let own = format!("{}/kubepods.slice", bench.cgroups.within());
    assert_eq!((&steer["cgroups"], &steer["otherPrograms"]), (&json!([own]), &json!(0)));
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn without_an_interceptor_that_is_ready_everything_is_left_alone() {
    let bench = Bench::patient();
    bench.interceptors(false);
    let agent = bench.agent(&[]).await;
    let known = async || agent.state().await["count"]["interceptors"].as_array().unwrap().len();
    eventually("the interceptor is known", async || (known().await == 2).then_some(())).await;
    assert_eq!(agent.state().await["steer"]["cgroups"], json!([]));
    bench.refused(&bench.client, CLIENT).await;
    bench.interceptors(true);
    let _interceptor = listen_at(&bench.interceptor, ENTRANCE, "interceptor").await;
    until_steered(&agent, true).await;
    let (_, line) = bench.ask(&bench.client, CLIENT, FRONTEND).await.unwrap();
    assert!(line.starts_with("interceptor to "), "{line}");
    bench.interceptors(false);
    eventually("nothing is attached", async || (agent.state().await["steer"]["cgroups"] == json!([])).then_some(()))
        .await;
    bench.refused(&bench.client, CLIENT).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn connections_are_steered_while_an_agent_is_killed_and_replaced_and_what_it_left_can_be_removed() {
    let (bench, bpffs) = (Bench::patient(), Bpffs::mount());
    let variable = format!("ROUSE_BPFFS={}", bpffs.path().display());
    let _interceptor = listen_at(&bench.interceptor, ENTRANCE, "interceptor").await;
    let mut first = bench.agent(&[&variable]).await;
    until_steered(&first, true).await;
    first.kill().await;
    let (peer, line) = bench.ask(&bench.client, CLIENT, FRONTEND).await.unwrap();
    assert!(line.starts_with("interceptor to ") && peer.ip().to_string() == VIP, "{line}");
    let mut second = bench.agent(&[&variable]).await;
    until_steered(&second, true).await;
    assert_eq!(second.state().await["steer"]["services"], "left", "what it has taken over is nobody else's");
    bench.ask(&bench.client, CLIENT, FRONTEND).await.unwrap();
    let counted = async || second.metric("rouse_steer_connections_total").await;
    eventually("both are counted", async || (counted().await == 2).then_some(())).await;
    second.kill().await;
    let flag = format!("--bpffs={}", bpffs.path().display());
    let program = program("interceptor-under-test");
    bench.net.node().output(program.to_str().unwrap(), &["agent", "--remove", &flag]);
    assert!(!bpffs.path().join("rouse/steer-1").exists());
    bench.refused(&bench.client, CLIENT).await;
    let mut third = bench.agent(&[&variable]).await;
    until_steered(&third, true).await;
    third.kill().await;
    let off = bench.agent(&[&variable, "ROUSE_STEER=off"]).await;
    assert_eq!(off.state().await["steer"]["reason"], "switched off");
    assert!(!bpffs.path().join("rouse/steer-1").exists(), "it has taken away what the others have left");
    bench.refused(&bench.client, CLIENT).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn every_cold_service_is_steered_where_that_is_asked_for() {
    let bench = Bench::with(json!({}));
    let agent = bench.agent(&["ROUSE_STEER=all"]).await;
    let _interceptor = listen_at(&bench.interceptor, ENTRANCE, "interceptor").await;
    until_steered(&agent, true).await;
    assert_eq!(agent.route("web").await["heat"], "cold", "who is not steered is held");
    let (_, line) = bench.ask(&bench.client, CLIENT, FRONTEND).await.unwrap();
    assert!(line.starts_with("interceptor to "), "{line}");
    // A client whose cgroup is no pod's.
    let held = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    let _pod = listen(&bench.pod, "web-a").await;
    bench.warm();
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to "), "{}", answer.line);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn where_somebody_else_translates_at_connect_every_cold_service_is_steered_before_that() {
    for how in ["link", "multi"] {
        let bench = Bench::with(json!({}));
        let agent = bench.agent(&[]).await;
        agent.until("web", "cold").await;
        let state = agent.state().await;
        assert_eq!((&state["steer"]["services"], &state["steer"]["otherPrograms"]), (&json!("left"), &json!(0)));
        drop(agent);
        // As a network's that is there before the agent is.
        let elsewhere = SocketAddr::new(bench.pod.addresses[0], PORT).to_string();
        let theirs = Theirs::on_cgroup(bench.cgroups.path(), &["connect4", how, FRONTEND, &elsewhere]);
        let _pod = listen(&bench.pod, "web-a").await;
        let _interceptor = listen_at(&bench.interceptor, ENTRANCE, "interceptor").await;
        let (_, line) = bench.ask(&bench.client, CLIENT, FRONTEND).await.unwrap();
        assert!(line.starts_with("web-a to "), "it translates: {line}");
        let agent = bench.agent(&[]).await;
        until_steered(&agent, true).await;
        let state = agent.state().await;
        assert_eq!((&state["steer"]["services"], &state["steer"]["otherPrograms"]), (&json!("all"), &json!(1)));
        let (peer, line) = bench.ask(&bench.client, CLIENT, FRONTEND).await.unwrap();
        assert!(line.starts_with("interceptor to ") && peer.to_string() == FRONTEND, "{how}: {line}");
        bench.world.endpoints("web", &bench.pod.addresses.map(|ip| SocketAddr::new(ip, PORT)));
        until_steered(&agent, false).await;
        let (peer, line) = bench.ask(&bench.client, CLIENT, FRONTEND).await.unwrap();
        assert!(line.starts_with("web-a to "), "{how}: a warm Service is theirs: {line}");
        assert_eq!(peer.to_string(), elsewhere, "{how}: the node's own rules have no part in it");
        drop(theirs);
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_program_of_others_that_ours_would_put_out_of_force_stays_and_the_state_says_so() {
    let bench = Bench::patient();
    let mut theirs = Theirs::on_cgroup(bench.cgroups.path(), &["connect4", "override"]);
    let agent = bench.agent(&[]).await;
    let refused = async || agent.state().await["steer"]["refusedCgroups"].as_array()?.first().cloned();
    let refused = eventually("a cgroup is refused", refused).await;
    assert!(refused.to_string().contains("would no longer run"), "{refused}");
    bench.refused(&bench.client, CLIENT).await;
    assert!(theirs.runs() > 0, "theirs goes on");
    assert_eq!(agent.metric("rouse_steer_cgroups_refused").await, 1);
}
