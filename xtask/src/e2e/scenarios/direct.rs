//! A route without a proxy: the agent of the client's node holds the first connection, which reaches the pod itself.

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::tenant::{App, Metric, PATIENCE, SYSTEM, Tenant, route, scaled_object};
use crate::{
    cluster::{Cluster, Machine, ProxyMode},
    e2e::release,
    process,
};

const AGENT: &str = "daemonset/keda-add-ons-http-agent";
pub(super) const WITH_AGENT: &str = "agent.enabled=true";

/// Cold starts from a pod of each node, from each node itself and from outside by each node's port, then back to sleep; no interceptor
/// has anything to do with it. The same with the rules of either kind that kube-proxy writes.
pub(super) fn cold(cluster: &Cluster) -> Result<()> {
    release::upgrade(cluster, &[WITH_AGENT])?;
    let worked = cold_with_agents(cluster);
    // Also after a failure: what comes next expects the defaults.
    cluster.proxy_mode(ProxyMode::Nftables)?;
    release::install(cluster)?;
    worked
}

/// Waits until connections are held and counted everywhere.
pub(super) fn until_agents(cluster: &Cluster) -> Result<()> {
    cluster.wait_for("an agent on each node", PATIENCE, || {
        let agents = cluster.json(&["get", "--namespace", SYSTEM, AGENT])?;
        Ok((agents["status"]["numberReady"].as_u64() == Some(cluster.nodes().into())).then_some(()))
    })
}

fn cold_with_agents(cluster: &Cluster) -> Result<()> {
    until_agents(cluster)?;
    let tenant = Tenant::new(cluster, "direct")?;
    let [deployment, mut service] = App::new("direct").slow_start(200, 1).objects();
    service["spec"]["type"] = json!("NodePort");
    tenant.apply(&[deployment, service])?;
    tenant.apply(&[direct_route("direct"), scaled_object("direct", 3)])?;
    tenant.condition("interceptorroute/direct", "Ready", "True")?;
    tenant.scaled("direct")?;
    for node in 1..=cluster.nodes() {
        tenant.apply(&[client(node)])?;
    }
    from_everywhere(cluster, &tenant)?;
    cluster.proxy_mode(ProxyMode::Iptables)?;
    println!("    kube-proxy writes rules of iptables from here on");
    from_everywhere(cluster, &tenant)?;
    tenant.finish()
}

fn from_everywhere(cluster: &Cluster, tenant: &Tenant<'_>) -> Result<()> {
    let service = cluster.json(&["get", "service", "--namespace", &tenant.namespace, "direct"])?;
    let address = service["spec"]["clusterIP"].as_str().context("the Service has no address")?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("the Service has no node port")?;
    for node in 1..=cluster.nodes() {
        tenant.asleep("direct")?;
        let client = format!("client{node}");
        tenant.condition(&format!("pod/{client}"), "Ready", "True")?;
        let network = cluster.network_of(&tenant.namespace, &client)?;
        woken(&format!("a pod of node {node}"), || ask(&network, address))?;
        let warm = Instant::now();
        ask(&network, address)?;
        println!("    node {node}: a warm one after {} ms", warm.elapsed().as_millis());
    }
    for node in 1..=cluster.nodes() {
        tenant.asleep("direct")?;
        woken(&format!("node {node} itself"), || cluster.curl(Machine::Node(node), &asking(&url(address))))?;
    }
    for node in 1..=cluster.nodes() {
        tenant.asleep("direct")?;
        let url = url(&format!("{}:{port}", Machine::Node(node).address()));
        woken(&format!("a machine outside by node {node}"), || cluster.curl(Machine::ControlPlane, &asking(&url)))?;
    }
    tenant.asleep("direct")
}

/// The first answer that a client gets must be a pod's own.
fn woken(client: &str, ask: impl FnOnce() -> Result<String>) -> Result<()> {
    let began = Instant::now();
    let answer = ask()?;
    ensure!(answer.starts_with("Hello from direct-"), "no pod of the app answered {client}: {answer}");
    ensure!(!answer.contains("x-keda-http-cold-start"), "an interceptor answered {client}: {answer}");
    println!("    {client}: first answer after {} ms, from the app's pod itself", began.elapsed().as_millis());
    Ok(())
}

fn direct_route(name: &str) -> Value {
    let mut route = route(name, "direct.e2e", Metric::Concurrency(10));
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
