//! Pods that answer their readiness probe before any EndpointSlice says that they are ready.

use std::net::SocketAddr;

use integration::{Interceptor, Peer, Pod, World, eventually, world::NAMESPACE};
use serde_json::{Value, json};

use crate::HOST;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// The app's route with a probe in its status, as the operator writes it.
fn route(world: &World, pod: SocketAddr, cold_start: &Value) {
    let status =
        json!({ "readinessProbe": { "httpGet": { "port": pod.port(), "path": "/healthz" }, "periodSeconds": 10 } });
    world.service("app");
    world.object(&json!({
        "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
        "metadata": { "name": "app", "namespace": NAMESPACE },
        "spec": {
            "target": { "service": "app", "port": 80 },
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
            "rules": [{ "hosts": [HOST] }],
            "coldStart": cold_start,
        },
        "status": status,
    }));
}

/// The app's slice with one endpoint.
fn slice(world: &World, pod: SocketAddr, conditions: &Value) {
    world.object(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "app-1", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "app" } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [pod.ip().to_string()], "conditions": conditions }],
        "ports": [{ "name": "http", "port": pod.port(), "protocol": "TCP" }],
    }));
}

/// A held request, with a pod that listens and is not listed as ready.
async fn held(cold_start: &Value) -> (World, Pod, Interceptor, Peer) {
    let world = World::new();
    let pod = Pod::start().await;
    route(&world, pod.addr, cold_start);
    let interceptor = Interceptor::start(&world).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/held").await;
    interceptor.held("app", 1).await;
    slice(&world, pod.addr, &json!({ "ready": false, "serving": false, "terminating": false }));
    (world, pod, interceptor, client)
}

async fn probe(pod: &Pod, answer: &str) {
    let (mut probe, head) = pod.request().await;
    assert_eq!(head.target(), "/healthz");
    assert!(head.get("user-agent").is_some_and(|agent| agent.starts_with("kube-probe/")));
    probe.send(answer).await;
}

#[tokio::test]
async fn a_held_request_goes_to_a_pod_at_its_first_successful_probe() {
    let (world, pod, interceptor, mut client) = held(&Value::Null).await;
    probe(&pod, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    probe(&pod, OK).await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.target(), "/held");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str(), response.cold_start()), (200, "hello", Some("true")));

    let state = interceptor.route_state("app").await.unwrap();
    assert_eq!(state["upstream"]["early"], json!([pod.addr.to_string()]));
    let start = interceptor.state().await["coldStarts"][0].clone();
    let time = |name: &str| start[name].as_u64().unwrap_or_else(|| panic!("{name} in {start}"));
    assert!(time("signalled") >= time("arrived"));
    let times = [time("arrived"), time("probedReady"), time("endpointSeen"), time("connected"), time("firstByte")];
    assert!(times.is_sorted(), "{times:?}");
    let metrics = interceptor.metrics().await;
    for line in ["rouse_readiness_wakes_total 1", "rouse_readiness_probes_total{outcome=\"unready\"} 1"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }

    slice(&world, pod.addr, &json!({ "ready": true }));
    eventually("the slice has confirmed the pod", async || {
        let state = interceptor.route_state("app").await?;
        (state["upstream"]["early"] == json!([]) && state["upstream"]["endpoints"] == json!([pod.addr.to_string()]))
            .then_some(())
    })
    .await;
    client.get(HOST, "/kept").await;
    assert_eq!(upstream.head().await.target(), "/kept", "the connection outlives the change");
}

#[tokio::test]
async fn a_pod_whose_route_refuses_probes_is_not_asked() {
    let (world, pod, _interceptor, _client) = held(&json!({ "probeReadiness": false })).await;
    slice(&world, pod.addr, &json!({ "ready": true }));
    let (_upstream, head) = pod.request().await;
    assert_eq!(head.target(), "/held", "the first connection is the request's");
}

#[tokio::test]
async fn a_pod_that_answers_and_then_refuses_is_not_ready_any_more() {
    let world = World::new();
    // The probe's port answers, the app's does not.
    let (probed, app) = (Pod::start().await, Pod::absent().await);
    route(&world, probed.addr, &Value::Null);
    let probed = probed.answering("");
    let interceptor = Interceptor::start(&world).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    slice(&world, app, &json!({ "ready": false }));
    eventually("the verdict is dropped", async || {
        interceptor.metrics().await.contains("rouse_readiness_verdicts_dropped_total{reason=\"refused\"}").then_some(())
    })
    .await;
    eventually("it is tried again, and works", async || {
        let again = interceptor.metrics().await.contains("rouse_readiness_wakes_total 2");
        again.then_some(())
    })
    .await;
    assert!(probed.requests() >= 2);
    let pod = Pod::start_at(app).await;
    let (_upstream, head) = pod.request().await;
    assert_eq!(head.target(), "/");
}
