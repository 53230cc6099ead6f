//! Connections that nobody accepts are told to scalers, by the agent of the pod's node.

use std::net::{SocketAddr, TcpListener, TcpStream};

use integration::{agent::Agent, eventually};
use serde_json::json;

use crate::count::Bench;

const CLIENTS: usize = 20;

fn bench() -> Bench {
    Bench::with(json!({ "scalingMetric": { "acceptQueue": { "targetValue": 10 } } }))
}

/// A server that accepts when it is told to.
async fn listen(bench: &Bench) -> (TcpListener, SocketAddr) {
    let addr = (bench.pod.addresses[0], 8080).into();
    (bench.pod.run(move || TcpListener::bind(addr)).await.unwrap(), addr)
}

async fn connect(bench: &Bench, addr: SocketAddr, clients: usize) -> Vec<TcpStream> {
    let connect = move || (0..clients).map(|_| TcpStream::connect(addr)).collect::<std::io::Result<_>>();
    bench.client.run(connect).await.unwrap()
}

/// Metrics are written as floats.
fn is(expected: u32) -> impl Fn(f64) -> bool {
    move |value| (value - f64::from(expected)).abs() < 0.5
}

async fn until(agent: &Agent, depth: usize) {
    let what = format!("{depth} connections wait");
    eventually(&what, async || (agent.route("web").await["acceptQueue"] == depth).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn connections_that_nobody_accepts_reach_the_scaler_also_by_another_agent() {
    let bench = bench();
    bench.list(true);
    let mut agent = bench.agent().await;
    let _scaler = bench.scaler().await;
    let (listener, addr) = listen(&bench).await;
    bench.told("scaler_route_accept_queue{", is(0)).await;
    let clients = connect(&bench, addr, CLIENTS).await;
    until(&agent, CLIENTS).await;
    bench.told("scaler_route_accept_queue{", is(20)).await;
    agent.kill().await;
    let agent = bench.agent().await;
    until(&agent, CLIENTS).await;
    // One that has left is in the pod's way until it is accepted.
    drop(clients);
    for left in (0..CLIENTS).rev() {
        drop(listener.accept().unwrap());
        until(&agent, left).await;
    }
    bench.told("scaler_route_accept_queue{", is(0)).await;
    assert_eq!(agent.metric("rouse_accept_queue_pods").await, 1);
    assert_eq!(agent.state().await["acceptQueues"]["unknown"], json!([]));
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_socket_that_listens_for_both_families_waits_once() {
    let bench = bench();
    let [v4, v6] = [bench.pod.addresses[0], bench.pod.addresses[1]];
    bench.list(true);
    bench.list_at(v6, "web-2", true);
    let agent = bench.agent().await;
    let listener = bench.pod.run(|| TcpListener::bind("[::]:8080")).await.unwrap();
    let clients = [connect(&bench, (v4, 8080).into(), 3).await, connect(&bench, (v6, 8080).into(), 4).await];
    until(&agent, 7).await;
    assert_eq!(agent.metric("rouse_accept_queue_pods").await, 2);
    drop((clients, listener));
    until(&agent, 0).await;
}

#[tokio::test]
#[ignore = "needs root and Linux 6.12: run by cargo xtask test"]
async fn what_cannot_be_read_is_no_number() {
    let bench = bench();
    bench.list(true);
    let agent = bench.agent_that_may("ROUSE_BPFFS=", "").await;
    let _scaler = bench.scaler().await;
    bench.told("scaler_route_accept_queue_unknown{", is(1)).await;
    assert_eq!(agent.state().await["acceptQueues"]["reason"], "missing CAP_PERFMON");
    assert!(agent.route("web").await["acceptQueue"].is_null());
    assert_eq!(agent.metric("rouse_accept_queue_active").await, 0);
    // Nobody of the route is on this node any more: there is nothing that it would have to read.
    bench.world.remove("EndpointSlice", "web-1");
    bench.told("scaler_route_accept_queue_unknown{", is(0)).await;
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn nothing_is_loaded_while_no_route_asks() {
    let bench = Bench::new();
    bench.list(true);
    let agent = bench.agent().await;
    let (_listener, addr) = listen(&bench).await;
    let _clients = connect(&bench, addr, 3).await;
    assert_eq!(agent.state().await["acceptQueues"]["asked"], false);
    assert_eq!(agent.metric("rouse_accept_queue_active").await, 0);
    let asking = json!({ "scalingMetric": { "acceptQueue": { "targetValue": 1 } } });
    bench.world.direct("web", &[crate::count::VIP], asking);
    until(&agent, 3).await;
    assert_eq!(agent.metric("rouse_accept_queue_active").await, 1);
    let others = json!({ "scalingMetric": { "connections": { "targetValue": 1 } } });
    bench.world.direct("web", &[crate::count::VIP], others);
    let unloaded = async || (agent.metric("rouse_accept_queue_active").await == 0).then_some(());
    eventually("it is taken out again", unloaded).await;
}
