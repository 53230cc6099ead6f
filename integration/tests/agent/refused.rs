//! Connection tracking refuses an entry of ours: what it is for waits for the node's own rules, and nothing else does.

use std::{io, net::SocketAddr};

use integration::{agent::Agent, net::Host, soon};
use tokio::{net::TcpSocket, runtime, sync::oneshot};

use crate::{
    bench::{Bench, FRONTEND},
    clients::{PORT, ask, connect, listen},
};

/// Below 512 a client's port is translated to none above.
const FROM: u16 = 500;

/// Connections of the client to the pod, from every port to which its own could be translated.
fn take_all_ports(node: &Host, client: &Host, pod: &Host) {
    let (client, pod) = (client.addresses[0], pod.addresses[0]);
    let entry = format!("-p tcp -s {client} -d {pod} --sport $port --dport {PORT} --state ESTABLISHED -t 60");
    node.output("sh", &["-c", &format!("for port in $(seq 511); do conntrack -I {entry} || exit 1; done 2>&1")]);
}

/// What is answered to a client that connects from its port.
fn connect_from_port(client: &Host) -> oneshot::Receiver<io::Result<String>> {
    let to: SocketAddr = FRONTEND.parse().unwrap();
    client.start(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let stream = runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.bind(([0, 0, 0, 0], FROM).into())?;
            socket.connect(to).await?.into_std()
        })?;
        stream.set_nonblocking(false)?;
        ask(&stream)
    })
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn a_connection_of_a_pod_or_of_the_node_waits_for_the_nodes_own_rules_and_others_do_not() {
    for is_of_node in [false, true] {
        let bench = Bench::new();
        let node = bench.net.node();
        let client = if is_of_node { &node } else { &bench.client };
        let agent = Agent::start(&bench.net, &bench.world).await;
        agent.until("web", "cold").await;
        take_all_ports(&node, client, &bench.pod);
        let (refused, another) = (connect_from_port(client), connect(client, FRONTEND));
        agent.until_held("web", 2).await;
        let _pod = listen(&bench.pod, "web-a").await;
        bench.warm();
        bench.endpoints(&[&bench.pod]);
        let answer = soon("the other is answered", another).await.unwrap().unwrap();
        assert!(answer.line.starts_with("web-a to "), "{}", answer.line);
        assert_eq!(agent.metric("rouse_hold_failures_total{step=\"conntrack\"}").await, 1);
        node.output("conntrack", &["-D", "-p", "tcp", "-d", &bench.pod.addresses[0].to_string()]);
        let line = soon("the first is answered", refused).await.unwrap().unwrap();
        assert!(line.starts_with("web-a to "), "{line}");
        agent.until_held("web", 0).await;
        assert_eq!(agent.metric("rouse_hold_connections_total{outcome=\"taken\"}").await, 1);
        assert!(agent.metric("rouse_hold_connections_total{outcome=\"released\"}").await == 1);
    }
}
