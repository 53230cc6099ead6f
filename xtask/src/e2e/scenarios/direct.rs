//! A route without a proxy: the agent of the client's node holds the first connection, which reaches the pod itself.

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    client::Load,
    tenant::{App, Metric, PATIENCE, SYSTEM, Tenant, route, scaled_object},
};
use crate::{
    cluster::{Cluster, Machine, ProxyMode},
    e2e::release,
    process,
};

const AGENT: &str = "daemonset/keda-add-ons-http-agent";
const AGENT_PORT: u16 = 9097;
const SENT_ON: &str = "rouse_hold_connections_total{outcome=\"taken\"}";

/// By which family of addresses clients connect.
#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// Cold starts from a pod of each node, from each node itself and from outside by each node's port, then back to sleep; no interceptor
/// has anything to do with it. The same with the rules of either kind that kube-proxy writes.
pub(super) fn cold(cluster: &Cluster) -> Result<()> {
    cold_by(cluster, Family::V4)
}

/// The same at the Service's address of IPv6.
pub(super) fn cold_ipv6(cluster: &Cluster) -> Result<()> {
    cold_by(cluster, Family::V6)
}

/// A pod that has stopped to accept has others put at its side, for as long as connections wait, and then all go.
pub(super) fn accept_queue(cluster: &Cluster) -> Result<()> {
    with_agents(cluster, queue_with_agents)
}

/// Workloads grow by what the kernel counts: requests in flight, requests a second, and connections of a route that has no HTTP rules.
pub(super) fn load(cluster: &Cluster) -> Result<()> {
    with_agents(cluster, grow_with_agents)
}

fn cold_by(cluster: &Cluster, family: Family) -> Result<()> {
    with_agents(cluster, |cluster| {
        let worked = cold_with_agents(cluster, family);
        // Also after a failure: what comes next expects the defaults.
        cluster.proxy_mode(ProxyMode::Nftables)?;
        worked
    })
}

/// Does what it is given while an agent holds and counts on each node.
pub(super) fn with_agents(cluster: &Cluster, act: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    release::upgrade(cluster, &["agent.enabled=true"])?;
    let ready = cluster.wait_for("an agent on each node", PATIENCE, || {
        let agents = cluster.json(&["get", "--namespace", SYSTEM, AGENT])?;
        Ok((agents["status"]["numberReady"].as_u64() == Some(cluster.nodes().into())).then_some(()))
    });
    let worked = ready.and_then(|()| act(cluster));
    // Also after a failure, as above.
    release::install(cluster)?;
    worked
}

// === impl Family ===

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "direct",
            Self::V6 => "direct-ipv6",
        }
    }

    fn in_urls(self, address: &str) -> String {
        match self {
            Self::V4 => address.to_owned(),
            Self::V6 => format!("[{address}]"),
        }
    }
}

fn cold_with_agents(cluster: &Cluster, family: Family) -> Result<()> {
    let tenant = Tenant::new(cluster, family.name())?;
    let [deployment, mut service] = App::new("direct").slow_start(200, 1).objects();
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
    tenant.apply(&[deployment, service])?;
    tenant.apply(&[direct_route("direct", &format!("{}.e2e", family.name())), scaled_object("direct", 3)])?;
    tenant.condition("interceptorroute/direct", "Ready", "True")?;
    tenant.scaled("direct")?;
    for node in 1..=cluster.nodes() {
        tenant.apply(&[client(node)])?;
    }
    from_everywhere(cluster, &tenant, family)?;
    cluster.proxy_mode(ProxyMode::Iptables)?;
    println!("    kube-proxy writes rules of iptables from here on");
    from_everywhere(cluster, &tenant, family)?;
    tenant.finish()
}

