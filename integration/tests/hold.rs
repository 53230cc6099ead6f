//! Requests for a workload that is not there yet.

use integration::{Interceptor, Pod, World, eventually, soon};
use serde_json::json;

use crate::{HOST, cold};

#[tokio::test]
async fn a_held_request_is_released_when_an_endpoint_appears() {
    let (world, interceptor) = cold(&[]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/first").await;
    interceptor.held("app", 1).await;
    interceptor.in_flight("app", 1).await;
    assert_eq!(interceptor.route_state("app").await.unwrap()["state"], "holding");
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.target(), "/first");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.body.as_str()), (200, "hello"));
    assert_eq!(response.cold_start(), Some("true"));
    interceptor.in_flight("app", 0).await;
    client.get(HOST, "/second").await;
    assert_eq!(upstream.head().await.target(), "/second");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.cold_start(), Some("false"));
}

#[tokio::test]
async fn a_cold_start_is_told_with_its_times() {
    let (world, interceptor) = cold(&[]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    let pod = Pod::start().await.answering("x");
    world.endpoints("app", &[pod.addr]);
    assert_eq!(client.response().await.status(), 200);
    let starts = eventually("the cold start is in /state", async || {
        let starts = interceptor.state().await["coldStarts"].as_array().unwrap().clone();
        (!starts.is_empty()).then_some(starts)
    })
    .await;
    let [start] = starts.as_slice() else { panic!("one cold start, not {starts:?}") };
    let time = |name: &str| start[name].as_u64().unwrap_or_else(|| panic!("{name} in {start}"));
    let times = [time("arrived"), time("endpointSeen"), time("connected"), time("firstByte")];
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!((start["name"].as_str(), start["status"].as_u64()), (Some("app"), Some(200)));
}

#[tokio::test]
async fn a_client_that_leaves_while_held_is_not_counted_any_more() {
    let (_world, interceptor) = cold(&[]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    drop(client);
    interceptor.in_flight("app", 0).await;
    interceptor.held("app", 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_with_an_unread_body_is_not_counted_any_more() {
    let (_world, interceptor) = cold(&[]).await;
    let mut small = interceptor.client().await;
    small.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nhello").await;
    let mut large = interceptor.client().await;
    large.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 100000\r\n\r\n").await;
    large.send(&"x".repeat(50_000)).await;
    interceptor.held("app", 2).await;
    drop(small);
    interceptor.in_flight("app", 1).await;
    large.reset();
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_held_body_is_delivered_whole_once_the_pod_is_there() {
    let (world, interceptor) = cold(&[]).await;
    let mut client = interceptor.client().await;
    client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nhello").await;
    interceptor.held("app", 1).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let (mut upstream, head) = pod.request().await;
    assert_eq!(upstream.body(&head).await, "hello");
    upstream.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 201);
}

#[tokio::test]
async fn a_route_s_readiness_deadline_is_kept_without_cold_start_header() {
    let world = World::new();
    let timeouts = json!({ "timeouts": { "readiness": "100ms" } });
    world.route_with("app", json!([{ "hosts": [HOST] }]), timeouts);
    world.service("app");
    let interceptor = Interceptor::start_with(&world, &[("KEDA_HTTP_READINESS_TIMEOUT", "1h")]).await;
    let response = interceptor.get(HOST, "/").await;
    assert_eq!((response.status(), response.body.as_str()), (504, "Gateway Timeout\n"));
    assert_eq!(response.head.get("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(response.head.get("x-content-type-options"), Some("nosniff"));
    assert_eq!(response.cold_start(), None);
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn the_environment_s_deadlines_hold_for_routes_without_their_own() {
    for variable in ["KEDA_HTTP_READINESS_TIMEOUT", "KEDA_CONDITION_WAIT_TIMEOUT", "KEDA_HTTP_REQUEST_TIMEOUT"] {
        let (_world, interceptor) = cold(&[(variable, "100ms")]).await;
        let response = interceptor.get(HOST, "/").await;
        assert_eq!((response.status(), response.cold_start()), (504, None), "{variable}");
    }
}

#[tokio::test]
async fn a_zero_of_the_route_lifts_the_environment_s_deadline() {
    let world = World::new();
    let timeouts = json!({ "timeouts": { "readiness": "0s" } });
    world.route_with("patient", json!([{ "hosts": ["patient.test"] }]), timeouts);
    world.service("patient");
    world.app("app", HOST);
    let interceptor = Interceptor::start_with(&world, &[("KEDA_HTTP_READINESS_TIMEOUT", "50ms")]).await;
    let mut patient = interceptor.client().await;
    patient.get("patient.test", "/").await;
    interceptor.held("patient", 1).await;
    assert_eq!(interceptor.get(HOST, "/").await.status(), 504);
    assert_eq!(interceptor.route_state("patient").await.unwrap()["held"], 1);
}

#[tokio::test]
async fn only_the_waiters_of_the_service_that_woke_are_released() {
    let (world, interceptor) = cold(&[]).await;
    world.app("other", "other.test");
    eventually("the other route is there", async || interceptor.queue("other").await).await;
    let mut waits = interceptor.client().await;
    waits.get(HOST, "/").await;
    let mut goes = interceptor.client().await;
    goes.get("other.test", "/").await;
    interceptor.held("app", 1).await;
    interceptor.held("other", 1).await;
    let pod = Pod::start().await.answering("other");
    world.endpoints("other", &[pod.addr]);
    assert_eq!(goes.response().await.body, "other");
    assert_eq!(interceptor.route_state("app").await.unwrap()["held"], 1);
    assert_eq!(waits.arrived(), "");
}

#[tokio::test]
async fn a_thousand_held_requests_are_all_answered() {
    let (world, interceptor) = cold(&[]).await;
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let mut client = interceptor.client().await;
        client.get(HOST, "/").await;
        clients.push(client);
    }
    interceptor.held("app", 1000).await;
    let pod = Pod::start().await.answering("awake");
    world.endpoints("app", &[pod.addr]);
    for mut client in clients {
        let response = client.response().await;
        assert_eq!((response.status(), response.cold_start()), (200, Some("true")));
    }
    interceptor.in_flight("app", 0).await;
    assert_eq!(interceptor.queue("app").await.unwrap().count, 1000);
}

#[tokio::test]
async fn a_full_queue_answers_503_and_lets_others_in() {
    let (world, interceptor) = cold(&[("KEDA_HTTP_COLD_START_MAX_PENDING_REQUESTS", "2")]).await;
    let _pod = crate::neighbour(&world, &interceptor).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = interceptor.client().await;
        client.get(HOST, "/").await;
        held.push(client);
    }
    interceptor.held("app", 2).await;
    let refused = interceptor.get(HOST, "/").await;
    assert_eq!((refused.status(), refused.cold_start()), (503, None));
    crate::assert_neighbour_is_well(&interceptor).await;
    drop(held);
    interceptor.held("app", 0).await;
    let mut again = interceptor.client().await;
    again.get(HOST, "/").await;
    interceptor.held("app", 1).await;
}

#[tokio::test]
async fn a_pod_that_is_listed_but_does_not_accept_is_retried_without_a_storm_until_it_does() {
    let (world, interceptor) = cold(&[]).await;
    let addr = Pod::absent().await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = interceptor.client().await;
        client.get(HOST, "/").await;
        clients.push(client);
    }
    interceptor.held("app", 50).await;
    world.endpoints("app", &[addr]);
    interceptor.endpoints("app", 1).await;
    let failures = eventually("the pod has been tried several times", async || {
        let failures = connect_failures(&interceptor).await;
        (failures >= 5.0).then_some(failures)
    })
    .await;
    // Fifty requests wait on two workers: were each to try by itself, the first round would be fifty.
    assert!(failures < 25.0, "{failures} attempts");
    let pod = Pod::start_at(addr).await.answering("at last");
    for mut client in clients {
        let response = client.response().await;
        assert_eq!((response.status(), response.body.as_str()), (200, "at last"));
        assert_eq!(response.cold_start(), Some("true"));
    }
    assert!(pod.connections() <= 50);
}

async fn connect_failures(interceptor: &Interceptor) -> f64 {
    let metrics = interceptor.metrics().await;
    let line = metrics.lines().find(|line| line.contains("connect_fail") && !line.starts_with('#'));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_workload_that_goes_back_to_zero_is_cold_again() {
    let (world, interceptor) = cold(&[]).await;
    let pod = Pod::start().await.answering("x");
    for _ in 0..3 {
        let mut client = interceptor.client().await;
        client.get(HOST, "/").await;
        interceptor.held("app", 1).await;
        world.endpoints("app", &[pod.addr]);
        assert_eq!(client.response().await.cold_start(), Some("true"));
        assert_eq!(interceptor.get(HOST, "/").await.cold_start(), Some("false"));
        world.endpoints("app", &[]);
        interceptor.endpoints("app", 0).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_ready_is_none() {
    let (world, interceptor) = cold(&[]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    let pod = Pod::start().await.answering("x");
    let slice = |ready: bool| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "app-x", "namespace": "shop", "labels": { "kubernetes.io/service-name": "app" } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["127.0.0.1"], "conditions": { "ready": ready } }],
            "ports": [{ "name": "http", "port": pod.addr.port() }],
        })
    };
    world.object(&slice(false));
    world.app("marker", "marker.test");
    eventually("what was written after the slice is known", async || interceptor.queue("marker").await).await;
    assert_eq!(interceptor.route_state("app").await.unwrap()["held"], 1);
    world.object(&slice(true));
    assert_eq!(soon("the release", client.response()).await.body, "x");
}

#[tokio::test]
async fn a_route_that_is_pointed_elsewhere_while_it_holds_is_released_there() {
    let (world, interceptor) = cold(&[]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    world.service("elsewhere");
    let pod = Pod::start().await.answering("elsewhere");
    world.endpoints("elsewhere", &[pod.addr]);
    // A route to a Service that is not known yet is an error, and files may be read in any order.
    world.app("marker", "marker.test");
    eventually("what was written before is known", async || interceptor.queue("marker").await).await;
    let target = json!({ "target": { "service": "elsewhere", "port": 80 } });
    world.route_with("app", json!([{ "hosts": [HOST] }]), target);
    // Requests that come now go there; the one that is held was promised to its Service, which still may come.
    eventually("new requests go elsewhere", async || {
        let mut client = interceptor.client().await;
        client.get(HOST, "/").await;
        let first = tokio::time::timeout(std::time::Duration::from_millis(50), client.try_head()).await;
        first.ok().flatten().map(|head| assert_eq!(head.status(), 200))
    })
    .await;
    let old = Pod::start().await.answering("old");
    world.endpoints("app", &[old.addr]);
    let body = client.response().await.body;
    assert!(body == "old" || body == "elsewhere", "{body}");
}

#[tokio::test]
async fn two_routes_to_one_service_are_released_together() {
    let (world, interceptor) = cold(&[]).await;
    world.route_with(
        "twin",
        json!([{ "hosts": ["twin.test"] }]),
        json!({ "target": { "service": "app", "port": 80 } }),
    );
    eventually("the twin is there", async || interceptor.queue("twin").await).await;
    let mut one = interceptor.client().await;
    one.get(HOST, "/").await;
    let mut two = interceptor.client().await;
    two.get("twin.test", "/").await;
    interceptor.held("app", 1).await;
    interceptor.held("twin", 1).await;
    let pod = Pod::start().await.answering("both");
    world.endpoints("app", &[pod.addr]);
    assert_eq!((one.response().await.body, two.response().await.body), ("both".to_owned(), "both".to_owned()));
}

#[tokio::test]
async fn a_full_process_wide_queue_answers_503_whatever_the_route() {
    let (world, interceptor) = cold(&[("ROUSE_MAX_HELD", "3")]).await;
    world.app("second", "second.test");
    eventually("the second route is there", async || interceptor.queue("second").await).await;
    let mut held = Vec::new();
    for host in [HOST, HOST, "second.test"] {
        let mut client = interceptor.client().await;
        client.get(host, "/").await;
        held.push(client);
    }
    interceptor.held("app", 2).await;
    interceptor.held("second", 1).await;
    assert_eq!(interceptor.get("second.test", "/").await.status(), 503);
    assert_eq!(interceptor.get(HOST, "/").await.status(), 503);
    drop(held.pop());
    interceptor.held("second", 0).await;
    let mut again = interceptor.client().await;
    again.get(HOST, "/").await;
    interceptor.held("app", 3).await;
}

#[tokio::test]
async fn a_request_that_follows_a_held_one_on_its_connection_waits_its_turn() {
    let (world, interceptor) = cold(&[]).await;
    let _neighbour = crate::neighbour(&world, &interceptor).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    client.get("neighbour.test", "/").await;
    interceptor.held("app", 1).await;
    let pod = Pod::start().await.answering("first");
    world.endpoints("app", &[pod.addr]);
    assert_eq!(client.response().await.body, "first");
    assert_eq!(client.response().await.body, "well");
}

#[tokio::test]
async fn held_streams_of_one_http_2_connection_do_not_block_each_other() {
    let (world, interceptor) = cold(&[]).await;
    let _neighbour = crate::neighbour(&world, &interceptor).await;
    let client = integration::h2::Client::connect(interceptor.proxy).await;
    let request = |host: &str| http::Request::get(format!("http://{host}/")).body(()).unwrap();
    let (held, _) = client.start(request(HOST), true).await;
    interceptor.held("app", 1).await;
    let (response, _) = client.send(request("neighbour.test")).await.unwrap();
    assert_eq!(response.body(), "well");
    let pod = Pod::start().await.answering("late");
    world.endpoints("app", &[pod.addr]);
    let response = soon("the held one", held).await.unwrap();
    assert_eq!(response.headers()["x-keda-http-cold-start"], "true");
}

#[tokio::test]
async fn an_endpoint_that_leaves_before_it_accepts_makes_the_route_hold_again() {
    let (world, interceptor) = cold(&[]).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    interceptor.held("app", 1).await;
    world.endpoints("app", &[Pod::absent().await]);
    interceptor.endpoints("app", 1).await;
    world.endpoints("app", &[]);
    interceptor.endpoints("app", 0).await;
    assert_eq!(interceptor.queue("app").await.unwrap().concurrency, 1);
    let pod = Pod::start().await.answering("second try");
    world.endpoints("app", &[pod.addr]);
    assert_eq!(client.response().await.body, "second try");
}
