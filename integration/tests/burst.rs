//! Many requests for a workload that is not there yet: how many are held, and how they are let go.

use std::{collections::VecDeque, net::SocketAddr};

use integration::{Interceptor, Peer, Pod, World, eventually, soon};
use runtime::task;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::HOST;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// A pod that answers when the test says so, in the order of the requests' coming.
struct Slow {
    addr: SocketAddr,
    requests: mpsc::Receiver<(String, oneshot::Sender<()>)>,
    unanswered: VecDeque<oneshot::Sender<()>>,
}

impl Slow {
    async fn start() -> Self {
        let pod = Pod::start().await;
        let (addr, (tell, requests)) = (pod.addr, mpsc::channel(64));
        task::spawn("slow pod", async move {
            while let Some(mut peer) = pod.try_accept().await {
                let tell = tell.clone();
                task::spawn("slow pod's connection", async move {
                    while let Some(head) = peer.try_head().await {
                        let (answer, answered) = oneshot::channel();
                        if tell.send((head.target().to_owned(), answer)).await.is_err() || answered.await.is_err() {
                            return;
                        }
                        peer.send(OK).await;
                    }
                });
            }
        });
        Self { addr, requests, unanswered: VecDeque::new() }
    }

    /// The targets of the next requests, sorted: they come on different connections.
    async fn targets(&mut self, count: usize) -> Vec<String> {
        let mut targets = Vec::new();
        for _ in 0..count {
            let (target, answer) = soon("a request", self.requests.recv()).await.unwrap();
            targets.push(target);
            self.unanswered.push_back(answer);
        }
        targets.sort();
        targets
    }

    /// Answers the oldest.
    fn answer(&mut self) {
        self.unanswered.pop_front().unwrap().send(()).unwrap();
    }
}

async fn cold_with(cold_start: Value) -> (World, Interceptor) {
    let world = World::new();
    world.route_with("app", json!([{ "hosts": [HOST] }]), json!({ "coldStart": cold_start }));
    world.service("app");
    let interceptor = Interceptor::start(&world).await;
    (world, interceptor)
}

