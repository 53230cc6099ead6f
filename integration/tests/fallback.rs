//! Routes with a fallback, while their workload stays cold.

use integration::{Interceptor, Pod, World, eventually};
use serde_json::json;

use crate::HOST;

/// A cold app whose requests go to the Service `standby` after `readiness`.
async fn with_fallback(readiness: &str, env: &[(&str, &str)]) -> (World, Interceptor) {
    let world = World::new();
    world.service("app");
    world.service("standby");
    let more = json!({
        "coldStart": { "fallback": { "service": { "name": "standby", "portName": "http" } } },
        "timeouts": { "readiness": readiness },
    });
    world.route_with("app", json!([{ "hosts": [HOST] }]), more);
    let interceptor = Interceptor::start_with(&world, env).await;
    (world, interceptor)
}

/// How many requests went to a fallback.
async fn fallbacks(interceptor: &Interceptor) -> String {
    let metrics = interceptor.metrics().await;
    let line = metrics.lines().find(|line| line.starts_with("rouse_fallbacks_total"));
    line.and_then(|line| line.split(' ').next_back()).unwrap_or("0").to_owned()
}

#[tokio::test]
async fn the_fallback_takes_the_request_when_no_endpoint_gets_ready_in_time() {
    let (world, interceptor) = with_fallback("50ms", &[]).await;
    let standby = Pod::start().await.answering("standby");
    world.endpoints("standby", &[standby.addr]);
    let mut client = interceptor.client().await;
    client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nhello").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str()), (200, "standby"));
    assert_eq!(response.cold_start(), None, "the fallback is no cold start of the target");
    interceptor.in_flight("app", 0).await;
    assert_eq!(fallbacks(&interceptor).await, "1");
}

#[tokio::test]
async fn a_target_that_gets_ready_in_time_keeps_its_requests() {
    let (world, interceptor) = with_fallback("1m", &[]).await;
    let standby = Pod::start().await.answering("standby");
    world.endpoints("standby", &[standby.addr]);
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    let pod = Pod::start().await.answering("target");
    world.endpoints("app", &[pod.addr]);
    let response = client.response().await;
    assert_eq!((response.body.as_str(), response.cold_start()), ("target", Some("true")));
}

#[tokio::test]
async fn a_fallback_without_endpoints_is_waited_for() {
    let (world, interceptor) = with_fallback("50ms", &[]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    eventually("the request has gone to the fallback", async || (fallbacks(&interceptor).await == "1").then_some(()))
        .await;
    let standby = Pod::start().await.answering("standby");
    world.endpoints("standby", &[standby.addr]);
    assert_eq!(client.response().await.body, "standby");
}

#[tokio::test]
async fn the_request_s_deadline_ends_the_wait_for_the_fallback_too() {
    let (_world, interceptor) = with_fallback("50ms", &[("KEDA_HTTP_REQUEST_TIMEOUT", "200ms")]).await;
    let response = interceptor.get(HOST, "/").await;
    assert_eq!((response.status(), response.cold_start()), (504, None));
}

#[tokio::test]
async fn a_fallback_that_does_not_exist_harms_no_request_of_a_warm_target() {
    let (world, interceptor) = with_fallback("50ms", &[]).await;
    world.remove("Service", "standby");
    let pod = Pod::start().await.answering("target");
    world.endpoints("app", &[pod.addr]);
    interceptor.endpoints("app", 1).await;
    assert_eq!(interceptor.get(HOST, "/").await.body, "target");
    let problems = interceptor.state().await["problems"].to_string();
    assert!(problems.contains("the fallback's Service shop/standby does not exist"), "{problems}");
}

#[tokio::test]
async fn an_http_scaled_object_s_failover_service_is_a_fallback() {
    let world = World::new();
    world.service("app");
    world.service("standby");
    world.object(&json!({
        "apiVersion": "http.keda.sh/v1alpha1", "kind": "HTTPScaledObject",
        "metadata": { "name": "app", "namespace": "shop" },
        "spec": {
            "hosts": [HOST],
            "scaleTargetRef": { "name": "app", "kind": "Deployment", "apiVersion": "apps/v1", "service": "app", "port": 80 },
            "coldStartTimeoutFailoverRef": { "service": "standby", "port": 80, "timeoutSeconds": 1 },
        },
    }));
    let interceptor = Interceptor::start(&world).await;
    let standby = Pod::start().await.answering("standby");
    world.endpoints("standby", &[standby.addr]);
    assert_eq!(interceptor.get(HOST, "/").await.body, "standby");
}
