//! The watch against an API server that says what a test wants, request by request.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::super::{Cluster, Watch, WatchMetrics, watch};
use super::{super::super::Kind, told_of};
use crate::task;

/// What is said to one request: what must be asked, the status, and the lines of the body. A body of a watch stays open.
type Turn = (&'static str, u16, Vec<Value>);

/// What the server says, in turn, and what it was asked that it was not to be asked.
#[derive(Clone, Debug, Default)]
struct Script {
    turns: Arc<Mutex<VecDeque<Turn>>>,
    strange: Arc<Mutex<Vec<String>>>,
}

fn service(name: &str, version: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "n", "resourceVersion": version.to_string()},
        "spec": {"ports": [{"port": 80}]}
    })
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// The end of a streamed list.
fn end(version: u32) -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
    event("BOOKMARK", &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata}))
}

fn status(code: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": "as the test wants", "reason": "Test"})
}

fn page(items: &[Value], next: &str) -> Value {
    let metadata = json!({"resourceVersion": "9", "continue": next});
    json!({"apiVersion": "v1", "kind": "ServiceList", "metadata": metadata, "items": items})
}

async fn serve(script: Script, mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    let turn = script.turns.lock().pop_front();
    // What comes after the script is a request that stays unanswered.
    let Some((expected, status, lines)) = turn else { return std::future::pending().await };
    if !line.contains(expected) {
        script.strange.lock().push(format!("{line}: expected {expected}"));
    }
    let body = lines.iter().fold(String::new(), |body, line| body + &line.to_string() + "\n");
    let head = format!("HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all((head + &body).as_bytes()).await;
    let ends = lines.last().is_none_or(|last| last["type"].is_null() || last["type"] == "ERROR");
    if !ends {
        std::future::pending::<()>().await;
    }
}

/// Watches Services of a server with this script, until as much has been told as is expected.
async fn told(turns: Vec<Turn>, expected: &[&str]) {
    let script = Script { turns: Arc::new(Mutex::new(turns.into())), ..Script::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let said = script.clone();
    task::spawn("server", async move {
        while let Ok((stream, _)) = listener.accept().await {
            task::spawn("connection", serve(said.clone(), stream));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let cluster = Cluster { kubeconfig: Some(file), watches: vec![Watch::all(Kind::Service, Some("n"))] };
    let (events, mut batches) = mpsc::channel(8);
    let watching = task::spawn("watch", watch(cluster, WatchMetrics::default(), events));
    let mut told = Vec::new();
    let patience = std::time::Duration::from_secs(20);
    while told.len() < expected.len() {
        let batch = tokio::time::timeout(patience, batches.recv()).await;
        let batch = batch.unwrap_or_else(|_elapsed| panic!("told {told:?}; asked {:?}", script.strange.lock()));
        told.extend(batch.unwrap().into_iter().map(told_of));
    }
    assert_eq!(told, expected);
    assert!(script.strange.lock().is_empty(), "{:?}", script.strange.lock());
    watching.abort();
}

#[tokio::test]
async fn a_list_is_streamed_and_the_watch_goes_on_on_the_same_connection() {
    let lines = vec![event("ADDED", &service("a", 1)), end(5), event("MODIFIED", &service("a", 6))];
    let turns = vec![("/api/v1/namespaces/n/services?", 200, lines)];
    told(turns, &["Service n/a", "synced", "Service n/a"]).await;
}

#[tokio::test]
async fn a_server_that_cannot_stream_a_list_is_asked_for_pages() {
    let first = page(&[service("a", 1)], "more");
    let turns = vec![
        ("sendInitialEvents=true", 422, vec![status(422)]),
        ("limit=500", 200, vec![first]),
        ("continue=more", 200, vec![page(&[service("b", 2)], "")]),
        ("resourceVersion=9", 200, vec![event("DELETED", &service("a", 10))]),
    ];
    told(turns, &["Service n/a", "Service n/b", "synced", "no Service n/a"]).await;
}

#[tokio::test]
async fn what_went_while_the_server_forgot_where_we_were_is_told_as_gone() {
    let first = vec![event("ADDED", &service("a", 1)), event("ADDED", &service("b", 2)), end(5)];
    let forgotten = vec![event("ERROR", &status(410))];
    let again = vec![event("ADDED", &service("b", 2)), event("ADDED", &service("c", 8)), end(9)];
    let mut broken_off = first;
    broken_off.extend(forgotten);
    let turns = vec![("sendInitialEvents=true", 200, broken_off), ("sendInitialEvents=true", 200, again)];
    told(turns, &["Service n/a", "Service n/b", "synced", "Service n/c", "no Service n/a"]).await;
}

#[tokio::test]
async fn a_watch_that_breaks_off_is_resumed_where_it_was() {
    let first = vec![event("ADDED", &service("a", 1)), end(5), json!({"type": "ERROR", "object": status(500)})];
    let turns = vec![
        ("sendInitialEvents=true", 200, first),
        ("resourceVersion=5", 200, vec![event("ADDED", &service("b", 6))]),
    ];
    told(turns, &["Service n/a", "synced", "Service n/b"]).await;
}

#[tokio::test]
async fn a_line_that_is_no_object_harms_no_other() {
    let odd = event("ADDED", &json!({"metadata": {"name": "odd", "namespace": "n"}, "spec": 7}));
    let lines = vec![odd, event("ADDED", &service("a", 1)), end(5)];
    let turns = vec![("sendInitialEvents=true", 200, lines)];
    told(turns, &["bad Service n/odd: invalid type: integer `7`, expected ServiceSpec", "Service n/a", "synced"]).await;
}
