//! What a client gets when a pod fails, and when another try is made.

use integration::{Interceptor, Pod, World, eventually, peer::Response};
use serde_json::json;

use crate::{HOST, cold, warm, warm_with};

/// An answer of the interceptor's own, from past the hold.
fn assert_own(response: &Response, status: u16, text: &str) {
    assert_eq!((response.status(), response.body.as_str()), (status, text));
    assert_eq!(response.head.get("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(response.head.get("x-content-type-options"), Some("nosniff"));
    assert_eq!(response.cold_start(), Some("false"));
}

#[tokio::test]
async fn a_pod_that_closes_before_its_response_is_a_bad_gateway() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    drop(pod.request().await);
    assert_own(&client.response().await, 502, "Bad Gateway\n");
    client.get(HOST, "/").await;
    let (upstream, _) = pod.request().await;
    upstream.reset();
    assert_own(&client.response().await, 502, "Bad Gateway\n");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_bad_gateway() {
    for garbage in ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"] {
        let (_world, pod, interceptor) = warm().await;
        let mut client = interceptor.client().await;
        client.get(HOST, "/").await;
        let (mut upstream, _) = pod.request().await;
        upstream.send(garbage).await;
        assert_own(&client.response().await, 502, "Bad Gateway\n");
    }
}

#[tokio::test]
async fn a_pod_that_fails_in_the_middle_of_its_body_cuts_the_client_off() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    upstream.send_chunk("half").await;
    client.head().await;
    assert_eq!(client.chunk().await, "half");
    drop(upstream);
    assert_eq!(client.rest().await, "", "no end of the body, so that the client can tell");
    interceptor.in_flight("app", 0).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    client.head().await;
    drop(upstream);
    assert_eq!(client.rest().await, "half");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_pod_that_does_not_answer_in_time_is_a_gateway_timeout() {
    let (_world, pod, interceptor) = warm_with(&[("KEDA_HTTP_RESPONSE_HEADER_TIMEOUT", "100ms")]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    assert_own(&client.response().await, 504, "Gateway Timeout\n");
    upstream.closed().await;
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_request_that_takes_longer_than_its_route_allows_is_a_gateway_timeout() {
    let world = World::new();
    let pod = Pod::start().await;
    let timeouts = json!({ "timeouts": { "request": "100ms", "responseHeader": "0s" } });
    world.route_with("app", json!([{ "hosts": [HOST] }]), timeouts);
    world.service("app");
    world.endpoints("app", &[pod.addr]);
    let interceptor = Interceptor::start_with(&world, &[("KEDA_HTTP_RESPONSE_HEADER_TIMEOUT", "1ms")]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (_upstream, _) = pod.request().await;
    assert_own(&client.response().await, 504, "Gateway Timeout\n");
}

#[tokio::test]
async fn a_deadline_in_the_middle_of_a_body_cuts_it() {
    let (_world, pod, interceptor) = warm_with(&[("KEDA_HTTP_REQUEST_TIMEOUT", "300ms")]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    client.head().await;
    assert_eq!(client.rest().await, "half");
    upstream.closed().await;
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn pods_that_refuse_until_the_deadline_are_a_gateway_timeout_with_cold_start_header() {
    let world = World::with_app("app", HOST);
    world.endpoints("app", &[Pod::absent().await]);
    let interceptor = Interceptor::start_with(&world, &[("KEDA_HTTP_REQUEST_TIMEOUT", "300ms")]).await;
    interceptor.endpoints("app", 1).await;
    assert_own(&interceptor.get(HOST, "/").await, 504, "Gateway Timeout\n");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_refused_connection_goes_to_another_endpoint() {
    let world = World::with_app("app", HOST);
    let pod = Pod::start().await.answering("alive");
    world.endpoints("app", &[Pod::absent().await, pod.addr]);
    let interceptor = Interceptor::start(&world).await;
    interceptor.endpoints("app", 2).await;
    for _ in 0..50 {
        let mut client = interceptor.client().await;
        client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 2\r\n\r\nhi").await;
        let response = client.response().await;
        assert_eq!((response.status(), response.body.as_str()), (200, "alive"));
    }
    assert_eq!(pod.requests(), 50);
}

#[tokio::test]
async fn a_get_on_a_kept_connection_that_was_closed_is_repeated_once() {
    let (_world, pod, interceptor) = warm_with(&[("ROUSE_WORKERS", "1")]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/warm-up").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    client.response().await;
    client.get(HOST, "/again").await;
    assert_eq!(upstream.head().await.target(), "/again");
    drop(upstream);
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.target(), "/again");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.response().await.body, "ok");
}

#[tokio::test]
async fn a_post_that_a_pod_may_have_seen_is_never_sent_again() {
    let (_world, pod, interceptor) = warm_with(&[("ROUSE_WORKERS", "1")]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/warm-up").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    client.response().await;
    client.send("POST /pay HTTP/1.1\r\nHost: app.test\r\nContent-Length: 2\r\n\r\nhi").await;
    let head = upstream.head().await;
    assert_eq!(head.target(), "/pay");
    upstream.body(&head).await;
    drop(upstream);
    assert_own(&client.response().await, 502, "Bad Gateway\n");
}

#[tokio::test]
async fn a_kept_connection_that_the_pod_closed_while_idle_is_not_used() {
    let (_world, pod, interceptor) = warm_with(&[("ROUSE_WORKERS", "1")]).await;
    let mut client = interceptor.client().await;
    for _ in 0..20 {
        client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 2\r\n\r\nhi").await;
        let (mut upstream, head) = pod.request().await;
        upstream.body(&head).await;
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        upstream.finish().await;
        assert_eq!(client.response().await.body, "ok");
        upstream.closed().await;
    }
}

#[tokio::test]
async fn a_connection_to_a_pod_is_kept_and_used_again() {
    let (_world, pod, interceptor) = warm_with(&[("ROUSE_WORKERS", "1")]).await;
    let pod = pod.answering("x");
    let mut client = interceptor.client().await;
    for _ in 0..20 {
        client.get(HOST, "/").await;
        assert_eq!(client.response().await.body, "x");
    }
    for _ in 0..20 {
        assert_eq!(interceptor.get(HOST, "/").await.body, "x");
    }
    assert_eq!((pod.requests(), pod.connections()), (40, 1));
}

#[tokio::test]
async fn requests_move_to_a_new_endpoint_when_the_old_one_is_withdrawn() {
    let (world, pod, interceptor) = warm().await;
    let old = pod.answering("old");
    let new = Pod::start().await.answering("new");
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    assert_eq!(client.response().await.body, "old");
    world.endpoints("app", &[new.addr]);
    eventually("the new endpoint answers", async || {
        client.get(HOST, "/").await;
        (client.response().await.body == "new").then_some(())
    })
    .await;
    let before = old.requests();
    for _ in 0..20 {
        assert_eq!(interceptor.get(HOST, "/").await.body, "new");
    }
    assert_eq!(old.requests(), before, "the old one is not asked any more");
}

#[tokio::test]
async fn a_service_that_does_not_exist_is_reported_and_answered_and_harms_nobody() {
    let (world, interceptor) = cold(&[("KEDA_HTTP_READINESS_TIMEOUT", "100ms")]).await;
    let _pod = crate::neighbour(&world, &interceptor).await;
    world.route("lost", json!([{ "hosts": ["lost.test"] }]));
    let problem = interceptor.problem("lost").await;
    assert!(problem.contains("lost"), "{problem}");
    let response = interceptor.get("lost.test", "/").await;
    assert!(matches!(response.status(), 500 | 504), "{response:?}");
    crate::assert_neighbour_is_well(&interceptor).await;
    world.service("lost");
    let pod = Pod::start().await.answering("found");
    world.endpoints("lost", &[pod.addr]);
    eventually("the route works once its Service exists", async || {
        (interceptor.get("lost.test", "/").await.body == "found").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_port_that_the_service_does_not_have_is_named() {
    let (world, interceptor) = cold(&[]).await;
    let target = json!({ "target": { "service": "app", "portName": "nonsense" } });
    world.route_with("portless", json!([{ "hosts": ["portless.test"] }]), target);
    let problem = interceptor.problem("portless").await;
    assert!(problem.contains("nonsense"), "{problem}");
    let response = interceptor.get("portless.test", "/").await;
    assert_eq!((response.status(), response.body.as_str()), (500, "Internal Server Error\n"));
    assert_eq!(interceptor.queue("portless").await.map(|queue| queue.count), Some(0));
}

#[tokio::test]
async fn a_connection_that_the_pod_says_it_closes_is_not_used_again() {
    let (_world, pod, interceptor) = warm_with(&[("ROUSE_WORKERS", "1")]).await;
    let mut client = interceptor.client().await;
    for _ in 0..3 {
        client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 2\r\n\r\nhi").await;
        let (mut upstream, head) = pod.request().await;
        upstream.body(&head).await;
        upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        let response = client.response().await;
        assert_eq!((response.body.as_str(), response.head.get("connection")), ("ok", None), "the client's own goes on");
        upstream.closed().await;
    }
}

#[tokio::test]
async fn a_head_request_gets_the_status_of_an_error_without_its_text() {
    let (_world, interceptor) = cold(&[("KEDA_HTTP_READINESS_TIMEOUT", "50ms")]).await;
    let mut client = interceptor.client().await;
    for (host, status) in [("nobody.test", 404), (HOST, 504)] {
        client.send(&format!("HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(client.head().await.status(), status);
    }
    client.get("nobody.test", "/").await;
    assert_eq!(client.response().await.body, "Not Found\n", "the connection is still in step");
}

#[tokio::test]
async fn an_error_leaves_the_connection_usable_or_closed_but_never_out_of_step() {
    let (world, interceptor) = cold(&[("KEDA_HTTP_READINESS_TIMEOUT", "50ms")]).await;
    let _neighbour = crate::neighbour(&world, &interceptor).await;
    for host in ["nobody.test", HOST] {
        let mut client = interceptor.client().await;
        // The body looks like a request that must not be served as one.
        let body = "GET /smuggled HTTP/1.1\r\nHost: neighbour.test\r\n\r\n";
        let length = body.len();
        client.send(&format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}")).await;
        let response = client.response().await;
        assert!(response.status() >= 400);
        if client.try_send(b"GET /next HTTP/1.1\r\nHost: nobody.test\r\n\r\n").await.is_ok()
            && let Some(head) = client.try_head().await
        {
            assert_eq!(head.status(), 404, "{host}: what follows is the next request, not the body");
        }
    }
}

#[tokio::test]
async fn methods_of_all_kinds_pass() {
    let (_world, pod, interceptor) = warm_with(&[("ROUSE_WORKERS", "1")]).await;
    let mut client = interceptor.client().await;
    let mut upstream = None;
    for method in ["DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "M-SEARCH"] {
        client.send(&format!("{method} /x HTTP/1.1\r\nHost: app.test\r\n\r\n")).await;
        let mut peer = match upstream.take() {
            Some(peer) => peer,
            None => pod.accept().await,
        };
        assert_eq!(peer.head().await.start, format!("{method} /x HTTP/1.1"));
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(client.response().await.status(), 200);
        upstream = Some(peer);
    }
}

#[tokio::test]
async fn a_slow_upload_does_not_count_against_the_time_for_the_response_head() {
    let (_world, pod, interceptor) = warm_with(&[("KEDA_HTTP_RESPONSE_HEADER_TIMEOUT", "100ms")]).await;
    let mut slow = interceptor.client().await;
    slow.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 6\r\n\r\nabc").await;
    let (mut upload, _) = pod.request().await;
    assert_eq!(upload.exactly(3).await, "abc");
    // Another request's deadline passes meanwhile, twice: it is the clock.
    for _ in 0..2 {
        let mut clock = interceptor.client().await;
        clock.get(HOST, "/").await;
        let (_ticking, _) = pod.request().await;
        assert_eq!(clock.response().await.status(), 504);
    }
    slow.send("def").await;
    assert_eq!(upload.exactly(3).await, "def");
    upload.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
    assert_eq!(slow.response().await.body, "done");
}
