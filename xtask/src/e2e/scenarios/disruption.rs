//! Parts of the installation restart while clients ask: interceptors under load, scalers, the operator, KEDA, a whole node.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{
    client::Client,
    tenant::{App, Metric, SOON, SYSTEM, Tenant, roll, route, scaled_object},
};
use crate::cluster::Cluster;

const INTERCEPTOR: &str = "keda-add-ons-http-interceptor";
const SCALER: &str = "keda-add-ons-http-external-scaler";
const OPERATOR: &str = "keda-add-ons-http-controller-manager";

/// All interceptors are replaced under load, and no request fails.
pub(super) fn interceptors_rolled(cluster: &Cluster) -> Result<()> {
    let tenant = always_on(cluster, "rolled", 2)?;
    let load = Client::new(cluster, "rolled.e2e")?.load("/slow?ms=20", 8)?;
    roll(cluster, INTERCEPTOR)?;
    until_alone(cluster, INTERCEPTOR)?;
    let seen = load.without_failure()?;
    println!("    {} requests while all interceptors were replaced", seen.requests);
    tenant.finish()
}

/// All scalers are replaced; then a sleeping workload wakes, and sleeps again.
pub(super) fn scalers_rolled(cluster: &Cluster) -> Result<()> {
    wakes_after(cluster, "scaler", || roll(cluster, SCALER))
}

/// KEDA is replaced; then a sleeping workload wakes, and sleeps again.
pub(super) fn keda_restarted(cluster: &Cluster) -> Result<()> {
    wakes_after(cluster, "keda", || roll(cluster, "keda-operator"))
}

/// The operator is replaced; routes are served all the time, and a new one is looked after.
pub(super) fn operator_rolled(cluster: &Cluster) -> Result<()> {
    let tenant = always_on(cluster, "operator", 1)?;
    let load = Client::new(cluster, "operator.e2e")?.load("/", 2)?;
    roll(cluster, OPERATOR)?;
    tenant.apply(&[route("app", "second.e2e", Metric::Concurrency(10))])?;
    tenant.condition("interceptorroute/app", "Ready", "True")?;
    drop(load);
    tenant.finish()
}

/// A node with interceptors, scalers and pods of a workload on it is drained under load, and no request fails.
pub(super) fn node_drained(cluster: &Cluster) -> Result<()> {
    const NODE: &str = "node2";

    let tenant = always_on(cluster, "drained", 2)?;
    let load = Client::new(cluster, "drained.e2e")?.load("/slow?ms=20", 8)?;
    let drained = cluster
        .kubectl(&["drain", NODE, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"])
        .context("a PodDisruptionBudget must let one pod go after the other");
    let failures = drained.and_then(|_said| load.without_failure());
    // Also after a failure: what comes next needs the node.
    cluster.kubectl(&["uncordon", NODE])?;
    println!("    {} requests while the node was drained", failures?.requests);
    tenant.finish()
}

/// A workload that is always there, with a route of its own name's host that is served.
fn always_on<'a>(cluster: &'a Cluster, name: &str, replicas: u32) -> Result<Tenant<'a>> {
    let tenant = Tenant::new(cluster, name)?;
    let host = format!("{name}.e2e");
    tenant.apply(&App::new("app").replicas(replicas).objects())?;
    tenant.apply(&[route("app", &host, Metric::Concurrency(10))])?;
    tenant.at_least("app", u64::from(replicas))?;
    Client::new(cluster, &host)?.until(200, SOON)?;
    Ok(tenant)
}

fn wakes_after(cluster: &Cluster, name: &str, disrupt: impl FnOnce() -> Result<()>) -> Result<()> {
    let tenant = Tenant::new(cluster, name)?;
    let host = format!("{name}.e2e");
    tenant.apply(&App::new(name).objects())?;
    tenant.apply(&[route(name, &host, Metric::Concurrency(10)), scaled_object(name, 2)])?;
    tenant.scaled(name)?;
    tenant.asleep(name)?;
    disrupt()?;
    let answer = Client::new(cluster, &host)?.succeeds("/")?;
    println!("    first answer after {} ms", answer.took.as_millis());
    tenant.asleep(name)?;
    tenant.finish()
}

/// Waits until the pods that a roll-out has replaced are gone: they serve until the last of their requests.
fn until_alone(cluster: &Cluster, deployment: &str) -> Result<()> {
    let object = format!("deployment/{deployment}");
    let deployed = cluster.json(&["get", "--namespace", SYSTEM, &object])?;
    let labels = deployed["spec"]["selector"]["matchLabels"].as_object().context("a Deployment has a selector")?;
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    let selector = format!("--selector={}", labels.join(","));
    cluster.wait_for("the replaced pods to end", Duration::from_secs(90), || {
        let pods = cluster.json(&["get", "pods", "--namespace", SYSTEM, &selector])?;
        let pods = pods["items"].as_array().context("a list of pods")?;
        let ending = pods.iter().any(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
        Ok((!ending).then_some(()))
    })
}
