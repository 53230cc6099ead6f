//! Probes of the node's kubelet that have a name of their own, none, or one that comes late.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use integration::{eventually, world::NAMESPACE};
use serde_json::json;

use crate::{
    clients::PORT,
    count::{Bench, requests},
};

/// Tells of probes of the route's pods, as the operator does.
fn probed(bench: &Bench, probes: &serde_json::Value) {
    bench.world.object(&json!({
        "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
        "metadata": { "name": "web", "namespace": NAMESPACE },
        "spec": {
            "target": { "service": "web", "port": 80 }, "dataPath": "Direct",
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
        },
        "status": { "unnamedProbes": probes },
    }));
}

/// Asks from the node as Go writes it, and waits for the answer's end.
async fn get(bench: &Bench, path: &str, host: &str, user_agent: &str) {
    let addr = SocketAddr::new(bench.pod.addresses[0], PORT);
    let host = if host.is_empty() { addr.to_string() } else { host.to_owned() };
    let name = if user_agent.is_empty() { String::new() } else { format!("User-Agent: {user_agent}\r\n") };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{name}Accept: */*\r\nConnection: close\r\n\r\n");
    let node = bench.net.node();
    let asked = node.run(move || {
        let mut stream = TcpStream::connect(addr)?;
        stream.write_all(request.as_bytes())?;
        stream.read_to_end(&mut Vec::new())
    });
    assert!(asked.await.unwrap() > 0);
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn the_kubelets_probes_that_do_not_name_themselves_are_not_counted_and_other_requests_of_the_node_are() {
    let bench = Bench::new();
    let late = format!("/{}", "late".repeat(70));
    probed(
        &bench,
        &json!([
            { "port": PORT, "path": "/live", "userAgent": "mine/1" },
            { "port": PORT, "path": "/nameless", "host": "app.example", "userAgent": "" },
            { "port": PORT, "path": late },
            { "port": 1, "path": "/elsewhere", "userAgent": "mine/1" },
            { "port": 0, "path": "no\r\nprobe" },
        ]),
    );
    bench.list(true);
    bench.cgroup();
    let agent = bench.agent().await;
    eventually("the pod is counted", async || (agent.metric("rouse_count_pods").await == 1).then_some(())).await;
    bench.serve().await;
    for _ in 0..3 {
        get(&bench, "/live", "", "mine/1").await;
        get(&bench, "/nameless", "app.example", "").await;
        get(&bench, &late, "", "kube-probe/1.36").await;
    }
    requests(&agent, 0).await;
    let others = [("/", ""), ("/live2", ""), ("/live", "app.example"), ("/elsewhere", "")];
    for (path, host) in others {
        get(&bench, path, host, "mine/1").await;
    }
    get(&bench, "/live", "", "mine/2").await;
    requests(&agent, 5).await;
    // What clients ask is theirs, however it begins.
    bench.ask(&bench.client, 1, &["-A", "mine/1", "--request-target", "/live"]);
    requests(&agent, 6).await;
    // The kernel forgets them with the route's status.
    probed(&bench, &json!([]));
    eventually("they are probes no more", async || {
        get(&bench, "/live", "", "mine/1").await;
        (agent.route("web").await["taken"]["requests"] != 6).then_some(())
    })
    .await;
    assert_eq!(agent.metric("rouse_count_probes_refused").await, 0);
}
