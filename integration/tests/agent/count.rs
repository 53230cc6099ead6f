//! What pods take without a proxy is counted by the agent of their node, and scalers are told.

use std::{
    io::Write as _,
    net::{IpAddr, TcpStream},
    process::Stdio,
};

use integration::{
    World,
    agent::Agent,
    cgroup::{MOUNT_CGROUPS, PodTree},
    eventually,
    net::{Host, Net},
    process::{Process, program},
    world::{INTERCEPTORS, NAMESPACE},
};
use serde_json::json;

pub(crate) const VIP: &str = "10.96.0.1";
pub(crate) const UID: &str = "4f5c1c9e-9f0d-4d0c-8f0e-1d2e3f4a5b6c";
const PORT: u16 = 8080;
const SCALER_METRICS: u16 = 2223;
/// Where KEDA would ask it.
pub(crate) const SCALER: u16 = 9100;

/// A node with clients and a pod, whose cgroup is where a kubelet with the driver `systemd` would make it.
pub(crate) struct Bench {
    pub(crate) net: Net,
    pub(crate) client: Host,
    interceptor: Host,
    /// A pod of another namespace.
    stranger: Host,
    pub(crate) pod: Host,
    pub(crate) world: World,
    cgroups: PodTree,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(json!({}))
    }

    /// The same, of a route with more.
    pub(crate) fn with(mut more: serde_json::Value) -> Self {
        let mut net = Net::new();
        let (client, interceptor, stranger, pod) = (net.pod(), net.pod(), net.pod(), net.pod());
        let world = World::new();
        if more.get("scalingMetric").is_none() {
            more["scalingMetric"] =
                json!({ "concurrency": { "targetValue": 10 }, "connections": { "targetValue": 5 } });
        }
        world.direct("web", &[VIP], more);
        world.interceptors(&[(interceptor.addresses[0], 9090).into()]);
        Self { net, client, interceptor, stranger, pod, world, cgroups: PodTree::new() }
    }

    /// Starts an agent with no more rights than it is given in a cluster.
    pub(crate) async fn agent(&self) -> Agent {
        self.agent_with("ROUSE_BPFFS=").await
    }

    /// The same, with a variable set.
    pub(crate) async fn agent_with(&self, variable: &str) -> Agent {
        self.agent_that_may(variable, ",+perfmon").await
    }

    /// The same, with two capabilities and others, such as `,+perfmon`.
    pub(crate) async fn agent_that_may(&self, variable: &str, more: &str) -> Agent {
        let root = format!("ROUSE_CGROUP_ROOT={}", self.cgroups.within());
        let namespace = format!("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE={NAMESPACE}");
        let service = format!("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE={INTERCEPTORS}");
        let mounted = format!("{MOUNT_CGROUPS}exec \"$@\"");
        let bounding = format!("--bounding-set=-all,+bpf,+net_admin{more}");
        let few = ["setpriv", &bounding, "--inh-caps=-all"];
        let by = [&["sh", "-c", &mounted, "sh", "env", variable, &root, &namespace, &service], &few[..]].concat();
        Agent::start_by(&self.net, &self.world, &by).await
    }

    /// Starts what runs in the pod, in its cgroup.
    pub(crate) async fn serve(&self) {
        self.start(&format!("exec python3 -m http.server {PORT}"));
        let addr = (self.pod.addresses[0], PORT);
        eventually("the pod listens", async || self.client.run(move || TcpStream::connect(addr)).await.ok()).await;
    }

    /// Starts a script in the pod, in its cgroup.
    pub(crate) fn start(&self, script: &str) {
        let script = format!("{}{script}", self.cgroups.enter(UID));
        let mut command = self.pod.command("sh");
        command.args(["-c", &script]).current_dir(self.world.path()).stdout(Stdio::null()).stderr(Stdio::null());
        drop(command.spawn().unwrap());
    }

    /// Lists the pod, which is found by its UID.
    pub(crate) fn list(&self, ready: bool) {
        self.list_at(self.pod.addresses[0], "web-1", ready);
    }

    /// Lists the pod at one of its addresses, in a slice of that name.
    pub(crate) fn list_at(&self, address: IpAddr, slice: &str, ready: bool) {
        self.world.object(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": slice, "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" }, "ports": [{ "name": "http", "port": PORT }],
            "endpoints": [{
                "addresses": [address.to_string()], "conditions": { "ready": ready }, "nodeName": "node-1",
                "targetRef": { "kind": "Pod", "name": "web-a", "uid": UID },
            }],
        }));
    }

    /// Lists a pod that has no cgroup here.
    pub(crate) fn list_other(&self) {
        self.world.object(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "web-3", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "ports": [{ "name": "http", "port": PORT }],
            "endpoints": [{
                "addresses": [self.stranger.addresses[0].to_string()], "nodeName": "node-1",
                "targetRef": { "kind": "Pod", "name": "web-b", "uid": "another" },
            }],
        }));
    }

    /// Makes the pod's cgroup.
    pub(crate) fn cgroup(&self) {
        self.cgroups.pod(UID);
    }

    /// Starts a scaler that listens to the node's agent.
    pub(crate) async fn scaler(&self) -> Process {
        self.world.service("agents");
        self.world.endpoints("agents", &[("127.0.0.1".parse::<IpAddr>().unwrap(), 9097).into()]);
        let mut command = self.net.node().command(program("scaler-under-test").to_str().unwrap());
        command.args(["--zap-encoder=json", "--source", &format!("dir:{}", self.world.path().display())]).envs([
            ("KEDA_HTTP_SCALER_PORT", SCALER.to_string().as_str()),
            ("OTEL_PROM_EXPORTER_PORT", &SCALER_METRICS.to_string()),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE", NAMESPACE),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE", INTERCEPTORS),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_PORT", "9090"),
            ("ROUSE_AGENT_ADMIN_SERVICE", "agents"),
        ]);
        let mut scaler = Process::start(command, None);
        scaler.says("scaler is serving").await;
        scaler
    }

    /// Waits until a metric of the scaler is as expected for the route.
    pub(crate) async fn told(&self, name: &str, expected: impl Fn(f64) -> bool) {
        let last = std::cell::Cell::new(None);
        let node = self.net.node();
        let as_expected = async || {
            let text = node.get(SCALER_METRICS, "/metrics").await;
            let line = text.lines().find(|line| line.starts_with(name) && line.contains("\"web\""))?;
            last.set(line.rsplit(' ').next()?.parse().ok());
            last.get().is_some_and(&expected).then_some(())
        };
        eventually(&format!("the scaler's {name}"), as_expected).await;
    }

    /// So many requests, one after the other.
    pub(crate) fn ask(&self, from: &Host, times: usize, more: &[&str]) {
        let url = format!("http://{}:{PORT}/", self.pod.addresses[0]);
        for _ in 0..times {
            from.output("curl", &[&["-sS", "-o", "/dev/null"], more, &[&url]].concat());
        }
    }
}

