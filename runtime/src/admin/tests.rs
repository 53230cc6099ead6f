//! The admin port seen from outside, over raw sockets and a real HTTP/2 client.

use std::{
    future::{Ready as ReadyFuture, ready},
    task::{Context, Poll},
};

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::{metrics::Metrics, task};

async fn start(server: Server) -> SocketAddr {
    let bound = server.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = bound.addr();
    task::spawn("admin", bound.serve());
    addr
}

async fn get(addr: SocketAddr, target: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn probes_answer_as_the_original_does_and_name_what_is_pending() {
    let ready = Ready::new();
    let latch = ready.latch("routes");
    let addr = start(Server::new().probes(&ready)).await;
    let alive = get(addr, "/livez").await;
    assert!(alive.starts_with("HTTP/1.1 200") && body(&alive).is_empty());
    let pending = get(addr, "/readyz").await;
    assert!(pending.starts_with("HTTP/1.1 503") && pending.contains("X-Rouse-Pending: routes\r\n"), "{pending}");
    assert_eq!(body(&pending), "Service Unavailable");
    assert_eq!(body(&get(addr, "/readyz?verbose").await), "Service Unavailable\npending: routes\n");
    latch.release();
    let done = get(addr, "/readyz").await;
    assert!(done.starts_with("HTTP/1.1 200") && done.contains("Content-Type: text/plain; charset=utf-8\r\n"));
    assert_eq!(body(&done), "OK");
    ready.set_draining();
    assert!(get(addr, "/readyz").await.contains("X-Rouse-Pending: draining\r\n"));
}

#[tokio::test]
async fn an_unknown_path_is_answered_in_the_words_of_the_original() {
    let addr = start(Server::new()).await;
    let response = get(addr, "/nothing").await;
    assert!(response.starts_with("HTTP/1.1 404") && response.contains("X-Content-Type-Options: nosniff\r\n"));
    assert_eq!(body(&response), "404 page not found\n");
}

#[tokio::test]
async fn a_process_adds_its_own_paths() {
    let exposition = Metrics::new("test", "0").into_exposition();
    let addr = start(Server::new().metrics(&exposition).path("/queue", |_| reply::json("{}\n"))).await;
    let queue = get(addr, "/queue").await;
    assert!(queue.contains("Content-Type: application/json\r\n"));
    assert_eq!(body(&queue), "{}\n");
    assert!(get(addr, "/metrics").await.contains("process_open_fds "));
}

#[derive(Clone)]
struct Echo;

impl Service<Request<Incoming>> for Echo {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = ReadyFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        ready(Ok(Response::new(Full::new(Bytes::from(request.uri().path().to_owned())))))
    }
}

#[tokio::test(flavor = "current_thread")]
async fn grpc_and_paths_share_one_http2_connection() {
    let addr = start(Server::new().path("/queue", |_| reply::json("{}\n")).grpc(Echo)).await;
    let io = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    task::spawn("client", connection);
    let mut call = async |path: &str, content_type: &str| {
        let uri = format!("http://admin{path}");
        let request = Request::post(uri).header("content-type", content_type).body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    assert_eq!(call("/rouse.counts.v1.Counts/Watch", "application/grpc").await, "/rouse.counts.v1.Counts/Watch");
    assert_eq!(call("/queue", "application/json").await, "{}\n");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_let_go() {
    let addr = start(Server::new()).await;
    let mut silent = TcpStream::connect(addr).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "the server closes it");
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_at_once_and_counted() {
    let server = Server::new();
    let refused = server.refused();
    let addr = start(server).await;
    let mut open = Vec::new();
    while refused.get() == 0 {
        open.push(TcpStream::connect(addr).await.unwrap());
        assert!(open.len() <= 4096, "the bound is far below this");
        task::spawn("yield", tokio::task::yield_now()).await.unwrap();
    }
    // One that is let go makes room for another.
    open.clear();
    while !get_or_closed(addr).await.starts_with("HTTP/1.1 404") {}
}

async fn get_or_closed(addr: SocketAddr) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").await;
    let mut response = String::new();
    let _ = stream.read_to_string(&mut response).await;
    response
}
