//! An OpenTelemetry collector that a test plays: it takes what it is told, and shows it.

use std::net::{SocketAddr, TcpListener};

use runtime::task;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

use crate::soon;

/// A collector, and what it was told: the path of each request, and its body.
#[derive(Debug)]
pub struct Collector {
    /// Where it listens.
    pub addr: SocketAddr,
    told: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
}

// === impl Collector ===

impl Collector {
    /// One that somebody else serves.
    pub fn new(addr: SocketAddr, told: mpsc::UnboundedReceiver<(String, Vec<u8>)>) -> Self {
        Self { addr, told }
    }

    /// One that takes OTLP over HTTP.
    pub fn http() -> Self {
        Self::http_on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The same, where a test wants it.
    pub fn http_on(listener: TcpListener) -> Self {
        let addr = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (tell, told) = mpsc::unbounded_channel();
        task::spawn("collector", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let tell = tell.clone();
                task::spawn("connection", async move {
                    let mut read = Vec::new();
                    while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
                        while let Some((path, body, rest)) = request(&read) {
                            tell.send((path, body)).unwrap();
                            read = rest;
                            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                        }
                    }
                });
            }
        });
        Self::new(addr, told)
    }

    /// The next that it is told.
    pub async fn told(&mut self, what: &str) -> (String, Vec<u8>) {
        soon(&format!("{what} are told"), self.told.recv()).await.unwrap()
    }
}

/// The first whole request of what was read, and the rest.
fn request(read: &[u8]) -> Option<(String, Vec<u8>, Vec<u8>)> {
    let end = read.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.trim().parse::<usize>().ok()?;
    let body = read.get(end..end + length)?.to_vec();
    Some((head.split(' ').nth(1)?.to_owned(), body, read[end + length..].to_vec()))
}
