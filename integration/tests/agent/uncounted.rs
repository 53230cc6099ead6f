//! What an agent cannot count is told, and keeps the workload from zero.

use integration::{agent::Agent, eventually, net::Host, world::NAMESPACE};
use proto::externalscaler::{ScaledObjectRef, external_scaler_client::ExternalScalerClient};
use serde_json::json;
use tokio::runtime;
use tonic::{Status, transport::Endpoint};

use crate::count::{Bench, SCALER, UID, VIP, requests};

/// What KEDA is told, on the scaler's node.
fn ask() -> Result<bool, Status> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{SCALER}")).unwrap();
        let scaler = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let reference = ScaledObjectRef {
            name: "web".to_owned(),
            namespace: NAMESPACE.to_owned(),
            scaler_metadata: [("interceptorRoute".to_owned(), "web".to_owned())].into(),
        };
        ExternalScalerClient::new(scaler).is_active(reference).await.map(|answer| answer.into_inner().result)
    })
}

async fn active_is(node: &Host, expected: bool) {
    let what = format!("KEDA is told that the workload has something to do: {expected}");
    eventually(&what, async || node.run(ask).await.is_ok_and(|active| active == expected).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn an_agent_that_cannot_count_keeps_workloads_with_pods_on_its_node_from_zero() {
    let bench = Bench::new();
    bench.list(true);
    let agent = Agent::start_by(&bench.net, &bench.world, &["env", "ROUSE_CGROUP_ROOT=/nowhere"]).await;
    let _scaler = bench.scaler().await;
    bench.told("scaler_route_uncounted{", |agents| agents > 0.5).await;
    active_is(&bench.net.node(), true).await;
    let state = agent.state().await;
    assert_eq!(state["count"]["active"], false);
    assert!(state["count"]["uncounted"][0]["reason"].as_str().unwrap().contains("/nowhere"), "{}", state["count"]);
    assert_eq!((agent.route("web").await["uncounted"] == true, agent.metric("rouse_count_active").await), (true, 0));
    bench.list(false);
    active_is(&bench.net.node(), false).await;
    assert_eq!(agent.metric("rouse_count_pods_uncounted").await, 0);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_that_is_counted_keeps_nothing_awake_and_one_without_a_cgroup_does_after_a_while() {
    let bench = Bench::new();
    bench.list(true);
    bench.cgroup();
    let agent = bench.agent().await;
    let _scaler = bench.scaler().await;
    eventually("the pod is counted", async || (agent.state().await["count"]["pods"] == json!([UID])).then_some(()))
        .await;
    active_is(&bench.net.node(), false).await;
    assert_eq!(agent.state().await["count"]["uncounted"], json!([]));
    bench.list_other();
    active_is(&bench.net.node(), true).await;
    assert_eq!(agent.state().await["count"]["uncounted"][0]["reason"], "its cgroup is not there");
    assert_eq!(agent.metric("rouse_count_pods_uncounted").await, 1);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_route_that_turns_direct_again_has_not_the_demand_of_all_that_its_pods_ever_took() {
    let rate = json!({ "requestRate": { "targetValue": 10 } });
    let bench = Bench::with(json!({ "scalingMetric": rate }));
    bench.list(true);
    bench.cgroup();
    let agent = bench.agent().await;
    bench.serve().await;
    bench.ask(&bench.client, 30, &[]);
    requests(&agent, 30).await;
    let _scaler = bench.scaler().await;
    let addr = (bench.pod.addresses[0], 8080);
    let _idle = bench.client.run(move || std::net::TcpStream::connect(addr)).await.unwrap();
    bench.told("scaler_route_connections{", |open| open > 0.5).await;
    bench.world.direct("web", &[VIP], json!({ "dataPath": "Proxy", "protocol": "HTTP", "scalingMetric": rate }));
    bench.told("scaler_route_connections{", |open| open < 0.5).await;
    bench.world.direct("web", &[VIP], json!({ "scalingMetric": rate }));
    bench.told("scaler_route_connections{", |open| open > 0.5).await;
    bench.told("scaler_route_request_rate{", |rate| rate < 0.01).await;
}
