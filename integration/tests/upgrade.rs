//! Connections that change their protocol.

use integration::{Peer, Pod, interceptor::Interceptor};

use crate::{HOST, warm, warm_with};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const GRANT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A tunnel that both sides have agreed to.
async fn tunnel(pod: &Pod, interceptor: &Interceptor) -> (Peer, Peer) {
    let mut client = interceptor.client().await;
    client.send(ASK).await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!((head.get("upgrade"), head.get("sec-websocket-version")), (Some("websocket"), Some("13")));
    assert!(head.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")), "{head:?}");
    upstream.send(GRANT).await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("sec-websocket-accept")), (101, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
    assert!(head.get("upgrade").is_some_and(|value| value == "websocket"), "{head:?}");
    (client, upstream)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_the_tunnel_counts_for_its_life() {
    let (_world, pod, interceptor) = warm().await;
    let (mut client, mut upstream) = tunnel(&pod, &interceptor).await;
    for _ in 0..3 {
        client.send("\u{1}ping").await;
        assert_eq!(upstream.exactly(5).await, "\u{1}ping");
        upstream.send("\u{2}pong").await;
        assert_eq!(client.exactly(5).await, "\u{2}pong");
    }
    let queue = interceptor.queue("app").await.unwrap();
    assert_eq!((queue.concurrency, queue.count), (1, 1));
    drop(client);
    upstream.closed().await;
    drop(upstream);
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_client_that_breaks_off_ends_the_tunnel_at_once() {
    let (_world, pod, interceptor) = warm().await;
    let (client, mut upstream) = tunnel(&pod, &interceptor).await;
    client.reset();
    interceptor.in_flight("app", 0).await;
    upstream.closed().await;
}

#[tokio::test]
async fn a_tunnel_ends_when_the_pod_closes_it() {
    let (_world, pod, interceptor) = warm().await;
    let (mut client, mut upstream) = tunnel(&pod, &interceptor).await;
    upstream.send("bye").await;
    drop(upstream);
    assert_eq!(client.rest().await, "bye");
    drop(client);
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn one_side_may_end_before_the_other() {
    let (_world, pod, interceptor) = warm().await;
    let (mut client, mut upstream) = tunnel(&pod, &interceptor).await;
    client.finish().await;
    upstream.closed().await;
    upstream.send("last words").await;
    drop(upstream);
    assert_eq!(client.rest().await, "last words");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn bytes_sent_along_with_the_handshake_are_not_lost() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send(&format!("{ASK}early")).await;
    let (mut upstream, _) = pod.request().await;
    upstream.send(&format!("{GRANT}greeting")).await;
    assert_eq!(client.head().await.status(), 101);
    assert_eq!(client.exactly(8).await, "greeting");
    assert_eq!(upstream.exactly(5).await, "early");
}

#[tokio::test]
async fn a_tunnel_outlives_its_readers_pauses_and_carries_a_lot() {
    let (_world, pod, interceptor) = warm().await;
    let (mut client, mut upstream) = tunnel(&pod, &interceptor).await;
    let block = "x".repeat(1024 * 1024);
    let sender = runtime::task::spawn("sender", async move {
        for _ in 0..16 {
            upstream.send(&block).await;
        }
        upstream
    });
    assert_eq!(client.exactly(16 * 1024 * 1024).await.len(), 16 * 1024 * 1024);
    drop((client, sender.await.unwrap()));
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_pod_may_refuse_an_upgrade_like_any_request() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send(ASK).await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str()), (403, "no"));
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn an_upgrade_to_something_else_than_was_asked_for_is_a_bad_gateway() {
    for grant in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let (_world, pod, interceptor) = warm().await;
        let mut client = interceptor.client().await;
        client.send(ASK).await;
        let (mut upstream, _) = pod.request().await;
        upstream.send(grant).await;
        assert_eq!(client.response().await.status(), 502, "{grant}");
        interceptor.in_flight("app", 0).await;
    }
}

#[tokio::test]
async fn an_upgrade_that_nobody_asked_for_is_a_bad_gateway() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send(GRANT).await;
    assert_eq!(client.response().await.status(), 502);
}

#[tokio::test]
async fn a_held_upgrade_is_opened_once_the_pod_is_there() {
    let (world, interceptor) = crate::cold(&[]).await;
    let mut client = interceptor.client().await;
    client.send(ASK).await;
    interceptor.held("app", 1).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let (mut upstream, _) = pod.request().await;
    upstream.send(GRANT).await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("x-keda-http-cold-start")), (101, Some("true")));
    client.send("hi").await;
    assert_eq!(upstream.exactly(2).await, "hi");
}

#[tokio::test]
async fn a_request_deadline_cuts_a_tunnel() {
    let (_world, pod, interceptor) = warm_with(&[("KEDA_HTTP_REQUEST_TIMEOUT", "300ms")]).await;
    let (mut client, mut upstream) = tunnel(&pod, &interceptor).await;
    client.closed().await;
    upstream.closed().await;
    interceptor.in_flight("app", 0).await;
}
