//! Load makes a workload grow through the autoscaler, by requests in flight or by requests per second; then it sleeps again.

use anyhow::{Result, ensure};

use super::{
    client::Client,
    tenant::{App, Metric, SCALING, SYSTEM, Tenant, route, scaled_object},
};
use crate::cluster::Cluster;

/// Forty requests in flight at a target of ten: four replicas, and none more.
pub(super) fn by_concurrency(cluster: &Cluster) -> Result<()> {
    grows(cluster, "flight", Metric::Concurrency(10), "/slow?ms=250", 40, 4)
}

/// Eight clients that ask for 20 ms each make about 400 requests per second, of which a replica shall have 120.
pub(super) fn by_rate(cluster: &Cluster) -> Result<()> {
    grows(cluster, "rate", Metric::Rate(120), "/slow?ms=20", 8, 2)
}

/// Six hundred requests that are held at a target of two hundred: KEDA adds an interceptor.
pub(super) fn of_interceptors(cluster: &Cluster) -> Result<()> {
    const INTERCEPTORS: &str = "deployment/keda-add-ons-http-interceptor";

    let tenant = Tenant::new(cluster, "held")?;
    tenant.apply(&App::new("held").objects())?;
    // Nobody wakes it: it has no ScaledObject.
    tenant.apply(&[route("held", "held.e2e", Metric::Concurrency(10))])?;
    tenant.condition("interceptorroute/held", "Accepted", "True")?;
    let ready = || -> Result<u64> {
        let deployed = cluster.json(&["get", "--namespace", SYSTEM, INTERCEPTORS])?;
        Ok(deployed["status"]["readyReplicas"].as_u64().unwrap_or_default())
    };
    let before = ready()?;
    let load = Client::new(cluster, "held.e2e")?.load("/", 600)?;
    cluster.wait_for("one more interceptor", SCALING, || Ok((ready()? > before).then_some(())))?;
    drop(load);
    tenant.finish()
}

fn grows(cluster: &Cluster, name: &str, metric: Metric, path: &str, connections: u32, replicas: u64) -> Result<()> {
    const MOST: u32 = 4;

    let tenant = Tenant::new(cluster, name)?;
    let host = format!("{name}.e2e");
    tenant.apply(&App::new(name).objects())?;
    tenant.apply(&[route(name, &host, metric), scaled_object(name, MOST)])?;
    tenant.scaled(name)?;
    let load = Client::new(cluster, &host)?.load(path, connections)?;
    tenant.at_least(name, replicas)?;
    let seen = load.without_failure()?;
    ensure!(tenant.replicas(name)? <= u64::from(MOST), "more replicas than KEDA was allowed");
    println!("    {replicas} replicas or more after {} requests", seen.requests);
    tenant.asleep(name)?;
    tenant.finish()
}
