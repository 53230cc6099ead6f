//! A sleeping HTTP and a sleeping gRPC service: the first request is held, KEDA wakes the workload, the request is answered.

use anyhow::{Result, ensure};

use super::{
    client::Client,
    tenant::{App, Metric, PATIENCE, Tenant, route, scaled_object},
};
use crate::cluster::Cluster;

/// HTTP/1.1, then back to sleep when nobody asks any more.
pub(super) fn http(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "cold-http")?;
    tenant.apply(&App::new("cold").objects())?;
    tenant.apply(&[route("cold", "cold.e2e", Metric::Concurrency(10)), scaled_object("cold", 3)])?;
    tenant.condition("interceptorroute/cold", "Ready", "True")?;
    tenant.scaled("cold")?;
    tenant.asleep("cold")?;
    let client = Client::new(cluster, "cold.e2e")?;
    let first = client.succeeds("/")?;
    ensure!(first.cold_start == "true", "the first answer says cold start {:?}", first.cold_start);
    ensure!(first.body.starts_with("Hello from cold-"), "no pod of the app answered: {}", first.body);
    ensure!(tenant.replicas("cold")? > 0, "the workload was answered for but is not scaled up");
    // Another interceptor may have to wait for the pod as well, until the kubelet reports that it is ready.
    let second = cluster.wait_for("an answer without a cold start", PATIENCE, || {
        Ok(Some(client.succeeds("/")?).filter(|answer| answer.cold_start == "false"))
    })?;
    println!("    first answer after {} ms, a warm one after {} ms", first.took.as_millis(), second.took.as_millis());
    tenant.asleep("cold")?;
    tenant.finish()
}

/// gRPC's health check over HTTP/2 with prior knowledge; the trailers say whether the call succeeded.
pub(super) fn grpc(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "cold-grpc")?;
    tenant.apply(&App::new("greeter").grpc().objects())?;
    tenant.apply(&[route("greeter", "greeter.e2e", Metric::Concurrency(10)), scaled_object("greeter", 3)])?;
    tenant.scaled("greeter")?;
    tenant.asleep("greeter")?;
    let said = Client::new(cluster, "greeter.e2e")?.call("/grpc.health.v1.Health/Check")?;
    for line in [":status: 200", "grpc-status: 0", "x-keda-http-cold-start: true"] {
        ensure!(said.contains(line), "no {line:?} in the response: {said}");
    }
    tenant.finish()
}