fn from_everywhere(cluster: &Cluster, tenant: &Tenant<'_>, family: Family) -> Result<()> {
    let service = cluster.json(&["get", "service", "--namespace", &tenant.namespace, "direct"])?;
    let mut addresses = service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let address = addresses.nth(family as usize).context("the Service has no address of the family")?;
    let address = &family.in_urls(address);
    let at_first = taken(cluster, &tenant.namespace)?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("the Service has no node port")?;
    for node in 1..=cluster.nodes() {
        tenant.asleep("direct")?;
        let client = format!("client{node}");
        tenant.condition(&format!("pod/{client}"), "Ready", "True")?;
        let network = cluster.network_of(&tenant.namespace, &client)?;
        let before = taken(cluster, &tenant.namespace)?;
        woken(cluster, &format!("a pod of node {node}"), || ask(&network, address))?;
        let warm = Instant::now();
        ask(&network, address)?;
        println!("    node {node}: a warm one after {} ms", warm.elapsed().as_millis());
        cluster.wait_for("both requests to be counted", PATIENCE, || {
            Ok((taken(cluster, &tenant.namespace)? >= before + 2).then_some(()))
        })?;
    }
    for node in 1..=cluster.nodes() {
        tenant.asleep("direct")?;
        woken(cluster, &format!("node {node} itself"), || cluster.curl(Machine::Node(node), &asking(&url(address))))?;
    }
    for node in 1..=cluster.nodes() {
        tenant.asleep("direct")?;
        let [v4, v6] = Machine::Node(node).addresses();
        let address = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let url = url(&format!("{}:{port}", family.in_urls(&address)));
        woken(cluster, &format!("a machine outside by node {node}"), || {
            cluster.curl(Machine::ControlPlane, &asking(&url))
        })?;
    }
    tenant.asleep("direct")?;
    // Of each node a pod asked twice, the node itself once, and a machine outside by the node once; probes are no requests.
    let (counted, asked) = (taken(cluster, &tenant.namespace)? - at_first, 4 * u64::from(cluster.nodes()));
    ensure!(counted == asked, "{counted} requests were counted, {asked} were made");
    println!("    {asked} requests, each counted once");
    Ok(())
}

/// What the agent of a node serves.
fn of_agent(cluster: &Cluster, node: u8, path: &str) -> Result<String> {
    let machine = Machine::Node(node);
    cluster.curl(machine, &["--fail", &format!("http://{}:{AGENT_PORT}/{path}", machine.address())])
}

/// What agents say of the only direct route in a namespace.
fn told(cluster: &Cluster, namespace: &str) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for node in 1..=cluster.nodes() {
        let state: Value = serde_json::from_str(&of_agent(cluster, node, "state")?).context("/state of an agent")?;
        let routes = state["routes"].as_array().into_iter().flatten();
        all.extend(routes.filter(|route| route["namespace"] == namespace).cloned());
    }
    Ok(all)
}

/// How many requests pods have taken without a proxy.
fn taken(cluster: &Cluster, namespace: &str) -> Result<u64> {
    Ok(told(cluster, namespace)?.iter().filter_map(|route| route["taken"]["requests"].as_u64()).sum())
}

/// Forty connections at a target of ten, that one pod lets wait: four replicas.
fn queue_with_agents(cluster: &Cluster) -> Result<()> {
    const WAITING: u64 = 40;

    let tenant = Tenant::new(cluster, "queue")?;
    // Who does not accept is not ready for long.
    tenant.apply(&App::new("queue").unprobed().objects())?;
    let mut route = direct_route("queue", "queue.e2e");
    route["spec"]["scalingMetric"] = json!({ "acceptQueue": { "targetValue": 10 } });
    tenant.apply(&[route, scaled_object("queue", 4), client(1)])?;
    tenant.condition("interceptorroute/queue", "Ready", "True")?;
    tenant.scaled("queue")?;
    tenant.condition("pod/client1", "Ready", "True")?;
    let network = cluster.network_of(&tenant.namespace, "client1")?;
    let address = cluster.service_address(&tenant.namespace, "queue")?;
    let pod = woken(cluster, "a pod", || ask(&network, &address))?;
    let stopped = Stopped::stop(cluster, &tenant.namespace, &pod)?;
    let mut wrk = Cluster::within(&network);
    wrk.arg("wrk");
    let load = Load::start(wrk, &url(&address), WAITING)?;
    cluster.wait_for("all of them to wait", PATIENCE, || {
        let waiting: u64 = told(cluster, &tenant.namespace)?.iter().filter_map(|one| one["acceptQueue"].as_u64()).sum();
        // wrk's first look whether anybody is there waits, too.
        Ok((waiting >= WAITING).then_some(()))
    })?;
    tenant.at_least("queue", 4)?;
    drop(stopped);
    cluster.wait_for("all of them to be accepted", PATIENCE, || {
        Ok(told(cluster, &tenant.namespace)?.iter().all(|one| one["acceptQueue"] == 0).then_some(()))
    })?;
    let seen = load.without_failure()?;
    println!("    four replicas while {WAITING} connections waited, none failed, {} requests", seen.requests);
    tenant.asleep("queue")?;
    tenant.finish()
}