/// Clients whose requests are held, in the order of their coming.
async fn held(interceptor: &Interceptor, count: u64) -> Vec<Peer> {
    let mut clients = Vec::new();
    for number in 1..=count {
        let mut client = interceptor.client().await;
        client.get(HOST, &format!("/{number}")).await;
        interceptor.held("app", number).await;
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn a_route_s_own_limit_of_held_requests_is_kept_and_told() {
    let (world, interceptor) = cold_with(json!({ "maxPendingRequests": 2 })).await;
    let mut clients = held(&interceptor, 2).await;
    let refused = interceptor.get(HOST, "/").await;
    assert_eq!((refused.status(), refused.body.as_str()), (503, "too many pending requests\n"));
    assert_eq!(refused.cold_start(), None);
    let line = "interceptor_cold_start_rejections_total{route_name=\"app\",route_namespace=\"shop\"} 1";
    let metrics = interceptor.metrics().await;
    assert!(metrics.lines().any(|have| have == line), "{metrics}");
    let pod = Pod::start().await.answering("x");
    world.endpoints("app", &[pod.addr]);
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn a_limit_of_held_requests_does_not_concern_those_that_need_not_be_held() {
    let (world, interceptor) = cold_with(json!({ "maxPendingRequests": 1 })).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    interceptor.endpoints("app", 1).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = interceptor.client().await;
        client.get(HOST, "/").await;
        clients.push(client);
    }
    for _ in 0..8 {
        let (mut upstream, _) = pod.request().await;
        upstream.send(OK).await;
    }
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn requests_beyond_the_limit_get_the_placeholder_if_the_route_says_so() {
    let (world, interceptor) = cold_with(json!({
        "maxPendingRequests": 1, "overflow": "Placeholder",
        "placeholder": { "response": { "statusCode": 202, "body": "soon" } },
    }))
    .await;
    let mut clients = held(&interceptor, 1).await;
    let overflow = interceptor.get(HOST, "/").await;
    assert_eq!((overflow.status(), overflow.body.as_str(), overflow.cold_start()), (202, "soon", None));
    let metrics = interceptor.metrics().await;
    assert!(!metrics.contains("cold_start_rejections_total{"), "nothing was refused: {metrics}");
    let pod = Pod::start().await.answering("x");
    world.endpoints("app", &[pod.addr]);
    let first = clients[0].response().await;
    assert_eq!((first.status(), first.cold_start()), (200, Some("true")));
}

#[tokio::test]
async fn a_placeholder_without_an_explicit_limit_is_given_at_once() {
    let world = World::new();
    let cold_start = json!({ "overflow": "Placeholder", "placeholder": { "response": { "body": "soon" } } });
    world.route_with("app", json!([{ "hosts": [HOST] }]), json!({ "coldStart": cold_start }));
    world.service("app");
    let interceptor = Interceptor::start_with(&world, &[("KEDA_HTTP_COLD_START_MAX_PENDING_REQUESTS", "5")]).await;
    let response = interceptor.get(HOST, "/").await;
    assert_eq!((response.status(), response.body.as_str()), (503, "soon"));
}

#[tokio::test]
async fn a_pod_gets_no_more_held_requests_than_it_may_and_the_rest_go_in_order_as_pods_come_and_have_room() {
    let (world, interceptor) = cold_with(json!({ "maxRequestsPerPod": 2 })).await;
    let mut clients = held(&interceptor, 6).await;
    let mut first = Slow::start().await;
    world.endpoints("app", &[first.addr]);
    assert_eq!(first.targets(2).await, ["/1", "/2"], "who came first goes first");
    interceptor.held("app", 4).await;

    let mut second = Slow::start().await;
    world.endpoints("app", &[first.addr, second.addr]);
    assert_eq!(second.targets(2).await, ["/3", "/4"]);
    interceptor.held("app", 2).await;

    // A request that comes now does not overtake those that wait.
    let mut late = interceptor.client().await;
    late.get(HOST, "/7").await;
    interceptor.held("app", 3).await;
    for next in ["/5", "/6", "/7"] {
        first.answer();
        assert_eq!(first.targets(1).await, [next], "one that has ended makes room for the next");
    }
    interceptor.held("app", 0).await;
    for _ in 0..2 {
        first.answer();
        second.answer();
    }
    for client in &mut clients {
        let response = client.response().await;
        assert_eq!((response.status(), response.cold_start()), (200, Some("true")));
    }
    assert_eq!(late.response().await.cold_start(), Some("false"), "there was a pod when it came");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn without_a_limit_all_held_requests_go_at_once() {
    let (world, interceptor) = cold_with(json!({ "maxRequestsPerPod": 0 })).await;
    let mut clients = held(&interceptor, 12).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let mut upstreams = Vec::new();
    for _ in 0..12 {
        upstreams.push(pod.request().await);
    }
    for (upstream, _) in &mut upstreams {
        upstream.send(OK).await;
    }
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn a_client_that_leaves_makes_room_whether_it_was_held_or_served() {
    let (world, interceptor) = cold_with(json!({ "maxRequestsPerPod": 1 })).await;
    let mut clients = held(&interceptor, 3).await;
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let (_served, head) = pod.request().await;
    assert_eq!(head.target(), "/1");
    drop(clients.remove(1));
    interceptor.held("app", 1).await;
    drop(clients.remove(0));
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.target(), "/3");
    upstream.send(OK).await;
    assert_eq!(clients.remove(0).response().await.status(), 200);
}

#[tokio::test]
async fn requests_that_are_held_back_go_elsewhere_when_their_pod_goes() {
    let (world, interceptor) = cold_with(json!({ "maxRequestsPerPod": 1 })).await;
    let mut clients = held(&interceptor, 3).await;
    let first = Pod::start().await;
    world.endpoints("app", &[first.addr]);
    let (mut served, _) = first.request().await;
    let second = Pod::start().await.answering("second");
    world.endpoints("app", &[second.addr]);
    for client in &mut clients[1..] {
        assert_eq!(client.response().await.body, "second");
    }
    served.send(OK).await;
    assert_eq!(clients[0].response().await.status(), 200);
}

#[tokio::test]
async fn held_requests_pass_by_a_pod_that_refuses() {
    let (world, interceptor) = cold_with(json!({ "maxRequestsPerPod": 1 })).await;
    let mut clients = held(&interceptor, 20).await;
    let refuses = Pod::absent().await;
    let pod = Pod::start().await.answering("well");
    world.endpoints("app", &[refuses, pod.addr]);
    for client in &mut clients {
        assert_eq!(client.response().await.body, "well");
    }
}

#[tokio::test]
async fn what_a_cold_start_took_and_how_it_ended_is_measured_and_goes_with_its_route() {
    let world = World::new();
    world.route_with("app", json!([{ "hosts": [HOST] }]), json!({ "timeouts": { "readiness": "50ms" } }));
    world.service("app");
    world.app("other", "other.test");
    let interceptor = Interceptor::start(&world).await;
    assert_eq!(interceptor.get(HOST, "/").await.status(), 504);
    let mut leaves = interceptor.client().await;
    leaves.get("other.test", "/").await;
    interceptor.held("other", 1).await;
    drop(leaves);
    interceptor.in_flight("other", 0).await;
    let mut waits = interceptor.client().await;
    waits.get("other.test", "/").await;
    interceptor.held("other", 1).await;
    let pod = Pod::start().await.answering("x");
    world.endpoints("other", &[pod.addr]);
    assert_eq!(waits.response().await.status(), 200);
    waits.get("other.test", "/").await;
    assert_eq!(waits.response().await.status(), 200);
    interceptor.in_flight("other", 0).await;
    for line in [
        "interceptor_cold_start_duration_seconds_count{outcome=\"timeout\",route_name=\"app\",route_namespace=\"shop\"} 1",
        "interceptor_cold_start_duration_seconds_count{outcome=\"cancelled\",route_name=\"other\",route_namespace=\"shop\"} 1",
        "interceptor_cold_start_duration_seconds_count{outcome=\"ready\",route_name=\"other\",route_namespace=\"shop\"} 1",
        "interceptor_request_count_total{code=\"200\",method=\"GET\",route_name=\"other\",route_namespace=\"shop\"} 2",
        "interceptor_request_duration_seconds_count{code=\"200\",cold_start=\"true\",method=\"GET\",route_name=\"other\",route_namespace=\"shop\"} 1",
        "interceptor_request_duration_seconds_count{code=\"200\",cold_start=\"false\",method=\"GET\",route_name=\"other\",route_namespace=\"shop\"} 1",
        "interceptor_request_duration_seconds_count{code=\"499\",cold_start=\"true\",method=\"GET\",route_name=\"other\",route_namespace=\"shop\"} 1",
        "interceptor_request_duration_seconds_count{code=\"504\",cold_start=\"true\",method=\"GET\",route_name=\"app\",route_namespace=\"shop\"} 1",
    ] {
        let metrics = interceptor.metrics().await;
        assert!(metrics.lines().any(|have| have == line), "{line} is missing in\n{metrics}");
    }
    let metrics = interceptor.metrics().await;
    let longest =
        |line: &&str| line.starts_with("interceptor_cold_start_duration_seconds_bucket{") && line.contains("le=\"300");
    assert!(metrics.lines().any(|line| longest(&line)), "the buckets reach to five minutes: {metrics}");
    world.remove("InterceptorRoute", "other");
    eventually("the route's series are gone", async || {
        let metrics = interceptor.metrics().await;
        (!metrics.contains("route_name=\"other\"") && metrics.contains("route_name=\"app\"")).then_some(())
    })
    .await;
}
