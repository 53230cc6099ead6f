//! A route without a proxy: the agent of the client's node holds the first connection, which reaches the pod itself.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::tenant::{App, Metric, PATIENCE, SYSTEM, Tenant, route, scaled_object};
use crate::{cluster::Cluster, e2e::release, process};

const AGENT: &str = "daemonset/keda-add-ons-http-agent";
const WITH_AGENT: &str = "agent.enabled=true";

/// Cold starts from a pod of each node, then back to sleep; no interceptor has anything to do with it.
pub(super) fn cold(cluster: &Cluster) -> Result<()> {
    release::upgrade(cluster, &[WITH_AGENT])?;
    let worked = cold_with_agents(cluster);
    // Also after a failure: what comes next expects the defaults.
    release::install(cluster)?;
    worked
}

fn cold_with_agents(cluster: &Cluster) -> Result<()> {
    cluster.wait_for("an agent on each node", PATIENCE, || {
        let agents = cluster.json(&["get", "--namespace", SYSTEM, AGENT])?;
        Ok((agents["status"]["numberReady"].as_u64() == Some(cluster.nodes().into())).then_some(()))
    })?;
    let tenant = Tenant::new(cluster, "direct")?;
    tenant.apply(&App::new("direct").slow_start(200, 1).objects())?;
    tenant.apply(&[direct_route("direct"), scaled_object("direct", 3)])?;
    tenant.condition("interceptorroute/direct", "Ready", "True")?;
    tenant.scaled("direct")?;
    for node in 1..=cluster.nodes() {
        tenant.apply(&[client(node)])?;
    }
    let address = cluster.service_address(&tenant.namespace, "direct")?;
    for node in 1..=cluster.nodes() {
        tenant.asleep("direct")?;
        let network = network_of(&tenant, &format!("client{node}"))?;
        let began = Instant::now();
        let answer = ask(&network, &address)?;
        ensure!(answer.starts_with("Hello from direct-"), "no pod of the app answered node {node}'s client: {answer}");
        ensure!(!answer.contains("x-keda-http-cold-start"), "an interceptor answered: {answer}");
        println!("    node {node}: first answer after {} ms, from the pod itself", began.elapsed().as_millis());
        let warm = Instant::now();
        ask(&network, &address)?;
        println!("    node {node}: a warm one after {} ms", warm.elapsed().as_millis());
    }
    tenant.asleep("direct")?;
    tenant.finish()
}

fn direct_route(name: &str) -> Value {
    let mut route = route(name, "direct.e2e", Metric::Concurrency(10));
    route["spec"]["dataPath"] = json!("Direct");
    route
}

/// A pod of a node, to connect from.
fn client(node: u8) -> Value {
    let [deployment, _] = App::new(&format!("client{node}")).objects();
    let template = &deployment["spec"]["template"];
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!(format!("node{node}"));
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("client{node}") }, "spec": spec })
}

/// The network namespace of a pod: that of a process whose environment has its name.
fn network_of(tenant: &Tenant<'_>, pod: &str) -> Result<PathBuf> {
    tenant.condition(&format!("pod/{pod}"), "Ready", "True")?;
    let address = tenant.get(&format!("pod/{pod}"))?;
    let address = address["status"]["podIP"].as_str().context("a pod that is ready has an address")?.to_owned();
    let name = format!("POD_NAME={pod}");
    for process in fs::read_dir("/proc").context("no processes")?.flatten() {
        let has_name = |text: &[u8]| text.split(|byte| *byte == 0).any(|variable| variable == name.as_bytes());
        // Most have ended meanwhile, or are the kernel's own.
        if !fs::read(process.path().join("environ")).is_ok_and(|environment| has_name(&environment)) {
            continue;
        }
        let network = process.path().join("ns/net");
        // Another cluster may have a pod of the same name.
        if within(&network, &["ip", "-oneline", "address"]).is_ok_and(|text| text.contains(&address)) {
            return Ok(network);
        }
    }
    bail!("no process has {name} and {address}")
}

/// What the app answers, with the fields of its head.
fn ask(network: &Path, address: &str) -> Result<String> {
    let url = format!("http://{address}/");
    within(network, &["curl", "--silent", "--show-error", "--max-time", "60", "--write-out", "%{header_json}", &url])
}

fn within(network: &Path, command: &[&str]) -> Result<String> {
    let mut enter = std::process::Command::new("nsenter");
    process::output(enter.arg(format!("--net={}", network.display())).args(command))
}