fn grow_with_agents(cluster: &Cluster) -> Result<()> {
    /// A workload, its path, connections that ask, and replicas.
    const GROWING: [(&str, &str, u64, u64); 3] =
        [("flight", "slow?ms=250", 40, 4), ("rate", "slow?ms=20", 8, 2), ("open", "slow?ms=250", 40, 4)];

    let tenant = Tenant::new(cluster, "grown")?;
    let mut rate = route("rate", "rate.e2e", Metric::Rate(120));
    rate["spec"]["dataPath"] = json!("Direct");
    let open = json!({
        "apiVersion": "http.keda.sh/v1beta1",
        "kind": "InterceptorRoute",
        "metadata": { "name": "open" },
        "spec": {
            "target": { "service": "open", "port": 80 },
            "dataPath": "Direct",
            "protocol": "TCP",
            "scalingMetric": { "connections": { "targetValue": 10 } },
        },
    });
    tenant.apply(&[direct_route("flight", "flight.e2e"), rate, open, client(1)])?;
    for (name, ..) in GROWING {
        tenant.apply(&App::new(name).objects())?;
        tenant.apply(&[scaled_object(name, 4)])?;
        tenant.condition(&format!("interceptorroute/{name}"), "Ready", "True")?;
        tenant.scaled(name)?;
    }
    tenant.condition("pod/client1", "Ready", "True")?;
    let network = cluster.network_of(&tenant.namespace, "client1")?;
    let mut loads = Vec::new();
    for (name, path, connections, _) in GROWING {
        let address = cluster.service_address(&tenant.namespace, name)?;
        woken(cluster, &format!("a client of {name}"), || ask(&network, &address))?;
        let mut wrk = Cluster::within(&network);
        wrk.arg("wrk");
        loads.push(Load::start(wrk, &format!("{}{path}", url(&address)), connections)?);
    }
    for ((name, _, connections, replicas), load) in GROWING.into_iter().zip(loads) {
        tenant.at_least(name, replicas)?;
        let seen = load.without_failure()?;
        println!("    {name}: {replicas} replicas or more for {connections} connections, {} requests", seen.requests);
    }
    for (name, ..) in GROWING {
        tenant.asleep(name)?;
    }
    tenant.finish()
}

/// A pod's process that has been stopped; it goes on when this is dropped.
struct Stopped(String);

impl Stopped {
    fn stop(cluster: &Cluster, namespace: &str, pod: &str) -> Result<Self> {
        let pid = cluster.process_of(namespace, pod)?.to_string();
        process::run(Command::new("kill").args(["-STOP", &pid]))?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed.
        _ = Command::new("kill").args(["-CONT", &self.0]).status();
    }
}

/// How many held connections agents have sent on to a pod that took them.
fn sent_on(cluster: &Cluster) -> Result<u64> {
    let mut all = 0;
    for node in 1..=cluster.nodes() {
        let metrics = of_agent(cluster, node, "metrics")?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(SENT_ON));
        all += line.map_or(Ok(0), |number| number.trim().parse::<u64>()).context("a metric is a number")?;
    }
    Ok(all)
}

/// The first answer that a client gets must be a pod's own, to which an agent has sent it on: the pod's name.
fn woken(cluster: &Cluster, client: &str, ask: impl FnOnce() -> Result<String>) -> Result<String> {
    let before = sent_on(cluster)?;
    let began = Instant::now();
    let answer = ask()?;
    let pod = answer.lines().next().and_then(|line| line.strip_prefix("Hello from "));
    let pod = pod.with_context(|| format!("no pod of the app answered {client}: {answer}"))?;
    ensure!(!answer.contains("x-keda-http-cold-start"), "an interceptor answered {client}: {answer}");
    println!("    {client}: first answer after {} ms, from the app's pod itself", began.elapsed().as_millis());
    // Also without it the node's own rules would know the pod, seconds later.
    ensure!(sent_on(cluster)? == before + 1, "no agent has sent on what {client} had begun");
    Ok(pod.to_owned())
}

fn direct_route(name: &str, host: &str) -> Value {
    let mut route = route(name, host, Metric::Concurrency(10));
    route["spec"]["dataPath"] = json!("Direct");
    route
}

/// A pod of a node, to connect from.
pub(super) fn client(node: u8) -> Value {
    let [deployment, _] = App::new(&format!("client{node}")).objects();
    let template = &deployment["spec"]["template"];
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!(format!("node{node}"));
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("client{node}") }, "spec": spec })
}

/// What the app answers, with the fields of its head.
pub(super) fn ask(network: &Path, address: &str) -> Result<String> {
    let curl = ["curl", "--silent", "--show-error"];
    process::output(Cluster::within(network).args(curl).args(asking(&url(address))))
}

fn url(address: &str) -> String {
    format!("http://{address}/")
}

fn asking(url: &str) -> [&str; 5] {
    ["--max-time", "60", "--write-out", "%{header_json}", url]
}
