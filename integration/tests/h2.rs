//! Cleartext HTTP/2, from clients and to pods.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use integration::{
    Interceptor, Pod, World,
    h2::{Client, first, piece, read, serve},
    soon,
};
use nix::sys::signal::Signal;

use crate::{HOST, warm};

fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://{HOST}{path}")).body(()).unwrap()
}

/// An app whose pod speaks HTTP/2.
async fn warm_h2c() -> (World, Pod, Interceptor) {
    let world = World::with_app("app", HOST);
    world.h2c_service("app");
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let interceptor = Interceptor::start(&world).await;
    interceptor.endpoints("app", 1).await;
    (world, pod, interceptor)
}

#[tokio::test]
async fn a_client_with_prior_knowledge_reaches_a_pod_of_http_1() {
    let (_world, pod, interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let (response, mut body) = client.start(request("POST", "/a//b?c=%2F"), false).await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.start, "POST /a//b?c=%2F HTTP/1.1");
    assert_eq!((head.all("host"), head.get("x-forwarded-for")), (vec![HOST], Some("127.0.0.1")));
    assert_eq!((head.get("transfer-encoding"), head.get("x-forwarded-host")), (Some("chunked"), Some(HOST)));
    body.send_data("one".into(), false).unwrap();
    assert_eq!(upstream.chunk().await, "one");
    body.send_data("two".into(), true).unwrap();
    assert_eq!(upstream.chunk().await, "two");
    assert_eq!(upstream.chunk().await, "");
    upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
    let (head, mut body) = soon("a response", response).await.unwrap().into_parts();
    assert_eq!((head.status.as_u16(), &head.headers["x-keda-http-cold-start"]), (200, &"false".parse().unwrap()));
    assert_eq!(head.headers.get("connection"), None);
    assert_eq!(read(&mut body).await.unwrap(), "ok");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_client_of_http_1_reaches_a_pod_of_http_2() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let mut client = interceptor.client().await;
    client
        .send("PUT /x?y=%20 HTTP/1.1\r\nHost: app.test:8080\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi")
        .await;
    let mut exchange = first(pod.accept().await).await;
    let head = &exchange.request;
    assert_eq!((head.method().as_str(), head.uri().to_string()), ("PUT", "http://app.test:8080/x?y=%20".to_owned()));
    assert_eq!(head.headers().get("connection"), None);
    assert_eq!(head.headers().get("host"), None);
    assert_eq!(read(exchange.request.body_mut()).await.unwrap(), "hi");
    let mut body = exchange.respond.send_response(Response::new(()), false).unwrap();
    body.send_data("first".into(), false).unwrap();
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.chunk().await, "first");
    body.send_data("last".into(), true).unwrap();
    assert_eq!(client.chunk().await, "last");
    assert_eq!(client.chunk().await, "");
}

#[tokio::test]
async fn a_grpc_call_streams_both_ways_and_ends_with_trailers() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let client = Client::connect(interceptor.proxy).await;
    let call = Request::post(format!("http://{HOST}/shop.Cart/Watch"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut up) = client.start(call, false).await;
    let mut exchange = first(pod.accept().await).await;
    assert_eq!(exchange.request.headers()["te"], "trailers");
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut down = exchange.respond.send_response(head, false).unwrap();
    let (head, mut answers) = soon("the head before any message", response).await.unwrap().into_parts();
    assert_eq!(head.headers["content-type"], "application/grpc");
    for message in ["1", "2", "3"] {
        up.send_data(message.into(), false).unwrap();
        assert_eq!(piece(exchange.request.body_mut()).await, message);
        down.send_data(message.into(), false).unwrap();
        assert_eq!(piece(&mut answers).await, message);
    }
    let queue = interceptor.queue("app").await.unwrap();
    assert_eq!((queue.concurrency, queue.count), (1, 1));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "5".parse().unwrap());
    trailers.insert("grpc-message", "no such cart".parse().unwrap());
    down.send_trailers(trailers).unwrap();
    assert_eq!(read(&mut answers).await.unwrap(), "");
    let trailers = soon("trailers", answers.trailers()).await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"5".parse().unwrap(), &"no such cart".parse().unwrap())
    );
    drop(up);
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_head_that_is_all_there_is_passes_as_such() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let client = Client::connect(interceptor.proxy).await;
    let (response, _) = client.start(request("POST", "/shop.Cart/Get"), true).await;
    let mut exchange = first(pod.accept().await).await;
    assert!(exchange.request.body().is_end_stream());
    let head = Response::builder().header("grpc-status", "12").body(()).unwrap();
    exchange.respond.send_response(head, true).unwrap();
    let response = soon("a response", response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
    assert!(response.body().is_end_stream());
}

