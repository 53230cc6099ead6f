//! Messages that two readers could read in two ways: refused, with nothing of what may hide behind them.

use std::sync::Arc;

use integration::{Interceptor, Pod, World, soon};
use parking_lot::Mutex;

use crate::{HOST, assert_neighbour_is_well, neighbour, warm};

/// What is hidden behind each message.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: app.test\r\n\r\n";

/// Start lines and fields of requests that are none.
const HEADS: [(&str, &str); 52] = [
    (
        "length and chunks",
        "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunks and length",
        "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunks and no length",
        "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    ("one length twice", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    ("a list of lengths", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5, 5\r\n\r\nhello"),
    ("a length with a sign", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: +5\r\n\r\nhello"),
    ("a negative length", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: -1\r\n\r\n"),
    ("an empty length", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length:\r\n\r\n"),
    ("a hexadecimal length", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 0x5\r\n\r\nhello"),
    ("a length with a space", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1 0\r\n\r\n0123456789"),
    ("a length with an underscore", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1_0\r\n\r\n0123456789"),
    ("a fraction", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5.0\r\n\r\nhello"),
    ("a length in other digits", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: \u{665}\r\n\r\nhello"),
    ("a length beyond all", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 18446744073709551616\r\n\r\n"),
    ("a length far beyond all", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
    ("an unknown coding", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: gzip\r\n\r\n"),
    (
        "a coding before chunks",
        "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding behind chunks",
        "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    ("chunks in chunks", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    (
        "two codings",
        "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding and identity",
        "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("identity", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello"),
    ("nearly chunks", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("quoted chunks", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    ("chunks with a parameter", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"),
    ("an empty coding", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding:\r\n\r\n"),
    ("a comma before chunks", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n"),
    (
        "a vertical tab before chunks",
        "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n",
    ),
    ("chunks over HTTP/1.0", "POST / HTTP/1.0\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a folded coding", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("a folded field", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\r\n b\r\n\r\n"),
    ("a folded field with a tab", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\r\n\tb\r\n\r\n"),
    ("a first field that is folded", "GET / HTTP/1.1\r\n X: a\r\nHost: app.test\r\n\r\n"),
    ("a space before the colon", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("a tab before the colon", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length\t: 5\r\n\r\nhello"),
    ("a space in a name", "GET / HTTP/1.1\r\nHost: app.test\r\nX Y: z\r\n\r\n"),
    ("no name", "GET / HTTP/1.1\r\nHost: app.test\r\n: z\r\n\r\n"),
    ("no colon", "GET / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding chunked\r\n\r\n"),
    ("a name in brackets", "GET / HTTP/1.1\r\nHost: app.test\r\nX[0]: z\r\n\r\n"),
    ("a name that is not ASCII", "GET / HTTP/1.1\r\nHost: app.test\r\nX\u{e9}: z\r\n\r\n"),
    ("NUL in a name", "GET / HTTP/1.1\r\nHost: app.test\r\nX\0: z\r\n\r\n"),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\0b\r\n\r\n"),
    ("a bare carriage return in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\rb\r\n\r\n"),
    (
        "a bare carriage return before a field",
        "POST / HTTP/1.1\r\nHost: app.test\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a bare carriage return as the end", "GET / HTTP/1.1\r\nHost: app.test\r\n\rX: a\r\n\r\n"),
    ("DEL in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\u{7f}b\r\n\r\n"),
    ("two spaces in the start", "GET  / HTTP/1.1\r\nHost: app.test\r\n\r\n"),
    ("a space in the target", "GET /a b HTTP/1.1\r\nHost: app.test\r\n\r\n"),
    ("NUL in the target", "GET /\0 HTTP/1.1\r\nHost: app.test\r\n\r\n"),
    ("a tab in the start", "GET\t/ HTTP/1.1\r\nHost: app.test\r\n\r\n"),
    ("no version", "GET /\r\nHost: app.test\r\n\r\n"),
];

/// Bodies that are no chunks.
const CHUNKS: [(&str, &str); 22] = [
    ("no size", "\r\n\r\n"),
    ("letters", "zz\r\nhello\r\n0\r\n\r\n"),
    ("a sign", "+5\r\nhello\r\n0\r\n\r\n"),
    ("a negative size", "-1\r\nhello\r\n0\r\n\r\n"),
    ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
    ("an underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
    ("a space before the size", " 5\r\nhello\r\n0\r\n\r\n"),
    ("a space in the size", "0 5\r\nhello\r\n0\r\n\r\n"),
    ("a size beyond all", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("a size that wraps around", "100000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("a bare line feed behind the size", "5\nhello\r\n0\r\n\r\n"),
    ("a bare carriage return behind the size", "5\rhello\r\n0\r\n\r\n"),
    ("two carriage returns behind the size", "5\r\r\nhello\r\n0\r\n\r\n"),
    ("a bare line feed in an extension", "5;a\nhello\r\n0\r\n\r\n"),
    ("a bare carriage return in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("NUL in an extension", "5;\0\r\nhello\r\n0\r\n\r\n"),
    ("more data than its size", "3\r\nhello\r\n0\r\n\r\n"),
    ("a bare line feed behind the data", "5\r\nhello\n0\r\n\r\n"),
    ("a bare carriage return behind the data", "5\r\nhello\r0\r\n\r\n"),
    ("a line feed that ends the trailers", "0\r\nX: y\n\r\n"),
    ("a folded trailer", "0\r\nX: y\r\n z\r\n\r\n"),
    ("NUL in a trailer", "0\r\nX: \0\r\n\r\n"),
];

/// All that comes back, with the hidden request behind what was sent.
async fn answers(interceptor: &Interceptor, text: &str) -> String {
    let mut client = interceptor.client().await;
    let _ = client.try_send(format!("{text}{HIDDEN}").as_bytes()).await;
    client.rest().await
}

fn assert_is_one_refusal(case: &str, said: &str) {
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{case}: {said:?}");
    assert!(said.contains("\r\nConnection: close\r\n"), "{case}: {said:?}");
    assert_eq!(said.matches("HTTP/1.1").count(), 1, "{case}: {said:?}");
}

#[tokio::test]
async fn heads_that_can_be_read_in_two_ways_are_bad_requests_of_which_no_pod_hears() {
    let (world, pod, interceptor) = warm().await;
    let pod = pod.answering("never");
    let _neighbour = neighbour(&world, &interceptor).await;
    for (case, text) in HEADS {
        assert_is_one_refusal(case, &answers(&interceptor, text).await);
    }
    assert_eq!((pod.connections(), pod.requests()), (0, 0));
    assert_neighbour_is_well(&interceptor).await;
}

/// A pod that only listens to what it is told, connection by connection.
pub(crate) fn listening(pod: Pod) -> Arc<Mutex<Vec<String>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&heard);
    runtime::task::spawn("pod", async move {
        loop {
            let text = pod.accept().await.rest().await;
            all.lock().push(text);
        }
    });
    heard
}

#[tokio::test]
async fn bodies_that_can_be_read_in_two_ways_are_bad_requests_that_no_pod_hears_the_end_of() {
    let (world, pod, interceptor) = warm().await;
    let heard = listening(pod);
    let _neighbour = neighbour(&world, &interceptor).await;
    for (case, text) in CHUNKS {
        let begin = "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_is_one_refusal(case, &answers(&interceptor, &format!("{begin}{text}")).await);
    }
    interceptor.in_flight("app", 0).await;
    for text in heard.lock().iter() {
        assert!(!text.contains("hidden") && !text.ends_with("0\r\n\r\n"), "{text:?}");
    }
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn a_length_or_a_host_that_connection_names_is_still_minded() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    let fields = "Connection: Content-Length, Host, Transfer-Encoding\r\nContent-Length: 5\r\n\r\nhello";
    client.send(&format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{fields}")).await;
    let (mut upstream, head) = pod.request().await;
    assert_eq!((head.all("host"), head.all("content-length")), (vec![HOST], vec!["5"]));
    assert_eq!(upstream.body(&head).await, "hello");
}

#[tokio::test]
async fn lines_that_end_with_a_line_feed_alone_are_sent_on_with_proper_ends() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send("GET /plain HTTP/1.1\nHost: app.test\nX: y\n\n").await;
    let (_upstream, head) = pod.request().await;
    assert_eq!((head.start.as_str(), head.get("x")), ("GET /plain HTTP/1.1", Some("y")));
}

// === pods ===

/// Answers of pods that are none.
const RESPONSES: [(&str, &str); 15] = [
    ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    ("a list of two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello"),
    ("a length with a sign", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"),
    ("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"),
    ("a length beyond all", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\nhello"),
    ("an unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello"),
    ("a coding behind chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("two codings", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello"),
    ("a space in a name", "HTTP/1.1 200 OK\r\nX Y: z\r\nContent-Length: 0\r\n\r\n"),
    ("NUL in a value", "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n"),
    ("a bare carriage return", "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n"),
    ("another version", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
    ("no status", "HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n"),
];

#[tokio::test]
async fn heads_of_pods_that_can_be_read_in_two_ways_are_bad_gateways() {
    let (world, pod, interceptor) = warm().await;
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut client = interceptor.client().await;
    for (case, text) in RESPONSES {
        client.get(HOST, "/").await;
        let (mut upstream, _) = pod.request().await;
        let _ = upstream.try_send(text.as_bytes()).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.body.as_str()), (502, "Bad Gateway\n"), "{case}");
        soon("the interceptor closes", upstream.closed()).await;
    }
    assert_neighbour_is_well(&interceptor).await;
}

#[tokio::test]
async fn a_folded_field_of_a_pod_is_one_line_for_the_client() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nX: a\r\n\t b\r\nContent-Length: 2\r\n\r\nok").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.head.get("x"), response.body.as_str()), (200, Some("a b"), "ok"));
}

#[tokio::test]
async fn chunks_of_pods_that_are_none_cut_the_response() {
    let (_world, pod, interceptor) = warm().await;
    for (case, text) in CHUNKS {
        let mut client = interceptor.client().await;
        client.get(HOST, "/").await;
        let (mut upstream, _) = pod.request().await;
        let _ =
            upstream.try_send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{text}").as_bytes()).await;
        upstream.finish().await;
        let said = client.rest().await;
        assert!(!said.ends_with("0\r\n\r\n"), "{case}: {said:?}");
        soon("the interceptor closes", upstream.closed()).await;
    }
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_pod_that_gives_length_and_chunks_is_read_by_chunks_and_not_asked_again_on_that_connection() {
    let world = World::with_app("app", HOST);
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let interceptor = Interceptor::start(&world).await;
    interceptor.endpoints("app", 1).await;
    let mut client = interceptor.client().await;
    for _ in 0..2 {
        client.get(HOST, "/").await;
        let (mut upstream, _) = pod.request().await;
        upstream
            .send("HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .await;
        let response = client.response().await;
        assert_eq!((response.body.as_str(), response.head.get("content-length")), ("ok", None));
        soon("the interceptor closes", upstream.closed()).await;
    }
}
