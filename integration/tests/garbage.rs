//! Foreign bytes at every seam: whatever is sent, nobody else notices.

use std::{net::SocketAddr, sync::Arc};

use integration::{Interceptor, Peer, World};
use parking_lot::Mutex;
use proptest::{
    strategy::{Strategy, ValueTree as _},
    test_runner::TestRunner,
};

use crate::{assert_neighbour_is_well, neighbour, warm};

/// Sends bytes on a connection of its own and waits for its end.
async fn garbage(addr: SocketAddr, bytes: &[u8]) {
    let mut client = Peer::connect(addr).await;
    let _ = client.try_send(bytes).await;
    client.finish().await;
    client.closed().await;
}

/// Strategy for a few of what `random` gives and of `known` pieces, one after the other.
fn mixture(known: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    let random = proptest::collection::vec(proptest::num::u8::ANY, 0..64);
    let known = proptest::sample::select(known.iter().map(|piece| piece.to_vec()).collect::<Vec<_>>());
    proptest::collection::vec(proptest::prop_oneof![random, known], 1..12).prop_map(|pieces| pieces.concat())
}

/// Strategy for HTTP/2 frames of any type with any flags, streams and contents, after a proper beginning.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let payload = proptest::collection::vec(proptest::num::u8::ANY, 0..48);
    let frame = (0_u8..12, proptest::num::u8::ANY, 0_u8..6, payload).prop_map(|(kind, flags, stream, payload)| {
        let length = u8::try_from(payload.len()).expect("a payload is short");
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], &*payload].concat()
    });
    let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    proptest::collection::vec(frame, 0..16).prop_map(|frames| [&begin[..], &*frames.concat()].concat())
}

/// What is said of all ports: whatever is sent, nobody else notices.
async fn harms_nobody(bytes: impl Strategy<Value = Vec<u8>>, port: impl Fn(&Interceptor) -> SocketAddr) {
    let world = World::new();
    let mut interceptor = Interceptor::start(&world).await;
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut bystander = interceptor.client().await;
    let mut runner = TestRunner::default();
    for _ in 0..300 {
        let bytes = bytes.new_tree(&mut runner).unwrap().current();
        garbage(port(&interceptor), &bytes).await;
        bystander.get("neighbour.test", "/").await;
        assert_eq!(bystander.response().await.body, "well", "after {:?}", String::from_utf8_lossy(&bytes));
    }
    assert_eq!(interceptor.ready().await.status(), 200);
    assert!(interceptor.runs());
    assert!(!interceptor.log().contains("panicked"), "{}", interceptor.log());
}

#[tokio::test]
async fn random_bytes_on_the_proxy_port_harm_no_other_connection() {
    harms_nobody(mixture(&REQUESTS), |interceptor| interceptor.proxy).await;
}

#[tokio::test]
async fn random_frames_on_the_proxy_port_harm_no_other_connection() {
    harms_nobody(frames(), |interceptor| interceptor.proxy).await;
}

#[tokio::test]
async fn random_bytes_and_frames_on_the_admin_port_harm_nobody() {
    harms_nobody(proptest::prop_oneof![mixture(&REQUESTS), frames()], |interceptor| interceptor.admin).await;
}

/// What random bytes alone would rarely hit.
const REQUESTS: [&[u8]; 16] = [
    b"GET / HTTP/1.1\r\n",
    b"POST /\xff HTTP/1.1\r\n",
    b"GET http://[::1 HTTP/1.1\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"Host: neighbour.test\r\n",
    b"Host: [::1]:99999\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n",
    b"ffffffffffffffffff\r\n",
    b"0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
];

#[tokio::test]
async fn random_bytes_from_a_pod_harm_no_other_route() {
    let (world, pod, mut interceptor) = warm().await;
    let _neighbour = neighbour(&world, &interceptor).await;
    let mut runner = TestRunner::default();
    let answers = mixture(&ANSWERS);
    let answer = Arc::new(Mutex::new(Vec::new()));
    runtime::task::spawn("pod", {
        let answer = Arc::clone(&answer);
        async move {
            loop {
                let bytes = answer.lock().clone();
                let mut upstream = pod.accept().await;
                let _ = upstream.try_send(&bytes).await;
            }
        }
    });
    for _ in 0..300 {
        *answer.lock() = answers.new_tree(&mut runner).unwrap().current();
        let mut client = interceptor.client().await;
        client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx").await;
        client.closed().await;
        assert_neighbour_is_well(&interceptor).await;
    }
    interceptor.in_flight("app", 0).await;
    assert!(interceptor.runs());
    assert!(!interceptor.log().contains("panicked"), "{}", interceptor.log());
}

/// What random bytes alone would rarely hit.
const ANSWERS: [&[u8]; 12] = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 103 Early Hints\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.0 999 \xff\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n",
    b"Trailer: x\r\n",
    b"\r\n",
    b"3\r\nabc\r\n",
    b"0\r\nX: y\r\n\r\n",
];