#[tokio::test]
async fn request_trailers_reach_a_pod_of_http_2() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let client = Client::connect(interceptor.proxy).await;
    let (_response, mut up) = client.start(request("POST", "/"), false).await;
    up.send_data("x".into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    up.send_trailers(trailers).unwrap();
    let mut exchange = first(pod.accept().await).await;
    let body = exchange.request.body_mut();
    assert_eq!(read(body).await.unwrap(), "x");
    assert_eq!(soon("trailers", body.trailers()).await.unwrap().unwrap()["x-sum"], "1");
}

#[tokio::test]
async fn a_stream_that_the_client_resets_ends_the_request_and_no_other() {
    let (_world, pod, interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let (stays, _) = client.start(request("GET", "/stays"), true).await;
    let (mut staying, _) = pod.request().await;
    let (leaves, mut body) = client.start(request("POST", "/leaves"), false).await;
    let (mut leaving, _) = pod.request().await;
    interceptor.in_flight("app", 2).await;
    body.send_reset(h2::Reason::CANCEL);
    drop(leaves);
    leaving.closed().await;
    interceptor.in_flight("app", 1).await;
    staying.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell").await;
    let mut body = soon("a response", stays).await.unwrap().into_body();
    assert_eq!(read(&mut body).await.unwrap(), "well");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_held_stream_that_the_client_resets_is_not_counted_any_more() {
    let (_world, interceptor) = crate::cold(&[]).await;
    let client = Client::connect(interceptor.proxy).await;
    let (response, mut body) = client.start(request("POST", "/"), false).await;
    interceptor.held("app", 1).await;
    body.send_reset(h2::Reason::CANCEL);
    drop(response);
    interceptor.in_flight("app", 0).await;
    interceptor.held("app", 0).await;
}

#[tokio::test]
async fn a_connection_that_breaks_ends_all_its_streams() {
    let (_world, interceptor) = crate::cold(&[]).await;
    let stream = tokio::net::TcpStream::connect(interceptor.proxy).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let driver = runtime::task::spawn("client", connection);
    let mut client = client.ready().await.unwrap();
    let _first: (_, h2::SendStream<Bytes>) = client.send_request(request("GET", "/"), true).unwrap();
    let _second = client.send_request(request("GET", "/"), true).unwrap();
    interceptor.held("app", 2).await;
    driver.abort();
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_pod_that_resets_a_stream_before_its_head_is_a_bad_gateway() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let client = Client::connect(interceptor.proxy).await;
    let (response, _) = client.start(request("POST", "/"), true).await;
    let mut exchange = first(pod.accept().await).await;
    exchange.respond.send_reset(h2::Reason::INTERNAL_ERROR);
    let response = soon("a response", response).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-keda-http-cold-start"]),
        (502, &"false".parse().unwrap())
    );
}

#[tokio::test]
async fn a_pod_that_resets_a_stream_in_the_middle_of_its_body_resets_the_client_s() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let client = Client::connect(interceptor.proxy).await;
    let (response, _) = client.start(request("GET", "/"), true).await;
    let mut exchange = first(pod.accept().await).await;
    let mut down = exchange.respond.send_response(Response::new(()), false).unwrap();
    down.send_data("half".into(), false).unwrap();
    let mut body = soon("a head", response).await.unwrap().into_body();
    assert_eq!(piece(&mut body).await, "half");
    down.send_reset(h2::Reason::INTERNAL_ERROR);
    assert!(read(&mut body).await.is_err());
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_pod_that_only_speaks_http_1_where_http_2_was_announced_is_a_bad_gateway() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    // More than one connection may be tried: the request was never taken.
    runtime::task::spawn("pod", async move {
        loop {
            let _ = pod.accept().await.try_send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
        }
    });
    assert_eq!(client.response().await.status(), 502);
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn many_requests_share_a_connection_to_a_pod_of_http_2() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let client = Client::connect(interceptor.proxy).await;
    let mut responses = Vec::new();
    for number in 0..50 {
        responses.push(client.start(request("GET", &format!("/{number}")), true).await.0);
    }
    let mut server = serve(pod.accept().await).await;
    let mut waiting = Vec::new();
    while waiting.len() < 50 {
        tokio::select! {
            accepted = server.accept() => waiting.push(accepted.unwrap().unwrap()),
            _another = pod.accept() => panic!("a second connection"),
        }
    }
    interceptor.in_flight("app", 50).await;
    for (request, mut respond) in waiting {
        let body = Bytes::from(request.uri().path().to_owned());
        respond.send_response(Response::new(()), false).unwrap().send_data(body, true).unwrap();
    }
    runtime::task::spawn("pod", async move { while server.accept().await.is_some() {} });
    for (number, response) in responses.into_iter().enumerate() {
        let mut body = soon("a response", response).await.unwrap().into_body();
        assert_eq!(read(&mut body).await.unwrap(), format!("/{number}"));
    }
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_pod_of_http_2_that_goes_away_is_replaced_by_a_new_connection() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let mut client = interceptor.client().await;
    for round in 0..3 {
        client.get(HOST, "/").await;
        let mut server = serve(pod.accept().await).await;
        let (_request, mut respond) = soon("a request", server.accept()).await.unwrap().unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        server.graceful_shutdown();
        let pod = runtime::task::spawn("pod", async move { while server.accept().await.is_some() {} });
        let response = client.response().await;
        assert_eq!(response.status(), 200, "round {round}");
        soon("the interceptor lets go", pod).await.unwrap();
    }
}

