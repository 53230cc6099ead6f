//! Interceptors in place of a Service's pods: who connects to the port that stands for it has asked for that Service.

use std::net::SocketAddr;

use http::Request;
use integration::{Interceptor, Peer, Pod, World, eventually, h2, soon};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// An interceptor with a route for `app.test`, direct, for which it stands in at the address that is returned.
async fn standing_in(more: Value) -> (World, Interceptor, SocketAddr) {
    let world = World::new();
    let port = Pod::absent().await;
    world.service("app");
    world.standing_in("app", port.port(), json!([{ "hosts": ["app.test"] }]), more);
    let interceptor = Interceptor::start(&world).await;
    (world, interceptor, port)
}

#[tokio::test]
async fn whoever_comes_by_the_port_of_a_service_is_held_for_it_whatever_host_is_asked_for() {
    let (world, interceptor, port) = standing_in(json!({})).await;
    let mut client = Peer::connect(port).await;
    client.get("10.96.0.1", "/first").await;
    interceptor.held("app", 1).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let (mut upstream, head) = pod.request().await;
    assert_eq!((head.target(), head.get("host")), ("/first", Some("10.96.0.1")));
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str()), (200, "hello"));
    assert_eq!(response.cold_start(), Some("true"));
    assert_eq!(response.head.get("connection"), Some("close"), "the next connection finds the pod itself");
    client.closed().await;
    let state = interceptor.state().await;
    let [entrance] = state["entrances"].as_array().unwrap().as_slice() else { panic!("one entrance in {state}") };
    assert_eq!((&entrance["service"], &entrance["error"]), (&json!("shop/app"), &Value::Null));
    assert_eq!(interceptor.get("10.96.0.1", "/").await.status(), 404, "the proxy's own port knows hosts alone");
}

#[tokio::test]
async fn routes_of_the_same_service_are_told_apart_by_their_rules() {
    let (world, interceptor, port) = standing_in(json!({})).await;
    let path = json!([{ "paths": [{ "value": "/admin" }] }]);
    world.standing_in("other", port.port(), path, json!({ "target": { "service": "app", "port": 80 } }));
    eventually("the other route is there", async || interceptor.route_state("other").await).await;
    let pod = Pod::start().await.answering("x");
    world.endpoints("app", &[pod.addr]);
    interceptor.endpoints("other", 1).await;
    for (target, route) in [("/admin/users", "other"), ("/", "app")] {
        let before = interceptor.queue(route).await.unwrap().count;
        let mut client = Peer::connect(port).await;
        client.get("anything", target).await;
        assert_eq!(client.response().await.status(), 200);
        assert_eq!(interceptor.queue(route).await.unwrap().count, before + 1, "{target}");
    }
}

