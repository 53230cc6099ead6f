//! What `/queue` says while requests come and go.

use integration::{Interceptor, World, eventually, interceptor::get};
use serde_json::json;

use crate::{HOST, cold, warm};

#[tokio::test]
async fn the_queue_is_written_as_the_original_writes_it() {
    let world = World::new();
    let interceptor = Interceptor::start(&world).await;
    let empty = get(interceptor.admin, "/queue").await;
    assert_eq!((empty.status(), empty.body.as_str()), (200, "{}\n"));
    assert_eq!(empty.head.get("content-type"), Some("application/json"));
    let (_world, interceptor) = cold(&[]).await;
    assert_eq!(get(interceptor.admin, "/queue").await.body, "{\"shop/app\":{\"Concurrency\":0,\"RequestCount\":0}}\n");
}

#[tokio::test]
async fn a_request_counts_until_the_last_byte_of_its_response() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    interceptor.in_flight("app", 1).await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
    let head = client.head().await;
    assert_eq!(client.exactly(5).await, "hello");
    assert_eq!(interceptor.queue("app").await.unwrap().concurrency, 1, "half of the body is out");
    upstream.send("world").await;
    assert_eq!(client.exactly(5).await, "world");
    assert_eq!(head.status(), 200);
    interceptor.in_flight("app", 0).await;
    assert_eq!(interceptor.queue("app").await.unwrap().count, 1);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_response_ends_the_count_and_the_upstream_request() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    interceptor.in_flight("app", 1).await;
    drop(client);
    interceptor.in_flight("app", 0).await;
    upstream.closed().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_response_ends_the_count() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    upstream.send_chunk("one").await;
    client.head().await;
    assert_eq!(client.chunk().await, "one");
    interceptor.in_flight("app", 1).await;
    client.reset();
    interceptor.in_flight("app", 0).await;
    upstream.closed().await;
}

#[tokio::test]
async fn answers_without_a_body_count_and_end_too() {
    let (_world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.send("HEAD / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let (mut upstream, _) = pod.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
    assert_eq!(client.head().await.get("content-length"), Some("1000"));
    client.get(HOST, "/").await;
    upstream.head().await;
    upstream.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 204);
    client.get(HOST, "/").await;
    upstream.head().await;
    upstream.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 304);
    interceptor.in_flight("app", 0).await;
    assert_eq!(interceptor.queue("app").await.unwrap().count, 3);
}

#[tokio::test]
async fn requests_without_a_route_are_not_counted() {
    let (_world, interceptor) = cold(&[]).await;
    interceptor.get("nobody.test", "/").await;
    let queue = interceptor.queue("app").await.unwrap();
    assert_eq!((queue.concurrency, queue.count), (0, 0));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_counted() {
    let (_world, pod, interceptor) = warm().await;
    let _pod = pod.answering("x");
    let mut client = interceptor.client().await;
    let request = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
    client.send(&request.repeat(10)).await;
    for _ in 0..10 {
        assert_eq!(client.response().await.body, "x");
    }
    interceptor.in_flight("app", 0).await;
    assert_eq!(interceptor.queue("app").await.unwrap().count, 10);
}

#[tokio::test]
async fn an_edit_of_a_route_keeps_its_counts_and_its_requests() {
    let (world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    interceptor.in_flight("app", 1).await;
    world.route("app", json!([{ "hosts": [HOST, "second.test"] }]));
    eventually("the edit is in force", async || {
        let mut probe = interceptor.client().await;
        probe.send("HEAD / HTTP/1.1\r\nHost: second.test\r\n\r\n").await;
        let queue = interceptor.queue("app").await?;
        drop(probe);
        (queue.count > 1).then_some(())
    })
    .await;
    interceptor.in_flight("app", 1).await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.response().await.body, "ok");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_route_deleted_and_made_again_begins_anew_while_its_old_requests_end_in_peace() {
    let (world, pod, interceptor) = warm().await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    let (mut upstream, _) = pod.request().await;
    interceptor.in_flight("app", 1).await;
    world.remove("InterceptorRoute", "app");
    eventually("the route is gone", async || interceptor.queue("app").await.is_none().then_some(())).await;
    world.app("app", HOST);
    eventually("the route is back", async || interceptor.queue("app").await).await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.response().await.body, "ok");
    interceptor.in_flight("app", 0).await;
    client.get(HOST, "/").await;
    upstream.head().await;
    interceptor.in_flight("app", 1).await;
}

#[tokio::test]
async fn ten_thousand_requests_of_all_kinds_leave_no_count_behind() {
    let (_world, pod, interceptor) = warm().await;
    let pod = pod.answering("x");
    let mut clients = Vec::new();
    for number in 0..40_usize {
        let mut client = interceptor.client().await;
        clients.push(runtime::task::spawn("client", async move {
            for round in 0..250 {
                if (number + round) % 3 == 0 {
                    client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\nbody").await;
                } else {
                    client.get(HOST, "/").await;
                }
                assert_eq!(client.response().await.status(), 200);
            }
            // The last one's answer is not waited for.
            client.get(HOST, "/").await;
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    interceptor.in_flight("app", 0).await;
    let count = interceptor.queue("app").await.unwrap().count;
    assert!((10_000..=10_040).contains(&count), "{count}");
    assert!(pod.requests() as u64 >= 10_000);
}
