//! The interceptor as a process of its own, with a folder of manifests as its source and ports that the system chose.

use std::{net::SocketAddr, path::Path};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::{
    Peer, World,
    cgroup::Cgroup,
    eventually,
    peer::Response,
    process::{Process, local_addr, program},
    soon,
    world::NAMESPACE,
};

/// Leaves of the system what a container on a machine with unified hierarchies has of it.
const CONTAINED: &str = "umount --recursive /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && \
    mount -o remount,bind,ro /sys/fs/cgroup && \
    exec setpriv --bounding-set=-all,+bpf,+net_admin --inh-caps=-all --no-new-privs \"$0\" \"$@\"";

/// A running interceptor; killed when dropped.
#[derive(Debug)]
pub struct Interceptor {
    process: Process,
    /// Where clients connect.
    pub proxy: SocketAddr,
    /// Where operators and scalers connect.
    pub admin: SocketAddr,
    /// Where Prometheus connects.
    pub metrics: SocketAddr,
    tls: Option<SocketAddr>,
}

/// What `/queue` says of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Requests in flight.
    pub concurrency: u64,
    /// Requests ever.
    pub count: u64,
}

// === impl Interceptor ===

impl Interceptor {
    /// Starts one and waits until it is ready.
    pub async fn start(world: &World) -> Self {
        Self::start_with(world, &[]).await
    }

    /// Starts one with more environment variables and waits until it is ready.
    pub async fn start_with(world: &World, env: &[(&str, &str)]) -> Self {
        Self::run(command(world, env, None, &level())).await
    }

    /// Starts one at a level of the data plane whatever the suite's, and waits until it is ready.
    pub async fn start_at_level(world: &World, level: &str) -> Self {
        Self::run(command(world, &[], None, level)).await
    }

    /// Starts one at level `self` as a container runtime does where there is nothing but cgroup v2: root with two capabilities and
    /// nothing else, in namespaces of its own for mounts and cgroups, where it sees its own cgroup as the root and cannot write.
    pub async fn start_contained(world: &World) -> Self {
        let (command, cgroup) = command(world, &[], None, "self");
        let words: Vec<_> = command.as_std().get_args().map(std::ffi::OsStr::to_owned).collect();
        let mut contained = Command::new("/bin/sh");
        let enter = cgroup.as_ref().map(Cgroup::enter).unwrap_or_default();
        contained.args(["-c", &format!("{enter}exec unshare --mount --cgroup sh -c '{CONTAINED}' \"$0\" \"$@\"")]);
        let environment = command.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
        // The first two are the other shell's `-c` and its script.
        contained.args(&words[2..]).env_clear().envs(environment);
        Self::run((contained, cgroup)).await
    }

    /// Starts one that may open this many descriptors and waits until it is ready.
    pub async fn start_limited(world: &World, descriptors: u32) -> Self {
        Self::run(command(world, &[], Some(descriptors), &level())).await
    }

    /// Starts one that reads a cluster; it is ready when it has.
    pub async fn start_in(kubeconfig: &Path, namespace: &str) -> Self {
        Self::start_in_with(kubeconfig, namespace, &[]).await
    }

    /// The same with more environment variables.
    pub async fn start_in_with(kubeconfig: &Path, namespace: &str, env: &[(&str, &str)]) -> Self {
        let (mut command, cgroup) = bare(env, None, "none");
        command.env("KEDA_HTTP_WATCH_NAMESPACE", namespace).arg("--kubeconfig").arg(kubeconfig);
        Self::bound((command, cgroup)).await
    }

    /// Waits until it is ready.
    pub async fn is_ready(self) -> Self {
        eventually("the interceptor is ready", async || (self.ready().await.status() == 200).then_some(())).await;
        self
    }

    async fn run(command: (Command, Option<Cgroup>)) -> Self {
        Self::bound(command).await.is_ready().await
    }

    async fn bound((command, cgroup): (Command, Option<Cgroup>)) -> Self {
        let mut process = Process::start(command, cgroup);
        let line = process.says("interceptor starts").await;
        let [proxy, admin, metrics] = ["proxy", "admin", "metrics"].map(|field| local_addr(&line, field));
        let tls = line["tls"].is_string().then(|| local_addr(&line, "tls"));
        Self { process, proxy, admin, metrics, tls }
    }

