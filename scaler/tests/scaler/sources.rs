//! Where counts come from: streams, `/queue`, and peers that misbehave.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use interceptor_core::{demand::Census, index::Event};
use runtime::{admin, task};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};

use crate::support::{Interceptor, Scaler, active, ir, listeners, route};

/// A server of HTTP/1.1 alone, as the original interceptor's admin port: answers every `GET /queue` with the same.
fn http1(listener: TcpListener, body: &'static str) -> JoinHandle<()> {
    task::spawn("http1", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => break,
                }
            }
            let answer = if request.starts_with(b"GET /queue HTTP/1.1\r\n") {
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            } else {
                "HTTP/1.1 505 HTTP Version Not Supported\r\nConnection: close\r\n\r\n".to_owned()
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
}

#[tokio::test]
async fn the_counts_of_all_interceptors_are_summed() {
    let (sockets, addresses, port) = listeners(2).await;
    let mut sockets = sockets.into_iter();
    let one = Interceptor::serve(sockets.next().unwrap(), "one", &[("a", 2, 100)]);
    let _two = Interceptor::serve(sockets.next().unwrap(), "two", &[("a", 3, 100)]);
    let scaler = Scaler::start(port).await;
    scaler.list(&addresses).await;
    scaler.in_flight(5).await;
    one.push(&[("a", 4, 102)]).await;
    scaler.in_flight(7).await;
    scaler.list(&addresses[1..]).await;
    scaler.in_flight(3).await;
}

#[tokio::test]
async fn an_interceptor_that_hangs_delays_nobody_and_keeps_its_count_while_it_is_listed() {
    let (sockets, addresses, port) = listeners(3).await;
    let mut sockets = sockets.into_iter();
    let one = Interceptor::serve(sockets.next().unwrap(), "one", &[("a", 2, 100)]);
    let two = Interceptor::serve(sockets.next().unwrap(), "two", &[("a", 3, 100)]);
    // The third takes connections, for the kernel does, and never says a word.
    let _third = sockets.next().unwrap();
    let mut scaler = Scaler::start(port).await;
    scaler.list(&addresses).await;
    scaler.synced().await;
    scaler.apply(vec![Event::Route(route("a", Some(1), None))]).await;
    scaler.in_flight(5).await;
    assert!(scaler.is_active(ir("a")).await.unwrap());
    one.push(&[("a", 0, 100)]).await;
    scaler.in_flight(3).await;
    scaler.census(3, 2, 1).await;
    // Now the second is gone without a word, but its pod is listed still.
    two.hang_up();
    one.push(&[("a", 1, 101)]).await;
    scaler.in_flight(4).await;
    scaler.list(&addresses[..1]).await;
    scaler.in_flight(1).await;
}

#[tokio::test]
async fn what_an_interceptor_still_takes_that_is_about_to_end_counts_until_it_has_ended() {
    let (sockets, addresses, port) = listeners(2).await;
    let mut sockets = sockets.into_iter();
    let one = Interceptor::serve(sockets.next().unwrap(), "one", &[("a", 1, 100)]);
    let two = Interceptor::serve(sockets.next().unwrap(), "two", &[("a", 0, 100)]);
    let mut scaler = Scaler::start(port).await;
    scaler.apply(vec![Event::Route(route("a", Some(1), None))]).await;
    scaler.list(&addresses).await;
    scaler.synced().await;
    scaler.in_flight(1).await;
    scaler.list_leaving(&addresses[1..], &addresses[..1]).await;
    one.push(&[("a", 2, 101)]).await;
    scaler.in_flight(2).await;
    assert!(scaler.is_active(ir("a")).await.unwrap(), "who takes the place of what it holds is needed");
    one.hang_up();
    one.push(&[("a", 3, 102)]).await;
    scaler.in_flight(3).await;
    // Its pod may be listed for as long as its node is away.
    one.end();
    scaler.in_flight(0).await;
    scaler.census(1, 1, 0).await;
    two.push(&[("a", 4, 104)]).await;
    scaler.in_flight(4).await;
}

#[tokio::test]
async fn nobody_waits_for_an_interceptor_that_is_about_to_end_when_it_is_seen_first() {
    let (sockets, addresses, port) = listeners(4).await;
    let mut sockets = sockets.into_iter();
    let _one = Interceptor::serve(sockets.next().unwrap(), "one", &[("a", 1, 100)]);
    let two = Interceptor::serve(sockets.next().unwrap(), "two", &[("a", 2, 100)]);
    // The third takes connections, for the kernel does, and never says a word; the fourth has ended long ago.
    let _third = sockets.next().unwrap();
    drop(sockets);
    let scaler = Scaler::start(port).await;
    scaler.list_leaving(&addresses[..1], &addresses[1..]).await;
    scaler.synced().await;
    scaler.in_flight(3).await;
    assert_eq!(scaler.board.standing().census, Census { listed: 2, reported: 2, silent: 0 });
    two.push(&[("a", 5, 103)]).await;
    scaler.in_flight(6).await;
    scaler.list(&addresses[..1]).await;
    scaler.in_flight(1).await;
}

