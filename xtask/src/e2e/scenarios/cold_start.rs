//! A sleeping HTTP and a sleeping gRPC service: the first request is held, KEDA wakes the workload, the request is answered.

use anyhow::{Result, ensure};

use super::{
    client::{Client, GrpcClient},
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

/// Calls of gRPC's own test client, warm: streams, metadata, statuses in trailers.
const CALLS: [&str; 7] = [
    "empty_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "custom_metadata",
    "status_code_and_message",
    "unimplemented_method",
];

/// gRPC's own test client and server, of which the latter sleeps: its first call is held, all kinds of calls work after it.
pub(super) fn grpc(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "cold-grpc")?;
    cluster.load_grpc_server()?;
    let client = GrpcClient::new(cluster)?;
    tenant.apply(&App::new("greeter").grpc_server().objects())?;
    // The client's calls have the address it connects to as their authority.
    tenant.apply(&[route("greeter", &client.proxy, Metric::Concurrency(10)), scaled_object("greeter", 3)])?;
    tenant.scaled("greeter")?;
    tenant.asleep("greeter")?;
    client.call("large_unary")?;
    ensure!(tenant.replicas("greeter")? > 0, "the call succeeded but the workload is not scaled up");
    for call in CALLS {
        client.call(call)?;
    }
    tenant.finish()
}
