//! A pod: a listening socket on a loopback address whose connections a test accepts, or not, when it wants.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use runtime::task;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{Head, Peer, soon};

/// A listening pod.
#[derive(Debug)]
pub struct Pod {
    listener: TcpListener,
    /// Where it listens.
    pub addr: SocketAddr,
}

/// A pod that answers every request by itself, for tests that are about something else.
#[derive(Debug)]
pub struct AutoPod {
    /// Where it listens.
    pub addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

// === impl Pod ===

impl Pod {
    /// A pod on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    /// A pod on an address.
    pub async fn start_at(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    /// An address where nobody listens: connections are refused. It was free just now.
    pub async fn absent() -> SocketAddr {
        Self::start().await.addr
    }

    /// Accepts the next connection.
    pub async fn accept(&self) -> Peer {
        let (stream, addr) = soon("a connection to the pod", self.listener.accept()).await.unwrap();
        Peer::new(stream, addr)
    }

    /// Accepts the next connection, whenever it comes.
    pub async fn try_accept(&self) -> Option<Peer> {
        let (stream, addr) = self.listener.accept().await.ok()?;
        Some(Peer::new(stream, addr))
    }

    /// Accepts the next connection and reads the head of its first request.
    pub async fn request(&self) -> (Peer, Head) {
        let mut peer = self.accept().await;
        let head = peer.head().await;
        (peer, head)
    }

    /// From now on accepts everything and answers every request with 200 and `body`.
    pub fn answering(self, body: &'static str) -> AutoPod {
        let Self { listener, addr } = self;
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(AtomicUsize::new(0));
        let counts = (Arc::clone(&connections), Arc::clone(&requests));
        let task = task::spawn("pod", async move {
            while let Ok((stream, addr)) = listener.accept().await {
                counts.0.fetch_add(1, Ordering::Relaxed);
                task::spawn("pod connection", answer(Peer::new(stream, addr), body, Arc::clone(&counts.1)));
            }
        });
        AutoPod { addr, connections, requests, task }
    }
}

async fn answer(mut peer: Peer, body: &'static str, requests: Arc<AtomicUsize>) {
    while let Some(head) = peer.try_head().await {
        requests.fetch_add(1, Ordering::Relaxed);
        peer.body(&head).await;
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if peer.try_send(response.as_bytes()).await.is_err() {
            return;
        }
    }
}

// === impl AutoPod ===

impl AutoPod {
    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many requests it has seen.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for AutoPod {
    fn drop(&mut self) {
        self.task.abort();
    }
}
