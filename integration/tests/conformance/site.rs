//! A node with a client, two pods, an interceptor and a scaler, and, at level node, an agent.

use std::{
    net::{IpAddr, SocketAddr},
    process::Stdio,
};

use integration::{
    World,
    agent::Agent,
    cgroup::{Cgroup, MOUNT_CGROUPS, PodTree},
    eventually,
    net::{Host, Net, Rule},
    process::{Process, program},
    world::{INTERCEPTORS, NAMESPACE},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const VIP: &str = "10.96.0.1";
const UIDS: [&str; 2] = ["4f5c1c9e-9f0d-4d0c-8f0e-1d2e3f4a5b6c", "4f5c1c9e-9f0d-4d0c-8f0e-1d2e3f4a5b6d"];

/// Where pods listen, the interceptor serves clients and others, and the scaler shows what it knows.
const PORT: u16 = 8080;
const PROXY: u16 = 8080;
const ADMIN: u16 = 9090;
const SCALER_METRICS: u16 = 2223;

/// What pods run. `/wait` is answered once there is a file `go`, `/echo` with what was sent, and all else with the pod's name.
const SERVER: &str = r#"
import http.server, os, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        while self.path == "/wait" and not os.path.exists("go"):
            time.sleep(0.002)
        self.answer(sys.argv[1].encode())

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("", int(sys.argv[2])), Handler).serve_forever()
"#;

/// A level of the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(ebpf_object), allow(dead_code, reason = "the others need eBPF programs"))]
pub(crate) enum Level {
    None,
    Own,
    Node,
}

/// A node with everything on it, whose workload is at zero.
pub(crate) struct Site {
    net: Net,
    world: World,
    /// Whoever asks.
    pub(crate) client: Host,
    interceptor: Host,
    pods: [Host; 2],
    cgroups: PodTree,
    /// The pods' working directory.
    pub(crate) folder: TempDir,
    agent: Option<Agent>,
    level: Level,
    _processes: [Process; 2],
}

// === impl Level ===

impl Level {
    /// The interceptor's level.
    fn of_interceptor(self) -> &'static str {
        if self == Self::Own { "self" } else { "none" }
    }
}

// === impl Site ===

impl Site {
    /// With a route that has these settings besides its target.
    pub(crate) async fn new(level: Level, more: Value) -> Self {
        let mut net = Net::new();
        let (client, interceptor, pods) = (net.pod(), net.pod(), [net.pod(), net.pod()]);
        let (world, cgroups) = (World::new(), PodTree::new());
        let mut spec = json!({ "scalingMetric": { "concurrency": { "targetValue": 10 } } });
        let (Value::Object(all), Value::Object(more)) = (&mut spec, more) else { panic!("specs are objects") };
        all.extend(more);
        if level == Level::Node {
            world.direct("web", &[VIP], json!({ "protocol": "HTTP" }));
            spec["dataPath"] = json!("Direct");
        } else {
            world.service("web");
        }
        world.route_with("web", json!([{ "hosts": [VIP, interceptor.addresses[0].to_string()] }]), spec);
        world.interceptors(&[(interceptor.addresses[0], ADMIN).into()]);
        let mut processes = [proxy(level, &interceptor, &world), scaler(&net.node(), &world)];
        processes[0].says("interceptor starts").await;
        processes[1].says("scaler is serving").await;
        let mut site = Self {
            net,
            world,
            client,
            interceptor,
            pods,
            cgroups,
            folder: tempfile::tempdir().unwrap(),
            agent: None,
            level,
            _processes: processes,
        };
        site.rules(&[]);
        eventually("the interceptor is ready", async || {
            (site.interceptor_state().await["ready"] == true).then_some(())
        })
        .await;
        if level == Level::Node {
            let agent = site.start_agent().await;
            agent.until("web", "cold").await;
            site.agent = Some(agent);
        }
        eventually("the scaler knows the route", async || site.concurrency().await).await;
        site
    }

    async fn start_agent(&self) -> Agent {
        self.world.service("agents");
        self.world.endpoints("agents", &[([127, 0, 0, 1], 9097).into()]);
        let variables = [
            format!("ROUSE_CGROUP_ROOT={}", self.cgroups.within()),
            format!("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE={NAMESPACE}"),
            format!("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE={INTERCEPTORS}"),
        ];
        let mounted = format!("{MOUNT_CGROUPS}exec \"$@\"");
        let by: Vec<&str> = ["sh", "-c", &mounted, "sh", "env", "ROUSE_BPFFS="]
            .into_iter()
            .chain(variables.iter().map(String::as_str))
            .collect();
        Agent::start_by(&self.net, &self.world, &by).await
    }

