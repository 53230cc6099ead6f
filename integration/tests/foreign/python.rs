//! Peers in Python, from Debian's packages.

use std::{net::SocketAddr, process::Stdio};

use integration::{Interceptor, World, soon};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{run, text};
use crate::HOST;

/// Debian's, for which its packages are.
const PYTHON: &str = "/usr/bin/python3";

/// Runs a script to its end; returns what it printed.
async fn script(script: &str, args: &[&str]) -> String {
    let args: Vec<&str> = ["-c", script].into_iter().chain(args.iter().copied()).collect();
    text(&run(PYTHON, &args).await)
}

/// A pod that is a script, which prints the port that it listens at; killed when dropped.
async fn pod(script: &str) -> (Child, SocketAddr) {
    let mut command = Command::new(PYTHON);
    command.args(["-c", script]).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = soon("the pod listens", lines.next_line()).await.unwrap().unwrap();
    (child, SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap())))
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
