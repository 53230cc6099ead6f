//! Connections that wait while what they wait for becomes another's, or is held no more.

use integration::{agent::Agent, eventually, soon, world::NAMESPACE};
use serde_json::json;

use crate::{
    bench::{Bench, FRONTEND, VIP, VIP6},
    clients::{PORT, connect, listen},
};

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_whose_route_has_gone_is_no_other_services_with_the_same_id() {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let waits = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    bench.world.remove("InterceptorRoute", "web");
    let ended = "rouse_hold_connections_total{outcome=\"moved\"}";
    eventually("its wait ends", async || (agent.metric(ended).await == 1).then_some(())).await;
    let _pod = listen(&bench.pod, "other").await;
    bench.world.direct("other", &["10.96.0.3"], json!({}));
    bench.world.endpoints("other", &[(bench.pod.addresses[0], PORT).into()]);
    agent.until("other", "warm").await;
    assert_eq!(agent.metric("rouse_hold_tries_total").await, 0, "nobody is led to its pod");
    assert_eq!(agent.metric("rouse_hold_waiting_connections").await, 0);
    assert!(soon("the node's own rules judge it", waits).await.unwrap().is_err());
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_that_passes_once_its_service_is_held_no_more_lives_on() {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let waits = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    let _pod = listen(&bench.pod, "web-a").await;
    bench.warm();
    bench.world.remove("InterceptorRoute", "web");
    // By the node's own rules, when it sends its packet again.
    let answer = soon("the connection opens", waits).await.unwrap().unwrap();
    assert!(answer.line.starts_with("web-a to "));
    assert_eq!(agent.metric("rouse_hold_waiting_connections").await, 0, "nobody is left to take its entry away");
    assert_eq!(agent.metric("rouse_hold_tries_total").await, 0);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_route_that_is_made_anew_counts_who_waits() {
    let bench = Bench::new();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let held = bench.held();
    agent.until_held("web", 1).await;
    // Another route of the same Service keeps the address held meanwhile.
    bench.world.object(&json!({
        "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
        "metadata": { "name": "again", "namespace": NAMESPACE },
        "spec": {
            "target": { "service": "web", "port": 80 }, "dataPath": "Direct", "protocol": "TCP",
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
        },
    }));
    agent.until_held("again", 1).await;
    bench.world.remove("InterceptorRoute", "web");
    agent.until("again", "cold").await;
    bench.world.direct("web", &[VIP, VIP6], json!({}));
    agent.until_held("web", 1).await;
    let _pod = listen(&bench.pod, "web-a").await;
    bench.endpoints(&[&bench.pod]);
    soon("the connection opens", held).await.unwrap().unwrap();
}
