//! Bodies, trailers and interim responses pass piece by piece, in both directions at once.

use integration::{Interceptor, Peer, Pod};

use crate::{HOST, warm};

const CHUNKED_POST: &str = "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A client whose chunked request has reached the pod.
async fn posting(client: &mut Peer, pod: &Pod) -> Peer {
    client.send(CHUNKED_POST).await;
    pod.request().await.0
}

#[tokio::test]
async fn each_piece_of_a_response_is_seen_before_the_next_is_sent() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200, "the head comes before any of the body");
    for piece in ["data: 1\n\n", "data: 2\n\n", "x"] {
        upstream.send_chunk(piece).await;
        assert_eq!(client.chunk().await, piece);
    }
    upstream.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, "");
}

#[tokio::test]
async fn pieces_of_a_body_of_known_length_are_not_held_back_either() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send("PUT / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 6\r\n\r\n").await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.get("content-length"), Some("6"));
    client.send("abc").await;
    assert_eq!(upstream.exactly(3).await, "abc");
    client.send("def").await;
    assert_eq!(upstream.exactly(3).await, "def");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nABC").await;
    client.head().await;
    assert_eq!(client.exactly(3).await, "ABC");
    upstream.send("DEF").await;
    assert_eq!(client.exactly(3).await, "DEF");
}

#[tokio::test]
async fn each_piece_of_a_request_is_seen_before_the_next_is_sent() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    let mut upstream = posting(&mut client, &pod).await;
    for piece in ["one", "two"] {
        client.send_chunk(piece).await;
        assert_eq!(upstream.chunk().await, piece);
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(upstream.chunk().await, "");
}

#[tokio::test]
async fn request_and_response_flow_at_once() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    let mut upstream = posting(&mut client, &pod).await;
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200, "the response begins before the request has ended");
    for round in ["1", "2", "3"] {
        client.send_chunk(round).await;
        assert_eq!(upstream.chunk().await, round);
        upstream.send_chunk(round).await;
        assert_eq!(client.chunk().await, round);
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(upstream.chunk().await, "");
    upstream.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, "");
}

#[tokio::test]
async fn an_early_answer_of_known_length_is_passed_on_while_the_client_still_owes_its_body() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000000\r\n\r\npart").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str()), (413, "big"));
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: app.test\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.get("transfer-encoding"), Some("chunked"));
    client.send("3\r\nabc\r\n0\r\nX-Sum: 42\r\n\r\n").await;
    assert_eq!(upstream.chunk().await, "abc");
    assert_eq!(upstream.chunk().await, "");
    let trailers = upstream.trailers().await;
    assert!(
        matches!(trailers.as_slice(), [(name, value)] if name.eq_ignore_ascii_case("x-sum") && value == "42"),
        "{trailers:?}"
    );
    upstream.send("HTTP/1.1 200 OK\r\nTrailer: X-Status\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Status: fine\r\n\r\n").await;
    client.head().await;
    assert_eq!(client.chunk().await, "ok");
    assert_eq!(client.chunk().await, "");
    let trailers = client.trailers().await;
    assert!(
        matches!(trailers.as_slice(), [(name, value)] if name.eq_ignore_ascii_case("x-status") && value == "fine"),
        "{trailers:?}"
    );
}

#[tokio::test]
async fn trailers_pass_in_both_directions_although_nobody_announced_them() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    let mut upstream = posting(&mut client, &pod).await;
    client.send("0\r\nX-Sum: 42\r\nContent-Length: 7\r\n\r\n").await;
    assert_eq!(upstream.chunk().await, "");
    let trailers = upstream.trailers().await;
    assert!(matches!(trailers.as_slice(), [(name, _)] if name.eq_ignore_ascii_case("x-sum")), "{trailers:?}");
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Status: fine\r\n\r\n").await;
    client.head().await;
    assert_eq!(client.chunk().await, "ok");
    assert_eq!(client.chunk().await, "");
    let trailers = client.trailers().await;
    assert!(matches!(trailers.as_slice(), [(name, _)] if name.eq_ignore_ascii_case("x-status")), "{trailers:?}");
}

#[tokio::test]
async fn a_body_that_was_not_asked_for_is_read_away_before_the_next_request() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("next");
    let mut client = interceptor.client().await;
    client.send("POST / HTTP/1.1\r\nHost: nobody.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    assert_eq!(client.response().await.status(), 404);
    client.send("0\r\n\r\n").await;
    client.get(HOST, "/").await;
    assert_eq!(client.response().await.body, "next");
}

#[tokio::test]
async fn interim_responses_are_relayed_before_the_final_one() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n").await;
    let hints = client.head().await;
    assert_eq!((hints.status(), hints.get("link")), (103, Some("</style.css>; rel=preload")));
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str(), response.cold_start()), (200, "ok", Some("false")));
}

#[tokio::test]
async fn a_pod_decides_on_expect_100_continue() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    let expecting = "PUT / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    client.send(expecting).await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.get("expect"), Some("100-continue"));
    assert_eq!(client.arrived(), "", "nobody but the pod says go on");
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 100);
    client.send("body").await;
    assert_eq!(upstream.exactly(4).await, "body");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.cold_start()), (200, Some("false")));
}