pub(crate) async fn requests(agent: &Agent, expected: u64) {
    eventually(&format!("{expected} requests are counted"), async || {
        (agent.route("web").await["taken"]["requests"] == expected).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs root and Linux 6.12: run by cargo xtask test"]
async fn requests_to_a_pod_are_counted_from_when_its_cgroup_appears_with_two_capabilities() {
    let bench = Bench::new();
    let agent = bench.agent_that_may("ROUSE_BPFFS=", "").await;
    bench.list(true);
    eventually("the pod is missed", async || (agent.metric("rouse_count_pods_missing").await == 1).then_some(())).await;
    bench.cgroup();
    eventually("the pod is counted", async || (agent.state().await["count"]["pods"] == json!([UID])).then_some(()))
        .await;
    bench.serve().await;
    bench.ask(&bench.client, 20, &[]);
    requests(&agent, 20).await;
    eventually("none is in flight", async || (agent.route("web").await["taken"]["inFlight"] == 0).then_some(())).await;
    assert_eq!(agent.route("web").await["taken"]["failed"], 0);
    let state = agent.state().await;
    assert_eq!(state["count"]["http2Reason"], "missing CAP_PERFMON", "that takes a third: its connections count");
    assert_eq!((state["count"]["http2"] == false, agent.metric("rouse_count_http2_active").await), (true, 0));
    let labels = format!("{{route_name=\"web\",route_namespace=\"{NAMESPACE}\"}}");
    assert_eq!(agent.metric(&format!("rouse_direct_requests_total{labels}")).await, 20);
    let addr = (bench.pod.addresses[0], PORT);
    let speak = move || TcpStream::connect(addr)?.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    bench.client.run(speak).await.unwrap();
    requests(&agent, 21).await;
    // It tells of what begins after the agent has last seen that nothing does.
    eventually("the kernel tells that there is something to do", async || {
        bench.ask(&bench.client, 1, &[]);
        (agent.metric("rouse_count_wakes_total").await > 0).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn what_interceptors_send_and_what_the_kubelet_asks_is_not_counted() {
    let bench = Bench::new();
    bench.list(true);
    bench.cgroup();
    let agent = bench.agent().await;
    bench.serve().await;
    eventually("the interceptor is known", async || {
        let state = agent.state().await;
        (state["count"]["interceptors"] == json!([bench.interceptor.addresses[0].to_string()])).then_some(())
    })
    .await;
    bench.ask(&bench.interceptor, 5, &[]);
    bench.ask(&bench.net.node(), 5, &["-A", "kube-probe/1.36"]);
    bench.ask(&bench.net.node(), 3, &[]);
    bench.ask(&bench.client, 1, &[]);
    requests(&agent, 4).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn scalers_are_told_of_requests_that_no_proxy_has_seen() {
    let bench = Bench::new();
    bench.list(true);
    bench.cgroup();
    let agent = bench.agent().await;
    bench.serve().await;
    let _scaler = bench.scaler().await;
    let told = async |name: &str, at_least: f64| bench.told(name, |value| value >= at_least).await;
    bench.ask(&bench.client, 7, &[]);
    told("scaler_route_connections_opened_total", 7.0).await;
    // One that says nothing, as those of pools do.
    let addr = (bench.pod.addresses[0], PORT);
    let idle = bench.client.run(move || TcpStream::connect(addr)).await.unwrap();
    told("scaler_route_connections{", 1.0).await;
    drop(idle);
    // One that sends half of its head and waits.
    let hangs = bench.client.run(move || {
        let mut stream = TcpStream::connect(addr)?;
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: h\r\n")?;
        std::io::Result::Ok(stream)
    });
    let hangs = hangs.await.unwrap();
    told("scaler_route_concurrency", 1.0).await;
    drop(hangs);
    eventually("the pod is idle", async || (agent.route("web").await["taken"]["inFlight"] == 0).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn clients_that_a_route_ignores_are_not_counted() {
    // Their addresses, and those of the namespace, as the test's network gives them.
    let bench =
        Bench::with(json!({ "demand": { "ignore": { "cidrs": ["10.244.1.10"], "namespaces": ["monitoring"] } } }));
    assert_eq!(bench.client.addresses[0].to_string(), "10.244.1.10");
    bench.world.object(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "prometheus-1", "namespace": "monitoring", "labels": { "kubernetes.io/service-name": "prometheus" },
        },
        "addressType": "IPv4", "ports": [{ "name": "http", "port": 9090 }],
        "endpoints": [{ "addresses": [bench.stranger.addresses[0].to_string()], "conditions": { "ready": true } }],
    }));
    bench.cgroup();
    let agent = bench.agent().await;
    bench.serve().await;
    // It was not listed when they were first told of.
    bench.list(true);
    eventually("the pod is counted", async || (agent.state().await["count"]["pods"] == json!([UID])).then_some(()))
        .await;
    let ignored = agent.route("web").await["ignored"].clone();
    assert_eq!(ignored, json!(["10.244.1.10/32", "namespace monitoring"]));
    bench.ask(&bench.client, 5, &[]);
    bench.ask(&bench.stranger, 6, &[]);
    bench.ask(&bench.net.node(), 2, &[]);
    requests(&agent, 2).await;
}
