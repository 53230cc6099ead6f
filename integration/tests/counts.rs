//! What `/queue` says while requests come and go.

use integration::{Interceptor, World, interceptor::get};

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
