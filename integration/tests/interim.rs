//! 1xx responses and back-pressure, over every pair of protocols.

use std::future::poll_fn;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use integration::{
    Interceptor, Pod, World,
    h2::{Client, first, piece, read, serve},
    soon,
};

use crate::{HOST, warm};

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\nContent-Length: 7\r\nConnection: x\r\n\r\n";

fn request(method: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://{HOST}/")).body(()).unwrap()
}

/// An app whose pod speaks HTTP/2.
async fn warm_h2c() -> (World, Pod, Interceptor) {
    let world = World::with_app("app", HOST);
    world.h2c_service("app");
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    // One worker, so that all its clients share one connection to the pod.
    let interceptor = Interceptor::start_with(&world, &[("ROUSE_WORKERS", "1")]).await;
    interceptor.endpoints("app", 1).await;
    (world, pod, interceptor)
}

/// The next 1xx response; `None` when the response itself is next.
async fn interim(response: &mut h2::client::ResponseFuture) -> Option<Response<()>> {
    soon("an interim or final response", poll_fn(|cx| response.poll_informational(cx))).await.transpose().unwrap()
}

fn hints() -> Response<()> {
    Response::builder().status(103).header("link", "<a>").body(()).unwrap()
}

#[tokio::test]
async fn early_hints_of_a_pod_of_http_1_reach_a_client_of_http_2_at_once() {
    let (_world, pod, interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let (mut response, _) = client.start(request("GET"), true).await;
    let (mut upstream, _) = pod.request().await;
    for _ in 0..2 {
        upstream.send(HINTS).await;
        let head = interim(&mut response).await.unwrap();
        assert_eq!(
            (head.status().as_u16(), &head.headers()["link"], head.headers().len()),
            (103, &"<a>".parse().unwrap(), 1)
        );
    }
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(interim(&mut response).await.is_none());
    let mut response = soon("the final response", response).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().get("link")), (200, None));
    assert_eq!(read(response.body_mut()).await.unwrap(), "ok");
}

