//! CONNECT, which is a request like any other, and extended CONNECT, which is an upgrade.

use http::{Method, Request};
use integration::{
    Head, Interceptor, Peer, Pod, World, eventually,
    h2::{Client, first, piece, read},
    soon,
};
use nix::sys::signal::Signal;

use crate::{HOST, cold, warm, warm_with};

const GRANT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\nX-Room: 7\r\n\r\n";

/// An extended CONNECT.
fn extended(protocol: &'static str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://{HOST}/room?x=%2F"))
        .header("sec-websocket-version", "13")
        .extension(h2::ext::Protocol::from_static(protocol))
        .body(())
        .unwrap()
}

/// A client of HTTP/2 that knows that it may.
async fn client(interceptor: &Interceptor) -> Client {
    let client = Client::connect(interceptor.proxy).await;
    eventually("extended CONNECT is offered", async || client.may_connect().then_some(())).await;
    client
}

/// A tunnel that both sides have agreed to: what the client has to say, what it is told, and the pod.
async fn tunnel(pod: &Pod, interceptor: &Interceptor) -> (h2::SendStream<bytes::Bytes>, h2::RecvStream, Peer, Client) {
    let client = client(interceptor).await;
    let (response, up) = client.start(extended("chat"), false).await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.start, "GET /room?x=%2F HTTP/1.1");
    assert_eq!(
        (head.get("upgrade"), head.get("sec-websocket-key"), head.get("host")),
        (Some("chat"), None, Some(HOST))
    );
    upstream.send(GRANT).await;
    let response = soon("a response", response).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["x-room"]), (200, &"7".parse().unwrap()));
    assert_eq!((response.headers().get("upgrade"), response.headers().get("connection")), (None, None));
    (up, response.into_body(), upstream, client)
}

