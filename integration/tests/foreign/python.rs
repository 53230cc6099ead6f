//! Peers in Python, from Debian's packages.

use std::{net::SocketAddr, process::Stdio};

use integration::{Interceptor, Pod, World, soon};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{run, text};
use crate::{HOST, cold, smuggling::listening, warm};

/// Debian's, for which its packages are.
const PYTHON: &str = "/usr/bin/python3";

/// Runs a script to its end; returns what it printed.
async fn script(script: &str, args: &[&str]) -> String {
    let args: Vec<&str> = ["-c", script].into_iter().chain(args.iter().copied()).collect();
    text(&run(PYTHON, &args).await)
}

/// A pod that is a script, which prints the port that it listens at; killed when dropped.
async fn pod(script: &str) -> (Child, SocketAddr) {
    pod_with(script, &[]).await
}

async fn pod_with(script: &str, args: &[&str]) -> (Child, SocketAddr) {
    let mut command = Command::new(PYTHON);
    command.args(["-c", script]).args(args).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = soon("the pod listens", lines.next_line()).await.unwrap().unwrap();
    (child, SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap())))
}

/// What a caller of gRPC is told: code, bar, message.
async fn called(interceptor: &Interceptor, authority: &str) -> String {
    script(include_str!("grpc_client.py"), &[&interceptor.proxy.port().to_string(), authority, "10"]).await
}

#[tokio::test]
async fn a_caller_of_grpc_is_told_of_errors_in_its_own_way() {
    let (world, interceptor) = cold(&[("KEDA_HTTP_READINESS_TIMEOUT", "100ms")]).await;
    assert_eq!(called(&interceptor, "nobody.test").await, "UNIMPLEMENTED|no route matches the request\n");
    assert_eq!(called(&interceptor, HOST).await, "UNAVAILABLE|no endpoint became ready in time\n");
    world.h2c_service("app");
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    interceptor.endpoints("app", 1).await;
    let (told, ()) = tokio::join!(called(&interceptor, HOST), async {
        integration::h2::first(pod.accept().await).await.respond.send_reset(h2::Reason::INTERNAL_ERROR);
    });
    assert_eq!(told, "UNAVAILABLE|upstream failed before its response\n");
    let metrics = interceptor.metrics().await;
    for code in ["404", "504", "502"] {
        let counted = |line: &str| {
            line.starts_with("interceptor_request_count_total{") && line.contains(&format!("code=\"{code}\""))
        };
        assert!(metrics.lines().any(counted), "{code} is not counted in {metrics}");
    }
}

#[tokio::test]
async fn a_caller_of_grpc_can_be_told_of_errors_as_the_add_on_does() {
    let (_world, interceptor) = cold(&[("ROUSE_GRPC_STATUS", "false")]).await;
    let told = called(&interceptor, "nobody.test").await;
    assert!(told.starts_with("UNIMPLEMENTED|Received http2 header with status: 404\n"), "{told}");
}

#[tokio::test]
async fn a_websocket_over_http_2_reaches_a_pod_that_knows_them_over_http_1_alone() {
    let world = World::with_app("app", HOST);
    let (_pod, addr) = pod(include_str!("websocket_pod.py")).await;
    world.endpoints("app", &[addr]);
    let interceptor = Interceptor::start(&world).await;
    interceptor.endpoints("app", 1).await;
    let port = interceptor.proxy.port().to_string();
    let said = script(include_str!("websocket_client.py"), &[&port, HOST, "/chat", "hello"]).await;
    assert_eq!(said, "200 False False\nhello\nended\n");
    interceptor.in_flight("app", 0).await;
    assert_eq!(interceptor.queue("app").await.unwrap().count, 1);
}