#[tokio::test]
async fn early_hints_of_a_pod_of_http_2_reach_a_client_of_http_2_at_once() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let client = Client::connect(interceptor.proxy).await;
    let (mut response, _) = client.start(request("GET"), true).await;
    let mut exchange = first(pod.accept().await).await;
    exchange.respond.send_informational(hints()).unwrap();
    assert_eq!(interim(&mut response).await.unwrap().headers()["link"], "<a>");
    exchange.respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(soon("the final response", response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn early_hints_of_a_pod_of_http_2_reach_a_client_of_http_1_at_once() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let mut exchange = first(pod.accept().await).await;
    exchange.respond.send_informational(hints()).unwrap();
    let head = client.head().await;
    assert_eq!((head.status(), head.get("link")), (103, Some("<a>")));
    exchange.respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(client.response().await.status(), 200);
}

#[tokio::test]
async fn a_client_of_http_2_that_expects_continue_is_told_when_the_pod_wants_its_body() {
    let (_world, pod, interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let mut head = request("POST");
    head.headers_mut().insert("expect", "100-continue".parse().unwrap());
    let (mut response, mut body) = client.start(head, false).await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.get("expect"), Some("100-continue"));
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(interim(&mut response).await.unwrap().status(), StatusCode::CONTINUE);
    body.send_data("x".into(), true).unwrap();
    assert_eq!(upstream.chunk().await, "x");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(soon("the final response", response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_pod_of_http_2_that_refuses_a_body_is_heard_before_the_body() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let client = Client::connect(interceptor.proxy).await;
    let mut head = request("POST");
    head.headers_mut().insert("expect", "100-continue".parse().unwrap());
    let (mut response, _body) = client.start(head, false).await;
    let mut exchange = first(pod.accept().await).await;
    let refusal = Response::builder().status(417).body(()).unwrap();
    exchange.respond.send_response(refusal, true).unwrap();
    assert!(interim(&mut response).await.is_none(), "nobody asked for the body");
    assert_eq!(soon("the final response", response).await.unwrap().status(), 417);
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn interim_responses_without_end_do_not_pile_up() {
    let (_world, pod, interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let (mut response, _) = client.start(request("GET"), true).await;
    let (mut upstream, _) = pod.request().await;
    for _ in 0..1000 {
        upstream.send(HINTS).await;
    }
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let mut count = 0;
    while interim(&mut response).await.is_some() {
        count += 1;
    }
    assert_eq!(count, 32);
    assert_eq!(soon("the final response", response).await.unwrap().status(), 200);
    let metrics = interceptor.metrics().await;
    assert!(metrics.contains("rouse_interim_responses_dropped_total 968\n"), "{metrics}");
}

#[tokio::test]
async fn a_switch_of_protocols_that_nobody_asked_for_does_not_reach_a_client_of_http_2() {
    let (_world, pod, interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let (mut response, _) = client.start(request("GET"), true).await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    assert!(interim(&mut response).await.is_none());
    assert_eq!(soon("a response", response).await.unwrap().status(), 502);
}

#[tokio::test]
async fn an_answer_of_our_own_to_head_has_no_body_over_http_2() {
    let (_world, interceptor) = crate::cold(&[]).await;
    let client = Client::connect(interceptor.proxy).await;
    let head = Request::head("http://nobody.test/").body(()).unwrap();
    let (response, trailers) = client.send(head).await.unwrap();
    assert_eq!((response.status().as_u16(), response.body().as_str(), trailers), (404, "", None));
    assert_eq!(response.headers()["content-length"], "10");
}

// === back-pressure ===

/// What the interceptor takes of one body over HTTP/2 before it has gone on, in bytes.
const WINDOW: usize = 512 * 1024;

/// Sends a window's worth, and then until there has been no room for a moment; returns how much was sent.
async fn fill(body: &mut h2::SendStream<Bytes>) -> usize {
    let mut sent = 0;
    loop {
        body.reserve_capacity(16 * 1024);
        let room = poll_fn(|cx| body.poll_capacity(cx));
        let room = if sent < WINDOW {
            soon("room for a window", room).await
        } else {
            let Ok(room) = tokio::time::timeout(std::time::Duration::from_millis(300), room).await else { return sent };
            room
        };
        let room = room.unwrap().unwrap();
        body.send_data(vec![b'x'; room].into(), false).unwrap();
        sent += room;
    }
}

#[tokio::test]
async fn a_held_upload_is_not_taken_whole_and_leaves_room_for_others() {
    let (world, interceptor) = crate::cold(&[]).await;
    let _neighbour = crate::neighbour(&world, &interceptor).await;
    let client = Client::connect(interceptor.proxy).await;
    let (_held, mut body) = client.start(request("PUT"), false).await;
    interceptor.held("app", 1).await;
    let sent = fill(&mut body).await;
    assert_eq!(sent, WINDOW, "one window, and no more");
    let other = Request::put("http://neighbour.test/").body(()).unwrap();
    let (response, mut body) = client.start(other, false).await;
    for _ in 0..64 {
        body.reserve_capacity(16 * 1024);
        let room = soon("room for another body", poll_fn(|cx| body.poll_capacity(cx))).await.unwrap().unwrap();
        body.send_data(vec![b'x'; room].into(), false).unwrap();
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(soon("a response", response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_client_that_reads_slowly_stops_its_pod_and_no_other_stream() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let client = Client::connect(interceptor.proxy).await;
        slow.push((client.start(request("GET"), true).await.0, client));
    }
    let mut server = serve(pod.accept().await).await;
    let mut bodies = Vec::new();
    for _ in 0..4 {
        let (_, mut respond) = soon("a request", server.accept()).await.unwrap().unwrap();
        bodies.push(respond.send_response(Response::new(()), false).unwrap());
    }
    let pod = runtime::task::spawn("pod", async move {
        while let Some(Ok((_, mut respond))) = server.accept().await {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            body.send_data("quick".into(), true).unwrap();
        }
    });
    for body in &mut bodies {
        let sent = fill(body).await;
        assert!(sent < 4 * 1024 * 1024, "{sent} bytes were taken for a client that reads nothing");
    }
    let client = Client::connect(interceptor.proxy).await;
    let (response, _) = client.send(request("GET")).await.unwrap();
    assert_eq!(response.body(), "quick");
    // And it goes on when the client reads.
    let (response, _client) = slow.pop().unwrap();
    let mut stream = soon("a head", response).await.unwrap().into_body();
    let mut got = 0;
    let last = bodies.last_mut().unwrap();
    last.send_data("end".into(), true).unwrap();
    while !stream.is_end_stream() {
        got += piece(&mut stream).await.len();
    }
    assert!(got > 64 * 1024);
    pod.abort();
}