#[tokio::test]
async fn an_extended_connect_is_an_upgrade_that_counts_for_its_life() {
    let (_world, pod, interceptor) = warm().await;
    let (mut up, mut down, mut upstream, _client) = tunnel(&pod, &interceptor).await;
    for _ in 0..3 {
        up.send_data("ping".into(), false).unwrap();
        assert_eq!(upstream.exactly(4).await, "ping");
        upstream.send("pong").await;
        assert_eq!(piece(&mut down).await, "pong");
    }
    let queue = interceptor.queue("app").await.unwrap();
    assert_eq!((queue.concurrency, queue.count), (1, 1));
    up.send_data("last".into(), true).unwrap();
    assert_eq!(upstream.rest().await, "last");
    upstream.send("words").await;
    drop(upstream);
    assert_eq!(read(&mut down).await.unwrap(), "words");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn what_is_said_along_with_the_handshake_is_not_lost() {
    let (_world, pod, interceptor) = warm().await;
    let client = client(&interceptor).await;
    let (response, mut up) = client.start(extended("chat"), false).await;
    up.send_data("early".into(), false).unwrap();
    let (mut upstream, _) = pod.request().await;
    upstream.send(&format!("{GRANT}greeting")).await;
    let mut down = soon("a response", response).await.unwrap().into_body();
    assert_eq!(piece(&mut down).await, "greeting");
    assert_eq!(upstream.exactly(5).await, "early");
}

#[tokio::test]
async fn more_than_a_window_passes_through_a_tunnel_both_ways() {
    let (_world, pod, interceptor) = warm().await;
    let (mut up, mut down, mut upstream, _client) = tunnel(&pod, &interceptor).await;
    let text = "x".repeat(3 * 1024 * 1024);
    let (came, ()) =
        tokio::join!(upstream.exactly(text.len()), async { up.send_data(text.clone().into(), false).unwrap() });
    assert!(came == text);
    let (sent, came) = tokio::join!(upstream.try_send(text.as_bytes()), async {
        let mut came = String::new();
        while came.len() < text.len() {
            came.push_str(&piece(&mut down).await);
        }
        came
    });
    assert!(sent.is_ok() && came == text);
}

#[tokio::test]
async fn a_client_that_resets_its_stream_ends_the_tunnel() {
    let (_world, pod, interceptor) = warm().await;
    let (mut up, _down, mut upstream, _client) = tunnel(&pod, &interceptor).await;
    up.send_reset(h2::Reason::CANCEL);
    upstream.closed().await;
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_held_extended_connect_that_the_client_resets_is_not_counted_any_more() {
    let (_world, interceptor) = cold(&[]).await;
    let client = client(&interceptor).await;
    let (response, mut up) = client.start(extended("websocket"), false).await;
    interceptor.held("app", 1).await;
    up.send_reset(h2::Reason::CANCEL);
    drop(response);
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_pod_that_refuses_an_extended_connect_is_heard() {
    let (_world, pod, interceptor) = warm().await;
    let client = client(&interceptor).await;
    let (response, _up) = client.start(extended("websocket"), false).await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!((head.get("upgrade"), head.get("sec-websocket-key").map(str::len)), (Some("websocket"), Some(24)));
    upstream.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let mut response = soon("a response", response).await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(read(response.body_mut()).await.unwrap(), "no");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_pod_that_does_not_know_the_key_it_was_given_is_a_bad_gateway() {
    let (_world, pod, interceptor) = warm().await;
    let client = client(&interceptor).await;
    for accept in ["", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"] {
        let (response, _up) = client.start(extended("websocket"), false).await;
        let (mut upstream, _) = pod.request().await;
        let start = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        upstream.send(&format!("{start}{accept}\r\n")).await;
        assert_eq!(soon("a response", response).await.unwrap().status(), 502);
        upstream.closed().await;
    }
}

#[tokio::test]
async fn a_tunnel_over_http_2_is_cut_when_draining_is_over() {
    let (_world, pod, mut interceptor) = warm_with(&[("KEDA_HTTP_DRAIN_TIMEOUT", "200ms")]).await;
    let (_up, mut down, mut upstream, _client) = tunnel(&pod, &interceptor).await;
    interceptor.signal(Signal::SIGTERM);
    upstream.closed().await;
    assert!(read(&mut down).await.is_err());
    assert_eq!(interceptor.ended().await.code(), Some(0));
}

// === CONNECT to a host ===

const CONNECT: &str = "CONNECT app.test:443 HTTP/1.1\r\nHost: app.test:443\r\n\r\n";

fn assert_is_connect(head: &Head) {
    assert_eq!((head.start.as_str(), head.all("host")), ("CONNECT app.test:443 HTTP/1.1", vec!["app.test:443"]));
}

#[tokio::test]
async fn connect_goes_by_its_host_to_the_pod_and_its_answer_back() {
    let (_world, pod, interceptor) = warm().await;
    for status in ["200 OK", "405 Method Not Allowed"] {
        let mut client = interceptor.client().await;
        client.send(CONNECT).await;
        let (mut upstream, head) = pod.request().await;
        assert_is_connect(&head);
        upstream.send(&format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok")).await;
        let response = client.response().await;
        assert_eq!((response.head.start.as_str(), response.body.as_str()), (&*format!("HTTP/1.1 {status}"), "ok"));
    }
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn nothing_behind_connect_reaches_a_pod_past_the_routes() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send(CONNECT).await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    let _ = client.try_send(b"GET /admin HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
    upstream.finish().await;
    assert_eq!(upstream.rest().await, "");
    client.closed().await;
}

#[tokio::test]
async fn connect_over_http_2_is_the_same() {
    let (_world, pod, interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let request = Request::connect("app.test:443").body(()).unwrap();
    let (response, _up) = client.start(request, true).await;
    let (mut upstream, head) = pod.request().await;
    assert_is_connect(&head);
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut response = soon("a response", response).await.unwrap();
    assert_eq!((response.status().as_u16(), read(response.body_mut()).await.unwrap()), (200, "ok".to_owned()));
}

#[tokio::test]
async fn connect_reaches_a_pod_of_http_2_without_a_path() {
    let world = World::with_app("app", HOST);
    world.h2c_service("app");
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let interceptor = Interceptor::start(&world).await;
    interceptor.endpoints("app", 1).await;
    let mut client = interceptor.client().await;
    client.send(CONNECT).await;
    let mut exchange = first(pod.accept().await).await;
    let uri = exchange.request.uri();
    assert_eq!(
        (uri.authority().map(http::uri::Authority::as_str), uri.path(), uri.scheme()),
        (Some("app.test:443"), "", None)
    );
    exchange.respond.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(client.head().await.status(), 200);
}

#[tokio::test]
async fn connect_to_what_is_no_host_is_a_bad_request() {
    let (_world, pod, interceptor) = warm().await;
    let pod = pod.answering("never");
    for target in ["a/b", "?", "@", "app.test:443/x"] {
        let mut client = interceptor.client().await;
        client.send(&format!("CONNECT {target} HTTP/1.1\r\nHost: app.test\r\n\r\n")).await;
        assert_eq!(client.response().await.status(), 400, "{target}");
    }
    assert_eq!(pod.requests(), 0);
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_not_between_interceptor_and_pod() {
    let (_world, pod, interceptor) =
        warm_with(&[("HTTP_PROXY", "http://127.0.0.1:1"), ("http_proxy", "http://127.0.0.1:1")]).await;
    let _pod = pod.answering("well");
    assert_eq!(interceptor.get(HOST, "/").await.body, "well");
}