#[tokio::test]
async fn a_new_interceptor_at_the_address_of_one_that_has_ended_is_heard() {
    let (mut sockets, addresses, port) = listeners(1).await;
    let socket = sockets.remove(0).into_std().unwrap();
    let again = TcpListener::from_std(socket.try_clone().unwrap()).unwrap();
    let one = Interceptor::serve(TcpListener::from_std(socket).unwrap(), "one", &[("a", 1, 100)]);
    let scaler = Scaler::start(port).await;
    scaler.list(&addresses).await;
    scaler.in_flight(1).await;
    scaler.list_leaving(&[], &addresses).await;
    one.end();
    let _other = Interceptor::serve(again, "other", &[("a", 2, 2)]);
    scaler.list(&addresses).await;
    scaler.in_flight(2).await;
    scaler.census(1, 1, 0).await;
}

#[tokio::test]
async fn an_interceptor_of_http1_alone_is_polled() {
    let (mut sockets, addresses, port) = listeners(1).await;
    let polled = http1(sockets.remove(0), "{\"ns/a\":{\"Concurrency\":3,\"RequestCount\":7}}\n");
    let mut scaler = Scaler::start(port).await;
    scaler.apply(vec![Event::Route(route("a", Some(1), None))]).await;
    scaler.list(&addresses).await;
    scaler.synced().await;
    scaler.in_flight(3).await;
    scaler.standing(|standing| standing.synced).await;
    assert!(active(&mut scaler.stream(ir("a")).await).await);
    polled.abort();
    scaler.census(1, 1, 1).await;
    scaler.in_flight(3).await;
}

#[tokio::test]
async fn an_interceptor_without_the_counts_service_is_polled_and_each_poll_counts() {
    let polls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&polls);
    let server = admin::Server::new().path("/queue", move |_| {
        let in_flight = counted.fetch_add(1, SeqCst) + 1;
        let body = format!("{{\"ns/a\":{{\"Concurrency\":{in_flight},\"RequestCount\":{in_flight}}}}}\n");
        Response::new(Full::new(Bytes::from(body)))
    });
    let bound = server.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.addr();
    drop(task::spawn("admin", bound.serve()));
    let scaler = Scaler::start(address.port()).await;
    scaler.list(&[address.ip()]).await;
    // More than fit before the stream is offered again.
    for wanted in [1, 2, 8] {
        scaler.in_flight(wanted).await;
    }
}

#[tokio::test]
async fn an_interceptor_that_is_upgraded_in_place_is_noticed() {
    let (mut sockets, addresses, port) = listeners(1).await;
    let socket = sockets.remove(0);
    let again = {
        let std = socket.into_std().unwrap();
        let clone = std.try_clone().unwrap();
        (TcpListener::from_std(std).unwrap(), TcpListener::from_std(clone).unwrap())
    };
    let polled = http1(again.0, "{\"ns/a\":{\"Concurrency\":3,\"RequestCount\":7}}\n");
    let scaler = Scaler::start(port).await;
    scaler.list(&addresses).await;
    scaler.in_flight(3).await;
    polled.abort();
    let upgraded = Interceptor::serve(again.1, "new", &[("a", 4, 8)]);
    scaler.in_flight(4).await;
    upgraded.push(&[("a", 5, 9)]).await;
    scaler.in_flight(5).await;
}

#[tokio::test]
async fn the_first_request_of_an_interceptor_that_began_after_the_scaler_counts_and_history_does_not() {
    let (sockets, addresses, port) = listeners(2).await;
    let mut sockets = sockets.into_iter();
    let _old = Interceptor::serve(sockets.next().unwrap(), "old", &[("a", 0, 1000), ("here", 1, 1)]).aged();
    let mut scaler = Scaler::start(port).await;
    scaler.apply(vec![Event::Route(route("a", None, Some(1)))]).await;
    scaler.list(&addresses[..1]).await;
    scaler.synced().await;
    scaler.in_flight(1).await;
    assert!(!scaler.is_active(ir("a")).await.unwrap());
    let _new = Interceptor::serve(sockets.next().unwrap(), "new", &[("a", 0, 1), ("here", 1, 1)]);
    scaler.list(&addresses).await;
    scaler.in_flight(2).await;
    assert!(scaler.is_active(ir("a")).await.unwrap());
    let rate = scaler.metrics(ir("a"), "").await.unwrap()[0].metric_value_float;
    assert!(rate <= 1.0, "one request is a rate of {rate}");
}

#[tokio::test]
async fn a_stream_that_breaks_is_opened_again() {
    let (scaler, interceptor) = Scaler::with(Vec::new(), &[("a", 1, 1)]).await;
    scaler.in_flight(1).await;
    interceptor.hang_up();
    scaler.census(1, 1, 1).await;
    scaler.in_flight(1).await;
    scaler.census(1, 1, 0).await;
    interceptor.push(&[("a", 2, 2)]).await;
    scaler.in_flight(2).await;
}

#[tokio::test]
async fn nonsense_instead_of_counts_counts_as_silence() {
    for body in ["", "[]", "not json", "{\"ns/a\":{\"Concurrency\":\"many\"}}"] {
        let (mut sockets, addresses, port) = listeners(1).await;
        let _server = http1(sockets.remove(0), body);
        let scaler = Scaler::start(port).await;
        scaler.list(&addresses).await;
        scaler.census(1, 0, 1).await;
    }
}
