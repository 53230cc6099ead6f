//! The same suite over the other level of the data plane: nothing that clients, pods or operators see may differ.

use std::process::Command;

use integration::{Interceptor, Peer, Pod, World, eventually};
use runtime::task;
use serde_json::Value;

use crate::HOST;

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_whole_suite_passes_at_level_self() {
    let mut suite = Command::new(std::env::current_exe().unwrap());
    // Whether curl is there or not has been told at level none.
    suite.args(["--skip", "foreign::"]).env("ROUSE_TEST_DATAPLANE", "self");
    let output = suite.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result: ok."), "{text}");
}

/// What the kernel has counted for the app.
async fn kernel(interceptor: &Interceptor) -> Value {
    interceptor.route_state("app").await.unwrap()["kernel"].clone()
}

/// Answers one request of each connection, in one of several ways to end it.
async fn answer_once(mut peer: Peer, number: usize) {
    if peer.try_head().await.is_none() {
        return;
    }
    let close = if number.is_multiple_of(2) { "Connection: close\r\n" } else { "" };
    let _ = peer.try_send(format!("HTTP/1.1 200 OK\r\n{close}Content-Length: 2\r\n\r\nok").as_bytes()).await;
    if number.is_multiple_of(3) {
        peer.reset();
    }
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn the_kernel_counts_the_very_connections_that_the_pod_saw() {
    let world = World::with_app("app", HOST);
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let interceptor = Interceptor::start_at_level(&world, "self").await;
    interceptor.endpoints("app", 1).await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let accepting = task::spawn("pod", async move {
        let mut accepted = 0_usize;
        loop {
            tokio::select! {
                peer = pod.accept() => {
                    task::spawn("pod connection", answer_once(peer, accepted));
                    accepted += 1;
                }
                _ = &mut stopped => return accepted,
            }
        }
    });
    for _ in 0..1000 {
        // A pod that resets right after its answer may win over it; the connection counts either way.
        let status = interceptor.get(HOST, "/").await.status();
        assert!(matches!(status, 200 | 502), "{status}");
    }
    stop.send(()).unwrap();
    let accepted = accepting.await.unwrap();
    assert!(accepted > 500, "{accepted} connections");
    eventually("the kernel's counts are the pod's", async || {
        let counts = kernel(&interceptor).await;
        (counts["opened"] == accepted && counts["closed"] == accepted && counts["failed"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn the_kernel_counts_what_was_refused() {
    let world = World::with_app("app", HOST);
    world.endpoints("app", &[Pod::absent().await]);
    let interceptor = Interceptor::start_at_level(&world, "self").await;
    interceptor.endpoints("app", 1).await;
    let mut client = interceptor.client().await;
    client.get(HOST, "/").await;
    eventually("refusals are counted", async || {
        let counts = kernel(&interceptor).await;
        (counts["failed"].as_u64()? >= 3 && counts["opened"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_container_with_two_capabilities_that_sees_only_its_own_cgroup_is_at_level_self() {
    let world = World::with_app("app", HOST);
    let pod = Pod::start().await.answering("hello");
    world.endpoints("app", &[pod.addr]);
    let interceptor = Interceptor::start_contained(&world).await;
    interceptor.endpoints("app", 1).await;
    assert_eq!(interceptor.get(HOST, "/").await.status(), 200);
    eventually("the kernel has counted the connection", async || {
        (kernel(&interceptor).await["opened"] == 1).then_some(())
    })
    .await;
    assert_eq!(interceptor.state().await["dataplane"]["reason"], "attached to /sys/fs/cgroup");
}
