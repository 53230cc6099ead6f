//! The node agent as a process of its own, in the network namespace of a node.

use std::{fs, path::PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    World, eventually,
    net::{Host, Net},
    process::{Process, program},
    world::NAMESPACE,
};

/// Where it serves: the node's ports are its own.
const PORT: u16 = 9097;

/// Why it holds nothing before it knows what.
const UNREAD: &str = "not all objects have been read yet";

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    node: Host,
}

// === impl Agent ===

impl Agent {
    /// Starts one on a node with everything it may need, and waits until it is ready.
    pub async fn start(net: &Net, world: &World) -> Self {
        Self::start_by(net, world, &[]).await
    }

    /// Starts one by a command that runs it in its turn, and waits until it is ready.
    pub async fn start_by(net: &Net, world: &World, by: &[&str]) -> Self {
        Self::start_at(&net.node(), world, by).await
    }

    /// The same, on a machine that is a node, too.
    pub async fn start_at(node: &Host, world: &World, by: &[&str]) -> Self {
        let agent = Self::begin(node, by, &format!("--source=dir:{}", world.path().display())).await;
        eventually("the agent is ready", async || (agent.state().await["ready"] == true).then_some(())).await;
        agent
    }

    /// Starts one whose API server does not answer; which that is, is written beside the world's objects.
    pub async fn start_without_objects(net: &Net, world: &World, by: &[&str]) -> Self {
        let kubeconfig = world.path().join(".kubeconfig");
        let named = |what: &str, value: Value| json!([{ "name": "nobody", what: value }]);
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "nobody",
            "clusters": named("cluster", json!({ "server": "http://127.0.0.1:1" })),
            "contexts": named("context", json!({ "cluster": "nobody", "user": "nobody" })),
            "users": named("user", json!({})),
        });
        fs::write(&kubeconfig, text.to_string()).unwrap();
        let agent = Self::begin(&net.node(), by, &format!("--kubeconfig={}", kubeconfig.display())).await;
        let waits = async || (agent.state().await["hold"]["reason"] == UNREAD).then_some(());
        eventually("the agent waits for its objects", waits).await;
        agent
    }

    async fn begin(node: &Host, by: &[&str], source: &str) -> Self {
        let agent = under_test();
        let words: Vec<_> = by.iter().copied().chain([agent.to_str().unwrap()]).collect();
        let mut command = node.command(words[0]);
        command.args(&words[1..]).args(["agent", "--required", "--zap-encoder=json", source]);
        command.env("NODE_NAME", "node-1").env("ROUSE_AGENT_PORT", PORT.to_string());
        command.env("ROUSE_LOG", "info,interceptor_user=debug").env_remove("KUBECONFIG");
        let mut process = Process::start(command, None);
        process.says("agent starts").await;
        Self { process, node: node.clone() }
    }

    /// What `/state` says.
    pub async fn state(&self) -> Value {
        // It logs that it starts before it serves.
        let node = self.node.clone();
        node.json(PORT, "/state").await
    }

    /// What `/state` says of a route; null if there is none of the name.
    pub async fn route(&self, name: &str) -> Value {
        let state = self.state().await;
        let mut routes = state["routes"].as_array().unwrap().iter();
        routes.find(|route| route["name"] == name).cloned().unwrap_or(Value::Null)
    }

    /// Waits until the kernel holds a route's Service for cold or for warm.
    pub async fn until(&self, name: &str, heat: &str) {
        eventually(&format!("{name} is {heat}"), async || (self.route(name).await["heat"] == heat).then_some(())).await;
    }

    /// Waits until so many connections to a route's Service are held.
    pub async fn until_held(&self, name: &str, held: u64) {
        let what = format!("{held} connections to {name} are held");
        eventually(&what, async || (self.route(name).await["held"] == held).then_some(())).await;
    }

    /// The value of a metric with the labels that it is written with.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.node.get(PORT, "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Has it end in order, as by an upgrade.
    pub async fn end(&mut self) {
        self.process.signal(Signal::SIGTERM);
        assert!(self.process.ended().await.success());
    }

    /// Kills it, as the system does when memory is short.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.ended().await;
    }
}

impl World {
    /// A route for a Service at these addresses, which clients reach without a proxy.
    pub fn direct(&self, name: &str, addresses: &[&str], more: Value) {
        let mut spec = json!({ "dataPath": "Direct", "protocol": "TCP" });
        let (Value::Object(all), Value::Object(more)) = (&mut spec, more) else { panic!("specs are objects") };
        all.extend(more);
        self.route_with(name, json!([]), spec);
        let families: Vec<_> = addresses.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
        self.object(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "clusterIP": addresses[0], "clusterIPs": addresses, "ipFamilies": families,
                "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }],
            },
        }));
    }
}

fn under_test() -> PathBuf {
    program("interceptor-under-test")
}