#[tokio::test]
async fn draining_sends_goaway_and_finishes_what_runs() {
    let (_world, pod, mut interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let (running, _) = client.start(request("GET", "/"), true).await;
    let (mut upstream, _) = pod.request().await;
    interceptor.signal(Signal::SIGTERM);
    integration::eventually("no new stream is taken", async || {
        let refused = tokio::net::TcpStream::connect(interceptor.proxy).await.is_err();
        refused.then_some(())
    })
    .await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut body = soon("a response", running).await.unwrap().into_body();
    assert_eq!(read(&mut body).await.unwrap(), "ok");
    assert_eq!(interceptor.ended().await.code(), Some(0));
}

#[tokio::test]
async fn an_upgrade_towards_a_pod_of_http_2_is_not_lost_in_silence() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let mut client = interceptor.client().await;
    client.send("GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    // It does not announce extended CONNECT, so that it is asked over HTTP/1.1.
    let mut over_h2 = serve(pod.accept().await).await;
    let driver = runtime::task::spawn("pod", async move { while over_h2.accept().await.is_some() {} });
    let (mut upstream, head) = pod.request().await;
    assert_eq!((head.start.as_str(), head.get("upgrade")), ("GET / HTTP/1.1", Some("websocket")));
    upstream.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 400);
    driver.abort();
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_request_without_an_authority_is_a_bad_request_and_harms_no_other_stream() {
    let (world, pod, interceptor) = warm().await;
    let _pod = pod.answering("never");
    let _neighbour = crate::neighbour(&world, &interceptor).await;
    let client = Client::connect(interceptor.proxy).await;
    let twice =
        Request::get(format!("http://{HOST}/")).header("host", "a.test").header("host", "b.test").body(()).unwrap();
    if let Ok((response, _)) = client.send(twice).await {
        assert_eq!(response.status(), 400);
    }
    let (response, _) = client.send(Request::get("http://neighbour.test/").body(()).unwrap()).await.unwrap();
    assert_eq!(response.body(), "well");
}

#[tokio::test]
async fn the_authority_counts_and_not_a_host_field_beside_it() {
    let (_world, pod, interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let request = Request::get(format!("http://{HOST}/")).header("host", "other.test").body(()).unwrap();
    let (_response, _) = client.start(request, true).await;
    assert_eq!(pod.request().await.1.all("host"), [HOST]);
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_in_a_row_leave_the_process_well() {
    let (world, interceptor) = crate::cold(&[]).await;
    let _neighbour = crate::neighbour(&world, &interceptor).await;
    let client = Client::connect(interceptor.proxy).await;
    for _ in 0..2000 {
        let mut sender = client.clone();
        let Ok(sent) = sender.try_start(request("POST", "/")).await else { break };
        let (response, mut body) = sent;
        body.send_reset(h2::Reason::CANCEL);
        drop(response);
    }
    interceptor.in_flight("app", 0).await;
    crate::assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn header_blocks_without_end_are_refused() {
    let (world, interceptor) = crate::cold(&[]).await;
    let _neighbour = crate::neighbour(&world, &interceptor).await;
    let mut client = interceptor.client().await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.send_bytes(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
    // HEADERS without END_HEADERS, then CONTINUATION frames of 16 KiB each that never end.
    client.send_bytes(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]).await;
    let mut frame = vec![0, 0x40, 0, 9, 0, 0, 0, 0, 1];
    frame.resize(9 + 0x4000, 0x82);
    for _ in 0..1024 {
        if client.try_send(&frame).await.is_err() {
            break;
        }
    }
    client.closed().await;
    crate::assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn a_pod_that_takes_one_stream_at_a_time_is_given_all_requests_in_the_end() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let pod = runtime::task::spawn("pod", async move {
        loop {
            let peer = pod.accept().await;
            runtime::task::spawn("pod connection", one_at_a_time(peer));
        }
    });
    let client = Client::connect(interceptor.proxy).await;
    let mut responses = Vec::new();
    for number in 0..20 {
        responses.push(client.start(request("POST", &format!("/{number}")), true).await.0);
    }
    for response in responses {
        assert_eq!(soon("a response", response).await.unwrap().status(), 200);
    }
    interceptor.in_flight("app", 0).await;
    pod.abort();
}

/// Refuses whatever comes before the last was answered, as its settings say.
async fn one_at_a_time(peer: integration::Peer) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    let Ok(mut server) = builder.handshake::<_, Bytes>(peer.into_stream()).await else { return };
    while let Some(Ok((_request, mut respond))) = server.accept().await {
        let _ = respond.send_response(Response::new(()), true);
    }
}

#[tokio::test]
async fn trailers_that_a_pod_of_http_1_did_not_announce_reach_a_client_of_http_2() {
    let (_world, pod, interceptor) = warm().await;
    let client = Client::connect(interceptor.proxy).await;
    let (response, _) = client.start(request("GET", "/"), true).await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n").await;
    let mut body = soon("a response", response).await.unwrap().into_body();
    assert_eq!(read(&mut body).await.unwrap(), "ok");
    assert_eq!(soon("trailers", body.trailers()).await.unwrap().unwrap()["x-sum"], "7");
}

#[tokio::test]
async fn a_stream_that_the_pod_refused_is_sent_again() {
    let (_world, pod, interceptor) = warm_h2c().await;
    let refusing = runtime::task::spawn("pod", async move {
        let mut refused = false;
        loop {
            let mut server = serve(pod.accept().await).await;
            while let Some(Ok((_request, mut respond))) = server.accept().await {
                if std::mem::replace(&mut refused, true) {
                    respond.send_response(Response::new(()), true).unwrap();
                } else {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            }
        }
    });
    let client = Client::connect(interceptor.proxy).await;
    let (response, _) = client.start(request("POST", "/"), true).await;
    assert_eq!(soon("a response", response).await.unwrap().status(), 200);
    refusing.abort();
}