#[tokio::test]
async fn a_pod_s_refusal_of_expect_100_continue_reaches_the_client_at_once() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send("PUT / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str()), (417, "no"));
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_response_without_length_ends_with_the_pod_s_connection() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\n\r\nfirst").await;
    client.head().await;
    assert_eq!(client.chunk().await, "first");
    upstream.send("second").await;
    assert_eq!(client.chunk().await, "second");
    drop(upstream);
    assert_eq!(client.chunk().await, "");
}

#[tokio::test]
async fn a_large_body_passes_whole_in_both_directions_with_bounded_memory() {
    let (_world, pod, interceptor) = warm().await;
    let before = resident(&interceptor).await;
    let size = 64 * 1024 * 1024;
    let mut client = interceptor.client().await;
    client.send(&format!("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: {size}\r\n\r\n")).await;
    let (mut upstream, _) = pod.request().await;
    let echo = runtime::task::spawn("echo", async move {
        upstream.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await;
        let mut left = size;
        while left > 0 {
            let piece = upstream.exactly(left.min(64 * 1024)).await;
            upstream.send(&piece).await;
            left -= piece.len();
        }
    });
    client.head().await;
    let block = "0123456789abcdef".repeat(4 * 1024);
    for _ in 0..size / block.len() {
        client.send(&block).await;
        assert!(client.exactly(block.len()).await == block);
    }
    echo.await.unwrap();
    interceptor.in_flight("app", 0).await;
    let grown = resident(&interceptor).await - before;
    assert!(grown < 16.0 * 1024.0 * 1024.0, "{grown} bytes more are resident after 64 MiB each way");
}

/// Memory of the process, in bytes; before the bodies it is mostly that of the program itself.
async fn resident(interceptor: &Interceptor) -> f64 {
    let metrics = interceptor.metrics().await;
    let resident = metrics.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    resident.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_the_pod_down_instead_of_filling_memory() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    let size = 256 * 1024 * 1024;
    upstream.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await;
    let stream = upstream.into_stream();
    let block = vec![b'x'; 1024 * 1024];
    let mut sent = 0;
    // Until the sockets and the proxy's own buffers are full and nothing moves any more.
    while let Ok(Ok(())) = tokio::time::timeout(std::time::Duration::from_millis(500), stream.writable()).await {
        match stream.try_write(&block) {
            Ok(count) => sent += count,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert!(sent < size / 2, "the proxy swallows what nobody reads");
    }
    interceptor.in_flight("app", 1).await;
}

#[tokio::test]
async fn a_flood_of_interim_responses_neither_fills_memory_nor_hides_the_final_one() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    let flood = "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n".repeat(100);
    for _ in 0..100 {
        upstream.send(&flood).await;
    }
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    loop {
        let head = client.head().await;
        if head.status() == 200 {
            assert_eq!(client.body(&head).await, "ok");
            return;
        }
        assert_eq!(head.status(), 103);
    }
}

#[tokio::test]
async fn a_chunk_line_or_trailer_without_end_is_refused() {
    for tail in ["5;", "0\r\nX-Fill: "] {
        let (_world, pod, interceptor) = warm().await;
        let mut client = interceptor.client().await;
        let mut upstream = posting(&mut client, &pod).await;
        client.send(tail).await;
        let fill = "x".repeat(64 * 1024);
        for _ in 0..64 {
            if client.try_send(fill.as_bytes()).await.is_err() {
                break;
            }
        }
        upstream.closed().await;
        client.closed().await;
        interceptor.in_flight("app", 0).await;
    }
}

#[tokio::test]
async fn a_pod_that_answers_and_closes_before_it_has_read_the_request_is_heard() {
    let (_world, pod, interceptor) = warm().await;
    for _ in 0..10 {
        let mut client = interceptor.client().await;
        client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000000\r\n\r\npart").await;
        let (mut upstream, _) = pod.request().await;
        upstream.send("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno").await;
        upstream.finish().await;
        let response = client.response().await;
        assert_eq!((response.status(), response.body.as_str()), (401, "no"));
    }
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_held_and_then_asked_for_its_body() {
    let (world, interceptor) = crate::cold(&[]).await;
    let mut client = interceptor.client().await;
    client.send("PUT / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    interceptor.held("app", 1).await;
    assert_eq!(client.arrived(), "");
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 100);
    client.send("body").await;
    assert_eq!(upstream.exactly(4).await, "body");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.cold_start(), Some("true"));
}

#[tokio::test]
async fn a_body_that_comes_without_waiting_for_100_continue_is_passed_on() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    // As curl does after a second without an answer, and other clients do at once.
    client.send("PUT / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody").await;
    let (mut upstream, _) = pod.request().await;
    assert_eq!(upstream.exactly(4).await, "body");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let head = client.head().await;
    let head = if head.status() == 100 { client.head().await } else { head };
    assert_eq!(head.status(), 200);
}
