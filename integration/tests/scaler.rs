//! From a client's request to what KEDA is told, through the real interceptor and the real scaler.

use integration::{Pod, Scaler, eventually, soon};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::{HOST, cold};

#[tokio::test]
async fn a_held_request_makes_the_route_active_until_it_is_answered() {
    let (world, interceptor) = cold(&[]).await;
    let mut scaler = Scaler::start(&world, &interceptor).await;
    scaler.active_is("app", false).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    scaler.active_is("app", true).await;
    assert_eq!(scaler.concurrency("app").await, Some(1.0));
    let pod = Pod::start().await.answering("awake");
    world.endpoints("app", &[pod.addr]);
    assert_eq!(client.response().await.body, "awake");
    scaler.active_is("app", false).await;
}

#[tokio::test]
async fn a_client_that_gives_up_leaves_nothing_active() {
    let (world, interceptor) = cold(&[]).await;
    let mut scaler = Scaler::start(&world, &interceptor).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    scaler.active_is("app", true).await;
    drop(client);
    scaler.active_is("app", false).await;
}

#[tokio::test]
async fn the_first_request_that_a_draining_interceptor_takes_makes_the_route_active() {
    let (world, interceptor) = cold(&[("KEDA_HTTP_SHUTDOWN_DELAY", "1h")]).await;
    let mut scaler = Scaler::start(&world, &interceptor).await;
    scaler.active_is("app", false).await;
    interceptor.signal(Signal::SIGTERM);
    eventually("not ready", async || (interceptor.ready().await.status() == 503).then_some(())).await;
    world.last_interceptor_leaves(interceptor.admin);
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    scaler.active_is("app", true).await;
    let pod = Pod::start().await.answering("awake");
    world.endpoints("app", &[pod.addr]);
    assert_eq!(client.response().await.body, "awake");
    scaler.active_is("app", false).await;
}

#[tokio::test]
async fn what_an_interceptor_holds_whose_listeners_are_closed_keeps_the_route_active_also_for_a_scaler_that_starts() {
    let (world, mut interceptor) = cold(&[]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    interceptor.signal(Signal::SIGTERM);
    eventually("the proxy port is closed", async || {
        tokio::net::TcpStream::connect(interceptor.proxy).await.is_err().then_some(())
    })
    .await;
    let mut scaler = Scaler::start(&world, &interceptor).await;
    world.last_interceptor_leaves(interceptor.admin);
    scaler.active_is("app", true).await;
    let pod = Pod::start().await.answering("in time");
    world.endpoints("app", &[pod.addr]);
    assert_eq!(client.response().await.body, "in time");
    assert_eq!(interceptor.ended().await.code(), Some(0));
}

#[tokio::test]
async fn concurrency_is_told_as_it_rises_and_falls() {
    let (world, interceptor) = cold(&[]).await;
    let mut scaler = Scaler::start(&world, &interceptor).await;
    let mut clients = Vec::new();
    for expected in [1_u32, 5, 20] {
        while clients.len() < expected as usize {
            let mut client = interceptor.client().await;
            client.get(HOST, "/").await;
            clients.push(client);
        }
        concurrency_becomes(&mut scaler, f64::from(expected)).await;
    }
    clients.truncate(3);
    concurrency_becomes(&mut scaler, 3.0).await;
}

async fn concurrency_becomes(scaler: &mut Scaler, expected: f64) {
    eventually(&format!("a concurrency of {expected}"), async || {
        (scaler.concurrency("app").await == Some(expected)).then_some(())
    })
    .await;
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "a measure, which nothing asserts on a machine that does other things too")]
async fn a_stream_is_pushed_to_when_the_first_request_comes() {
    let (world, interceptor) = cold(&[]).await;
    let mut scaler = Scaler::start(&world, &interceptor).await;
    let mut stream = scaler.stream("app").await;
    let mut delays = Vec::new();
    for _ in 0..20 {
        scaler.active_is("app", false).await;
        drained(&mut stream).await;
        let mut client = interceptor.client().await;
        let sent = Instant::now();
        client.get(HOST, "/").await;
        while !soon("a push", stream.message()).await.unwrap().unwrap().result {}
        delays.push(sent.elapsed());
        drop(client);
        interceptor.in_flight("app", 0).await;
    }
    delays.sort();
    println!(
        "from the first request to the push: median {:?}, worst {:?}",
        delays[delays.len() / 2],
        delays.last().unwrap()
    );
}

/// Reads until the stream says that the route is idle.
async fn drained(stream: &mut tonic::Streaming<proto::externalscaler::IsActiveResponse>) {
    while soon("the route's present state", stream.message()).await.unwrap().unwrap().result {}
}

#[tokio::test]
async fn an_interceptor_that_dies_is_believed_until_it_is_withdrawn() {
    let (world, interceptor) = cold(&[]).await;
    let mut scaler = Scaler::start(&world, &interceptor).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    scaler.active_is("app", true).await;
    drop(interceptor);
    client.closed().await;
    assert_eq!(scaler.is_active("app").await, Some(true), "still listed: its last word stands");
    world.interceptors(&[]);
    // No answer, rather than a zero that nobody counted and that would scale a busy workload down.
    eventually("IsActive is an error", async || scaler.is_active("app").await.is_none().then_some(())).await;
}

#[tokio::test]
async fn a_scaler_that_starts_late_learns_what_is_held_already() {
    let (world, interceptor) = cold(&[]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    let mut scaler = Scaler::start(&world, &interceptor).await;
    scaler.active_is("app", true).await;
    let mut second = Scaler::start(&world, &interceptor).await;
    second.active_is("app", true).await;
}

#[tokio::test]
async fn a_route_that_is_added_while_all_run_is_served_and_scaled() {
    let (world, interceptor) = cold(&[]).await;
    let mut scaler = Scaler::start(&world, &interceptor).await;
    world.app("late", "late.test");
    eventually("the route is known", async || interceptor.queue("late").await).await;
    let mut client = interceptor.client().await;
    client.get("late.test", "/").await;
    scaler.active_is("late", true).await;
    scaler.active_is("app", false).await;
}