#[tokio::test]
async fn an_http2_connection_is_told_to_go_after_the_pod_has_answered() {
    let (world, interceptor, port) = standing_in(json!({})).await;
    let pod = Pod::start().await.answering("hello");
    world.endpoints("app", &[pod.addr]);
    interceptor.endpoints("app", 1).await;
    let client = h2::Client::connect(port).await;
    let request = || Request::get("http://web.shop.svc/").body(()).unwrap();
    let (response, _) = client.send(request()).await.unwrap();
    assert_eq!((response.status().as_u16(), response.body().as_str()), (200, "hello"));
    eventually("it takes no more requests", async || {
        let error = client.clone().try_start(request()).await.err()?;
        (error.is_go_away() || error.is_io()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_answered_without_a_pod_ends_no_connection() {
    let response = json!({ "statusCode": 503, "body": "soon" });
    let (_world, interceptor, port) =
        standing_in(json!({ "coldStart": { "placeholder": { "response": response } } })).await;
    let mut client = Peer::connect(port).await;
    for _ in 0..2 {
        client.get("app.test", "/").await;
        let response = client.response().await;
        assert_eq!((response.status(), response.body.as_str()), (503, "soon"));
        assert_eq!(response.head.get("connection"), None);
    }
    assert_eq!(interceptor.queue("app").await.unwrap().count, 2, "and wakes the workload");
}

#[tokio::test]
async fn any_other_protocol_is_held_and_then_goes_to_the_pod_byte_by_byte() {
    let (world, interceptor, port) = standing_in(json!({ "protocol": "TCP", "rules": [] })).await;
    let mut client = Peer::connect(port).await;
    client.send("\u{1}hello").await;
    interceptor.held("app", 1).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let mut upstream = pod.accept().await;
    assert_eq!(upstream.exactly(6).await, "\u{1}hello");
    interceptor.held("app", 0).await;
    upstream.send("\u{2}welcome").await;
    assert_eq!(client.exactly(8).await, "\u{2}welcome");
    assert_eq!(interceptor.queue("app").await.unwrap().concurrency, 1, "for as long as it lives");
    client.finish().await;
    upstream.closed().await;
    upstream.send("bye").await;
    assert_eq!(client.exactly(3).await, "bye", "the other direction goes on");
    drop(upstream);
    client.closed().await;
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let (world, interceptor, port) = standing_in(json!({ "protocol": "TCP", "rules": [] })).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    interceptor.endpoints("app", 1).await;
    let mut client = Peer::connect(port).await;
    pod.accept().await.send("220 ready\r\n").await;
    assert_eq!(client.exactly(11).await, "220 ready\r\n");
}

#[tokio::test]
async fn a_tcp_client_that_leaves_while_held_is_not_counted_any_more() {
    let (_world, interceptor, port) = standing_in(json!({ "protocol": "TCP", "rules": [] })).await;
    let silent = Peer::connect(port).await;
    let mut hasty = Peer::connect(port).await;
    hasty.send("x").await;
    interceptor.held("app", 2).await;
    drop(silent);
    interceptor.held("app", 1).await;
    hasty.reset();
    interceptor.held("app", 0).await;
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_tcp_connection_that_waits_too_long_is_closed() {
    let more = json!({ "protocol": "TCP", "rules": [], "timeouts": { "readiness": "50ms" } });
    let (_world, interceptor, port) = standing_in(more).await;
    Peer::connect(port).await.closed().await;
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn tls_goes_through_to_the_pod_that_has_the_certificate() {
    let (world, interceptor, port) = standing_in(json!({})).await;
    let hello = "\u{16}\u{3}\u{1}any handshake";
    let mut client = Peer::connect(port).await;
    client.send(hello).await;
    interceptor.held("app", 1).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let mut upstream = pod.accept().await;
    assert_eq!(upstream.exactly(hello.len()).await, hello);
    upstream.send("server hello").await;
    assert_eq!(client.exactly(12).await, "server hello");
    interceptor.in_flight("app", 1).await;
}

#[tokio::test]
async fn a_port_is_closed_when_its_service_has_it_no_more() {
    let (world, interceptor, port) = standing_in(json!({})).await;
    drop(Peer::connect(port).await);
    world.route("app", json!([{ "hosts": ["app.test"] }]));
    eventually("nobody listens", async || tokio::net::TcpStream::connect(port).await.err().map(drop)).await;
    assert!(interceptor.state().await["entrances"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_port_that_cannot_be_had_is_told_and_had_as_soon_as_it_can() {
    let (world, first, port) = standing_in(json!({})).await;
    let second = Interceptor::start(&world).await;
    let state = second.state().await;
    assert!(state["entrances"][0]["error"].as_str().is_some_and(|error| error.contains("in use")), "{state}");
    assert!(second.metrics().await.contains("rouse_entrances_failed 1"));
    drop(first);
    eventually("it is had", async || (second.state().await["entrances"][0]["error"].is_null()).then_some(())).await;
    let mut client = Peer::connect(port).await;
    client.get("app.test", "/").await;
    second.held("app", 1).await;
}

#[tokio::test]
async fn a_request_that_came_by_an_entrance_is_finished_when_the_process_ends() {
    let (world, mut interceptor, port) = standing_in(json!({})).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    interceptor.endpoints("app", 1).await;
    let mut client = Peer::connect(port).await;
    client.get("app.test", "/").await;
    let (mut upstream, _) = pod.request().await;
    interceptor.signal(Signal::SIGTERM);
    eventually("nobody listens", async || tokio::net::TcpStream::connect(port).await.err().map(drop)).await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.response().await.body, "ok");
    assert!(soon("the end", interceptor.ended()).await.success());
}