/// A pod that speaks HTTP/2 in clear, and opens tunnels in this way; asked by clients of one worker.
async fn h2c_pod(kind: &str) -> (World, Child, Interceptor) {
    let world = World::with_app("app", HOST);
    world.h2c_service("app");
    let (pod, addr) = pod_with(include_str!("websocket_h2_pod.py"), &[kind]).await;
    world.endpoints("app", &[addr]);
    let interceptor = Interceptor::start_with(&world, &[("ROUSE_WORKERS", "1")]).await;
    interceptor.endpoints("app", 1).await;
    (world, pod, interceptor)
}

/// What clients of either version of HTTP are told who open a WebSocket.
async fn told(interceptor: &Interceptor, path: &str) -> (String, String) {
    let port = interceptor.proxy.port().to_string();
    let over_h1 = script(include_str!("websocket_http1_client.py"), &[&port, HOST, path, "hello"]).await;
    let over_h2 = script(include_str!("websocket_client.py"), &[&port, HOST, path, "hello"]).await;
    (over_h1, over_h2)
}

#[tokio::test]
async fn a_websocket_reaches_a_pod_of_http_2_by_extended_connect_where_it_is_announced() {
    let (_world, _pod, interceptor) = h2c_pod("extended").await;
    // The first finds out, the second makes use of it, and plain requests share the connection.
    for _ in 0..2 {
        let (over_h1, over_h2) = told(&interceptor, "/chat").await;
        assert_eq!((&*over_h1, &*over_h2), ("hello\n", "200 False False\nhello\nended\n"));
        assert_eq!(interceptor.get(HOST, "/").await.body, "plain");
    }
    let (over_h1, over_h2) = told(&interceptor, "/refused").await;
    assert!(over_h1.contains("403") && over_h2 == "403 False False\n", "{over_h1} {over_h2}");
    interceptor.in_flight("app", 0).await;
    assert_eq!(interceptor.queue("app").await.unwrap().count, 8);
}

#[tokio::test]
async fn a_websocket_reaches_a_pod_of_http_2_over_http_1_where_no_extended_connect_is_announced() {
    let (_world, _pod, interceptor) = h2c_pod("http1").await;
    for _ in 0..2 {
        let (over_h1, over_h2) = told(&interceptor, "/chat").await;
        assert_eq!((&*over_h1, &*over_h2), ("hello\n", "200 False False\nhello\nended\n"));
        assert_eq!(interceptor.get(HOST, "/").await.body, "plain", "plain requests stay with HTTP/2");
    }
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn a_websocket_to_a_pod_that_takes_none_fails_and_harms_no_other_request() {
    let (_world, _pod, interceptor) = h2c_pod("neither").await;
    let (over_h1, over_h2) = told(&interceptor, "/chat").await;
    assert!(over_h1.contains("502") && over_h2 == "502 False False\n", "{over_h1} {over_h2}");
    assert_eq!(interceptor.get(HOST, "/").await.body, "plain");
    let mut client = interceptor.client().await;
    let upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n";
    client.send(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{upgrade}\r\n")).await;
    assert_eq!(client.response().await.body, "plain", "an upgrade to HTTP/2 itself is none");
    interceptor.in_flight("app", 0).await;
}

#[tokio::test]
async fn requests_of_http_2_that_would_be_others_over_http_1_reach_no_pod() {
    let (_world, pod, interceptor) = warm().await;
    let heard = listening(pod);
    let port = interceptor.proxy.port().to_string();
    let said = script(include_str!("http2_smuggler.py"), &[&port, HOST]).await;
    assert_eq!(said.lines().count(), 31, "{said}");
    for line in said.lines() {
        let (_, outcome) = line.split_once('|').unwrap_or_else(|| panic!("{said}"));
        assert!(matches!(outcome, "reset" | "closed" | "400"), "{line}");
    }
    interceptor.in_flight("app", 0).await;
    // A body that is not as long as its head says may show only once the head is on its way.
    let heard = heard.lock();
    let harmless =
        |text: &String| text.is_empty() || text.starts_with("POST / HTTP/1.1\r\n") && !text.contains("hidden");
    assert!(heard.iter().all(harmless), "{heard:?}");
    assert!(heard.len() <= 2, "{heard:?}");
}
