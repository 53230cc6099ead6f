//! The ports for operators.

use integration::{
    Interceptor, Peer, World,
    interceptor::{get, level},
};
use serde_json::json;

use crate::{HOST, cold, warm};

#[tokio::test]
async fn probes_answer_as_the_original_s() {
    let (_world, interceptor) = cold(&[]).await;
    let alive = get(interceptor.admin, "/livez").await;
    assert_eq!((alive.status(), alive.body.as_str()), (200, ""));
    let ready = get(interceptor.admin, "/readyz").await;
    assert_eq!((ready.status(), ready.body.as_str()), (200, "OK"));
    let other = get(interceptor.admin, "/other").await;
    assert_eq!((other.status(), other.body.as_str()), (404, "404 page not found\n"));
}

#[tokio::test]
async fn an_interceptor_without_any_manifest_is_ready() {
    let world = World::new();
    let interceptor = Interceptor::start(&world).await;
    assert_eq!(interceptor.state().await["routes"], json!([]));
}

#[tokio::test]
async fn the_state_tells_level_routes_and_endpoints() {
    let (_world, pod, interceptor) = warm().await;
    let state = interceptor.state().await;
    assert_eq!((&state["ready"], &state["pending"], &state["workers"]), (&json!(true), &json!([]), &json!(2)));
    assert_eq!(state["dataplane"]["level"], level());
    assert!(state["dataplane"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    assert!(state["version"].as_str().is_some_and(|version| !version.is_empty()));
    let route = &state["routes"][0];
    assert_eq!((&route["namespace"], &route["name"], &route["state"]), (&json!("shop"), &json!("app"), &json!("warm")));
    assert_eq!(route["upstream"]["endpoints"], json!([pod.addr.to_string()]));
    assert_eq!((&route["inFlight"], &route["held"], &route["total"]), (&json!(0), &json!(0), &json!(0)));
}

#[tokio::test]
async fn the_metrics_have_the_original_s_names_and_labels() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("x");
    assert_eq!(interceptor.get(HOST, "/").await.status(), 200);
    assert_eq!(interceptor.get("nobody.test", "/").await.status(), 404);
    interceptor.in_flight("app", 0).await;
    let metrics = interceptor.metrics().await;
    assert_sample(
        &metrics,
        "interceptor_request_count_total",
        &["code=\"200\"", "method=\"GET\"", "route_name=\"app\"", "route_namespace=\"shop\""],
        "1",
    );
    assert_sample(
        &metrics,
        "interceptor_request_count_total",
        &["code=\"404\"", "route_name=\"\"", "route_namespace=\"\""],
        "1",
    );
    assert_sample(
        &metrics,
        "interceptor_request_concurrency",
        &["route_name=\"app\"", "route_namespace=\"shop\""],
        "0",
    );
    let labels = ["code=\"200\"", "method=\"GET\"", "route_name=\"app\"", "le=\"0.005\""];
    assert!(find(&metrics, "interceptor_request_duration_seconds_bucket", &labels).is_some(), "{metrics}");
    assert!(find(&metrics, "interceptor_request_duration_seconds_bucket", &["le=\"1\""]).is_some(), "{metrics}");
    for line in [
        "# TYPE interceptor_request_count_total counter",
        "# TYPE interceptor_request_duration_seconds histogram",
        "# TYPE interceptor_request_concurrency gauge",
        "# HELP interceptor_request_count_total Total requests processed by the interceptor proxy",
    ] {
        assert!(metrics.lines().any(|have| have == line), "{line} is missing in\n{metrics}");
    }
    assert!(find(&metrics, "target_info", &["service_name=\"keda-http-interceptor\""]).is_some(), "{metrics}");
    assert!(find(&metrics, "process_open_fds", &[]).is_some());
    assert_eq!(get(interceptor.metrics, "/livez").await.status(), 404, "nothing but metrics there");
    assert!(get(interceptor.admin, "/metrics").await.body.contains("interceptor_request_count_total"));
}

/// The value of the sample with all these labels.
fn find<'a>(metrics: &'a str, name: &str, labels: &[&str]) -> Option<&'a str> {
    let samples = metrics.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    let mut samples = samples.filter(|line| labels.iter().all(|label| line.contains(label)));
    samples.next()?.rsplit(' ').next()
}

fn assert_sample(metrics: &str, name: &str, labels: &[&str], value: &str) {
    assert_eq!(find(metrics, name, labels), Some(value), "{name} {labels:?} in\n{metrics}");
}

#[tokio::test]
async fn a_scrape_is_answered_while_the_workers_are_busy() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("x");
    let mut busy = Vec::new();
    for _ in 0..8 {
        let mut client = interceptor.client().await;
        client.send(&"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n".repeat(500)).await;
        busy.push(client);
    }
    assert!(interceptor.metrics().await.contains("process_open_fds"));
    assert_eq!(interceptor.ready().await.status(), 200);
    for mut client in busy {
        for _ in 0..500 {
            assert_eq!(client.response().await.status(), 200);
        }
    }
}

#[tokio::test]
async fn a_route_that_is_gone_is_gone_from_queue_and_metrics() {
    let (world, pod, interceptor) = warm().await;
    let _pod = pod.answering("x");
    interceptor.get(HOST, "/").await;
    world.remove("InterceptorRoute", "app");
    integration::eventually("the route is gone", async || interceptor.queue("app").await.is_none().then_some(())).await;
    let metrics = interceptor.metrics().await;
    assert_eq!(find(&metrics, "interceptor_request_concurrency", &["route_name=\"app\""]), None, "{metrics}");
}

#[tokio::test]
async fn the_admin_port_survives_garbage() {
    let (_world, interceptor) = cold(&[]).await;
    for garbage in
        [&b"\0\xff\xfe garbage\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
    {
        let mut peer = Peer::connect(interceptor.admin).await;
        let _ = peer.try_send(garbage).await;
        peer.finish().await;
        peer.closed().await;
    }
    assert_eq!(interceptor.ready().await.status(), 200);
}

#[tokio::test]
async fn requests_are_logged_in_the_original_s_way_when_that_is_asked_for() {
    let (_world, pod, interceptor) = crate::warm_with(&[("KEDA_HTTP_LOG_REQUESTS", "true")]).await;
    let _pod = pod.answering("hello");
    let mut client = interceptor.client().await;
    client.send("GET /a%20b?secret=1 HTTP/1.1\r\nHost: app.test\r\nReferer: there\r\nUser-Agent: me/1\r\n\r\n").await;
    client.response().await;
    let line = integration::eventually("the access line", async || {
        interceptor.log().lines().find(|line| line.contains("me/1")).map(str::to_owned)
    })
    .await;
    for part in ["127.0.0.1:", "\"path\":\"/a b\"", "\"status\":200", "\"bytes\":5", "\"referer\":\"there\""] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!line.contains("secret"), "a query may hold secrets: {line}");
}

#[tokio::test]
async fn the_log_s_filter_can_be_asked_and_changed() {
    let (_world, interceptor) = cold(&[]).await;
    let mut peer = Peer::connect(interceptor.admin).await;
    peer.send("PUT /log?debug HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(peer.response().await.body, "debug\n");
    peer.send("PUT /log?=&= HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(peer.response().await.status(), 400);
    assert_eq!(get(interceptor.admin, "/log").await.body, "debug\n");
}
