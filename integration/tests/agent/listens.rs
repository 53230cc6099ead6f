//! A pod of this node that begins to listen is tried and asked at once, and not at the next turn.

use integration::{agent::Agent, eventually, soon, world::NAMESPACE};
use serde_json::json;

use crate::{
    bench::{FRONTEND, cold},
    clients::{PORT, connect},
    count::Bench,
};

/// Says a line to whoever connects, when a file has appeared that is looked for all the time.
const SERVER: &str = r#"exec python3 -c '
import os, socket
while not os.path.exists("go"): pass
s = socket.create_server(("", 8080))
while True:
    c, _ = s.accept()
    c.sendall(b"here\n")
'"#;

async fn counted(agent: &Agent) {
    eventually("the pod is counted", async || {
        (agent.state().await["count"]["pods"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_that_its_pod_refuses_is_tried_when_the_pod_listens() {
    let bench = Bench::new();
    bench.net.rules(&cold(), "");
    bench.cgroup();
    let agent = bench.agent().await;
    agent.until("web", "cold").await;
    let held = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    bench.start(SERVER);
    bench.list(true);
    counted(&agent).await;
    eventually("the pod has refused", async || (agent.metric("rouse_hold_tries_total").await > 100).then_some(()))
        .await;
    assert_eq!(agent.metric("rouse_count_listens_total").await, 0);
    std::fs::write(bench.world.path().join("go"), "").unwrap();
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    assert_eq!(answer.line, "here");
    assert_eq!(agent.metric("rouse_count_listens_total").await, 1);
    assert_eq!(agent.metric("rouse_count_listens_dropped_total").await, 0);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_pod_with_a_readiness_probe_is_asked_when_it_listens() {
    let bench = Bench::new();
    bench.net.rules(&cold(), "");
    bench.cgroup();
    bench.world.object(&json!({
        "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
        "metadata": { "name": "web", "namespace": NAMESPACE },
        "spec": {
            "target": { "service": "web", "port": 80 }, "dataPath": "Direct", "protocol": "TCP",
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
        },
        "status": { "readinessProbe": { "tcpSocket": { "port": PORT }, "periodSeconds": 10 } },
    }));
    let agent = bench.agent().await;
    agent.until("web", "cold").await;
    let held = connect(&bench.client, FRONTEND);
    agent.until_held("web", 1).await;
    bench.start(SERVER);
    bench.list(false);
    counted(&agent).await;
    eventually("the pod is asked", async || {
        (agent.metric("rouse_readiness_probes_total{outcome=\"refused\"}").await > 2).then_some(())
    })
    .await;
    std::fs::write(bench.world.path().join("go"), "").unwrap();
    let answer = soon("the connection opens", held).await.unwrap().unwrap();
    assert_eq!(answer.line, "here");
    assert_eq!(agent.metric("rouse_count_listens_total").await, 1);
    assert_eq!(agent.metric("rouse_readiness_wakes_total").await, 1);
}
