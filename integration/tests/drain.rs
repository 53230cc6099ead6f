//! The orderly end.

use integration::{Interceptor, Peer, eventually, interceptor::get};
use nix::sys::signal::Signal;

use crate::{HOST, cold, warm, warm_with};

/// Waits until the proxy port takes nobody any more.
async fn listener_closed(interceptor: &Interceptor) {
    eventually("the proxy port is closed", async || {
        let refused = tokio::net::TcpStream::connect(interceptor.proxy).await.is_err();
        refused.then_some(())
    })
    .await;
}

#[tokio::test]
async fn while_draining_requests_are_still_served_but_clients_are_told_to_go() {
    let (_world, pod, interceptor) = warm_with(&[("KEDA_HTTP_SHUTDOWN_DELAY", "1h")]).await;
    let _pod = pod.answering("served");
    let mut kept = interceptor.client().await;
    kept.get(HOST, "/").await;
    assert_eq!(kept.response().await.head.get("connection"), None);
    interceptor.signal(Signal::SIGTERM);
    eventually("not ready", async || (interceptor.ready().await.status() == 503).then_some(())).await;
    assert_eq!(get(interceptor.admin, "/livez").await.status(), 200);
    kept.get(HOST, "/").await;
    let last = kept.response().await;
    assert_eq!((last.body.as_str(), last.head.get("connection")), ("served", Some("close")));
    kept.closed().await;
    let new = interceptor.get(HOST, "/").await;
    assert_eq!((new.body.as_str(), new.head.get("connection")), ("served", Some("close")));
}

#[tokio::test]
async fn what_runs_is_finished_and_the_process_ends_with_status_0() {
    let (_world, pod, mut interceptor) = warm().await;
    let mut running = interceptor.client().await;
    running.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
    running.head().await;
    assert_eq!(running.exactly(4).await, "half");
    let mut idle = interceptor.client().await;
    idle.send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").await;
    idle.response().await;
    interceptor.signal(Signal::SIGTERM);
    listener_closed(&interceptor).await;
    idle.closed().await;
    assert!(interceptor.runs(), "waits for the request that runs");
    upstream.send("full").await;
    assert_eq!(running.exactly(4).await, "full");
    running.closed().await;
    assert_eq!(interceptor.ended().await.code(), Some(0));
}

#[tokio::test]
async fn an_idle_interceptor_ends_at_once_on_either_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (_world, mut interceptor) = cold(&[]).await;
        interceptor.signal(signal);
        assert_eq!(interceptor.ended().await.code(), Some(0), "{signal}");
    }
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once_with_status_1() {
    let (_world, mut interceptor) = cold(&[("KEDA_HTTP_SHUTDOWN_DELAY", "1h")]).await;
    interceptor.signal(Signal::SIGTERM);
    eventually("not ready", async || (interceptor.ready().await.status() == 503).then_some(())).await;
    interceptor.signal(Signal::SIGTERM);
    assert_eq!(interceptor.ended().await.code(), Some(1));
}

#[tokio::test]
async fn what_outlasts_the_grace_period_is_cut() {
    let (_world, pod, mut interceptor) = warm_with(&[("KEDA_HTTP_DRAIN_TIMEOUT", "200ms")]).await;
    let mut running = interceptor.client().await;
    running.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
    running.head().await;
    interceptor.signal(Signal::SIGTERM);
    assert_eq!(running.rest().await, "half");
    upstream.closed().await;
    assert_eq!(interceptor.ended().await.code(), Some(0));
}

#[tokio::test]
async fn who_still_waits_at_the_end_of_the_grace_period_is_told_that_it_is_too_late() {
    let (_world, pod, mut interceptor) = warm_with(&[("KEDA_HTTP_DRAIN_TIMEOUT", "200ms")]).await;
    let mut waiting = interceptor.client().await;
    waiting.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    interceptor.signal(Signal::SIGTERM);
    let response = waiting.response().await;
    assert_eq!((response.status(), response.body.as_str()), (504, "Gateway Timeout\n"));
    waiting.closed().await;
    upstream.closed().await;
    assert_eq!(interceptor.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_held_request_keeps_the_drain_open_and_is_still_served() {
    let (world, mut interceptor) = cold(&[]).await;
    let mut held = interceptor.client().await;
    held.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    interceptor.signal(Signal::SIGTERM);
    listener_closed(&interceptor).await;
    assert!(interceptor.runs());
    let pod = integration::Pod::start().await.answering("in time");
    world.endpoints("app", &[pod.addr]);
    assert_eq!(held.response().await.body, "in time");
    assert_eq!(interceptor.ended().await.code(), Some(0));
}

#[tokio::test]
async fn tunnels_are_cut_once_requests_are_finished() {
    let (_world, pod, mut interceptor) = warm().await;
    let mut tunnel = interceptor.client().await;
    tunnel.send("GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
    assert_eq!(tunnel.head().await.status(), 101);
    let mut running = interceptor.client().await;
    running.get(HOST, "/").await;
    let (mut other, _) = pod.request().await;
    interceptor.signal(Signal::SIGTERM);
    listener_closed(&interceptor).await;
    tunnel.send("still open").await;
    assert_eq!(upstream.exactly(10).await, "still open");
    other.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(running.response().await.status(), 200);
    tunnel.closed().await;
    upstream.closed().await;
    assert_eq!(interceptor.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_never_sends_its_request_does_not_keep_the_drain_open() {
    let (_world, mut interceptor) = cold(&[]).await;
    let mut silent = Peer::connect(interceptor.proxy).await;
    let mut slow = Peer::connect(interceptor.proxy).await;
    slow.send("GET / HTTP/1.1\r\nHo").await;
    // Both are known to the interceptor once a third, later one is answered on every worker.
    for _ in 0..20 {
        interceptor.get("nobody.test", "/").await;
    }
    interceptor.signal(Signal::SIGTERM);
    silent.closed().await;
    slow.closed().await;
    assert_eq!(interceptor.ended().await.code(), Some(0));
}