    /// Where clients connect for the workload.
    pub(crate) fn address(&self) -> SocketAddr {
        match self.level {
            Level::Node => (VIP.parse::<IpAddr>().unwrap(), 80).into(),
            Level::None | Level::Own => (self.interceptor.addresses[0], PROXY).into(),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// Starts curl at the client with these arguments before the address.
    pub(crate) fn curl(&self, args: &[&str], path: &str) -> tokio::process::Child {
        let mut command = self.client.command("curl");
        command.args(["-sS", "-m", "30"]).args(args).arg(self.url(path));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
    }

    /// What curl gets.
    pub(crate) async fn get(&self, path: &str) -> String {
        answer(self.curl(&[], path)).await
    }

    /// Starts what runs in a pod.
    pub(crate) async fn start(&self, pod: usize) {
        let script = format!("{}exec python3 -c \"$0\" \"$@\"", self.cgroups.enter(UIDS[pod]));
        let host = &self.pods[pod];
        let mut command = host.command("sh");
        command.args(["-c", &script, SERVER, name(pod), &PORT.to_string()]).current_dir(self.folder.path());
        drop(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let addr = (host.addresses[0], PORT);
        eventually("the pod listens", async || {
            self.client.run(move || std::net::TcpStream::connect(addr)).await.ok().map(drop)
        })
        .await;
    }

    /// Lists these pods as ready, and no others, to everybody.
    pub(crate) async fn list(&self, pods: &[usize]) {
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|pod| {
                self.cgroups.pod(UIDS[*pod]);
                json!({
                    "addresses": [self.pods[*pod].addresses[0].to_string()], "conditions": { "ready": true },
                    "nodeName": "node-1", "targetRef": { "kind": "Pod", "name": name(*pod), "uid": UIDS[*pod] },
                })
            })
            .collect();
        self.world.object(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "web-1", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "ports": [{ "name": "http", "port": PORT }], "endpoints": endpoints,
        }));
        self.rules(pods);
        eventually("all know the pods", async || {
            let state = self.interceptor_state().await;
            let interceptor = state["routes"][0]["upstream"]["endpoints"].as_array()?.len();
            let agent = match &self.agent {
                Some(agent) => agent.route("web").await["pods"].as_array()?.len(),
                None => pods.len(),
            };
            (interceptor == pods.len() && agent == pods.len()).then_some(())
        })
        .await;
    }

    /// What kube-proxy makes of the slices.
    fn rules(&self, pods: &[usize]) {
        let pods = pods.iter().map(|pod| (self.pods[*pod].addresses[0], PORT).into()).collect();
        let frontend = SocketAddr::new(VIP.parse().unwrap(), 80);
        self.net.rules(&[Rule { frontend, pods }], "");
    }

    /// Wakes the workload with its first pod, and waits until whoever counts it is there.
    pub(crate) async fn wake(&self) {
        self.start(0).await;
        self.list(&[0]).await;
        if let Some(agent) = &self.agent {
            eventually("the pod is counted", async || {
                (agent.state().await["count"]["pods"] == json!([UIDS[0]])).then_some(())
            })
            .await;
        }
    }

    async fn interceptor_state(&self) -> Value {
        self.interceptor.json(ADMIN, "/state").await
    }

    /// The concurrency that the scaler has heard of.
    pub(crate) async fn concurrency(&self) -> Option<f64> {
        let text = self.net.node().get(SCALER_METRICS, "/metrics").await;
        let line =
            text.lines().find(|line| line.starts_with("scaler_route_concurrency") && line.contains("\"web\""))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until the scaler's concurrency is this.
    pub(crate) async fn until_concurrency(&self, expected: u32) {
        eventually(&format!("the scaler has heard of {expected} requests"), async || {
            (self.concurrency().await == Some(f64::from(expected))).then_some(())
        })
        .await;
    }

    /// The requests that have been counted.
    pub(crate) async fn requests(&self) -> Option<u64> {
        let queue = self.interceptor.json(ADMIN, "/queue").await;
        let proxied = queue[format!("{NAMESPACE}/web")]["RequestCount"].as_u64()?;
        let direct = match &self.agent {
            Some(agent) => agent.route("web").await["taken"]["requests"].as_u64()?,
            None => 0,
        };
        Some(proxied + direct)
    }

    /// Waits until this many requests have been counted.
    pub(crate) async fn until_requests(&self, expected: u64) {
        eventually(&format!("{expected} requests are counted"), async || {
            (self.requests().await == Some(expected)).then_some(())
        })
        .await;
    }
}

/// A pod's name.
pub(crate) fn name(pod: usize) -> &'static str {
    ["web-a", "web-b"][pod]
}

/// What curl got, which must have been an answer.
pub(crate) async fn answer(curl: tokio::process::Child) -> String {
    let output = curl.wait_with_output().await.unwrap();
    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn proxy(level: Level, host: &Host, world: &World) -> Process {
    let cgroup = (level == Level::Own).then(Cgroup::new);
    let enter = cgroup.as_ref().map(Cgroup::enter_from_namespace).unwrap_or_default();
    let mut command = host.command("sh");
    command.args(["-c", &format!("{enter}exec \"$0\" \"$@\"")]).arg(program("interceptor-under-test"));
    command.arg("--source").arg(format!("dir:{}", world.path().display())).args(["--zap-encoder=json", "--required"]);
    command.env_remove("KUBECONFIG").envs([
        ("KEDA_HTTP_PROXY_PORT", PROXY.to_string()),
        ("KEDA_HTTP_ADMIN_PORT", ADMIN.to_string()),
        ("KEDA_HTTP_SHUTDOWN_DELAY", "0s".to_owned()),
        ("ROUSE_WORKERS", "2".to_owned()),
        ("ROUSE_DATAPLANE", level.of_interceptor().to_owned()),
    ]);
    Process::start(command, cgroup)
}

fn scaler(node: &Host, world: &World) -> Process {
    let mut command = node.command(program("scaler-under-test").to_str().unwrap());
    command.args(["--zap-encoder=json", "--source", &format!("dir:{}", world.path().display())]).envs([
        ("KEDA_HTTP_SCALER_PORT", "0"),
        ("OTEL_PROM_EXPORTER_PORT", &SCALER_METRICS.to_string()),
        ("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE", NAMESPACE),
        ("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE", INTERCEPTORS),
        ("KEDA_HTTP_SCALER_TARGET_ADMIN_PORT", &ADMIN.to_string()),
        ("ROUSE_AGENT_ADMIN_SERVICE", "agents"),
    ]);
    Process::start(command, None)
}