    /// Starts one that is expected to give up, and waits for its end. Returns its status and what it said.
    pub async fn fails(world: &World, env: &[(&str, &str)]) -> (Option<i32>, String) {
        let output = soon("the interceptor gives up", command(world, env, None, &level()).0.output()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    }

    /// The proxy port for TLS.
    pub fn tls(&self) -> SocketAddr {
        self.tls.expect("the interceptor was started with TLS")
    }

    /// A new connection to the proxy port.
    pub async fn client(&self) -> Peer {
        Peer::connect(self.proxy).await
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, host: &str, target: &str) -> Response {
        let mut client = self.client().await;
        client.get(host, target).await;
        client.response().await
    }

    /// `/readyz`.
    pub async fn ready(&self) -> Response {
        get(self.admin, "/readyz").await
    }

    /// `/state`.
    pub async fn state(&self) -> Value {
        serde_json::from_str(&get(self.admin, "/state").await.body).unwrap()
    }

    /// One route of `/state`.
    pub async fn route_state(&self, route: &str) -> Option<Value> {
        let state = self.state().await;
        state["routes"].as_array().unwrap().iter().find(|have| have["name"] == route).cloned()
    }

    /// What `/queue` says of a route, if it lists it.
    pub async fn queue(&self, route: &str) -> Option<Queue> {
        let all: Value = serde_json::from_str(&get(self.admin, "/queue").await.body).unwrap();
        let route = all.get(format!("{NAMESPACE}/{route}"))?;
        Some(Queue {
            concurrency: route["Concurrency"].as_u64().unwrap(),
            count: route["RequestCount"].as_u64().unwrap(),
        })
    }

    /// Waits until this many requests of a route are in flight.
    pub async fn in_flight(&self, route: &str, expected: u64) {
        let mut last = None;
        eventually(&format!("{expected} requests in flight on {route}"), async || {
            last = self.queue(route).await;
            (last?.concurrency == expected).then_some(())
        })
        .await;
    }

    /// Waits until this many requests of a route are held.
    pub async fn held(&self, route: &str, expected: u64) {
        eventually(&format!("{expected} requests held on {route}"), async || {
            (self.route_state(route).await?["held"] == expected).then_some(())
        })
        .await;
    }

    /// Waits until the interceptor knows this many endpoints of a route.
    pub async fn endpoints(&self, route: &str, expected: usize) {
        eventually(&format!("{expected} endpoints of {route}"), async || {
            let state = self.route_state(route).await?;
            (state["upstream"]["endpoints"].as_array()?.len() == expected).then_some(())
        })
        .await;
    }

    /// Waits until `/state` names a problem with an object, and returns it.
    pub async fn problem(&self, object: &str) -> String {
        eventually(&format!("a problem of {object}"), async || {
            let state = self.state().await;
            let problem = state["problems"].as_array()?.iter().find(|have| have.to_string().contains(object))?;
            Some(problem.to_string())
        })
        .await
    }

    /// `/metrics` of the metrics port.
    pub async fn metrics(&self) -> String {
        get(self.metrics, "/metrics").await.body
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        self.process.ended().await
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.runs()
    }
}

/// One GET on an admin port.
pub async fn get(addr: SocketAddr, path: &str) -> Response {
    let mut peer = Peer::connect(addr).await;
    peer.send(&format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")).await;
    peer.response().await
}

/// The level of the data plane that the suite runs at; `cargo xtask test` runs it once for each that the machine can.
pub fn level() -> String {
    std::env::var("ROUSE_TEST_DATAPLANE").unwrap_or_else(|_unset| "none".to_owned())
}

fn command(world: &World, env: &[(&str, &str)], descriptors: Option<u32>, level: &str) -> (Command, Option<Cgroup>) {
    let (mut command, cgroup) = bare(env, descriptors, level);
    command.arg("--source").arg(format!("dir:{}", world.path().display()));
    (command, cgroup)
}

/// One that is not told yet where its objects are.
fn bare(env: &[(&str, &str)], descriptors: Option<u32>, level: &str) -> (Command, Option<Cgroup>) {
    let program = program("interceptor-under-test");
    let cgroup = (level != "none").then(Cgroup::new);
    let mut command = Command::new("/bin/sh");
    let limit = descriptors.map(|count| format!("ulimit -n {count} && ")).unwrap_or_default();
    let enter = cgroup.as_ref().map(Cgroup::enter).unwrap_or_default();
    command.args(["-c", &format!("{limit}{enter}exec \"$0\" \"$@\"")]).arg(program);
    if cgroup.is_some() {
        command.arg("--required");
    }
    command
        .env_clear()
        .envs([
            ("KEDA_HTTP_PROXY_PORT", "0"),
            ("KEDA_HTTP_ADMIN_PORT", "0"),
            ("OTEL_PROM_EXPORTER_PORT", "0"),
            ("KEDA_HTTP_SHUTDOWN_DELAY", "0s"),
            ("ROUSE_WORKERS", "2"),
            ("ROUSE_DATAPLANE", level),
        ])
        .envs(env.iter().copied())
        .arg("--zap-encoder=json");
    (command, cgroup)
}
