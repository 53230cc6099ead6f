//! The client's socket as hyper sees it, with two things hyper's server lacks: a way to send 1xx responses, and a
//! watch on the client's leaving while its request body is not being read.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    sync::Notify,
};

/// Most bytes of 1xx heads that wait to be sent; further ones are dropped, as any recipient may (RFC 9110 §15.2).
const MAX_INTERIM: usize = 64 * 1024;

/// Up to this size it is cheaper to copy the pieces of a message together than to have the kernel take a list of them.
const GATHERED: usize = 1024;

/// A client's socket.
#[derive(Debug)]
pub(crate) struct ClientIo {
    stream: TcpStream,
    shared: Arc<IoShared>,
    /// hyper has written all it had up to the end of a message: 1xx bytes may go between.
    at_boundary: bool,
    /// 1xx bytes being written.
    writing: Vec<u8>,
    /// A small head and body on their way into one write.
    gathered: Vec<u8>,
}

/// What the request stages see of the socket.
#[derive(Debug, Default)]
pub(crate) struct IoShared {
    /// Set when there is anything below for the socket's side to do.
    pending: AtomicBool,
    work: Mutex<Work>,
    watched: Notify,
    /// Bytes have come since the last request was complete.
    heard: AtomicBool,
}

#[derive(Debug, Default)]
struct Work {
    interim: Vec<u8>,
    wants_watch: bool,
    watch: Option<OwnedFd>,
    waker: Option<Waker>,
}

/// Sends 1xx responses to a client.
#[derive(Clone, Debug)]
pub(crate) struct Interim(Arc<IoShared>);

// === impl IoShared ===

impl IoShared {
    /// Whether bytes came in since the last call.
    pub(crate) fn take_heard(&self) -> bool {
        self.heard.load(Relaxed) && self.heard.swap(false, Relaxed)
    }

    /// Resolves when the client has closed its side, or the connection has broken; needs no one to read.
    pub(crate) async fn closed(&self) {
        let watched = self.watched.notified();
        self.ask(|work| work.wants_watch = true);
        watched.await;
        let watch = self.work.lock().watch.take().map(std::net::TcpStream::from).map(TcpStream::from_std);
        let Some(Ok(stream)) = watch else { return std::future::pending().await };
        loop {
            // Edge-triggered: each arrival of data wakes once, and the end of data once.
            match stream.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => {
                    let _ = stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                }
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn ask(&self, change: impl FnOnce(&mut Work)) {
        let mut work = self.work.lock();
        change(&mut work);
        self.pending.store(true, Relaxed);
        if let Some(waker) = work.waker.take() {
            waker.wake();
        }
    }
}

// === impl Interim ===

impl Interim {
    pub(crate) fn new(shared: Arc<IoShared>) -> Self {
        Self(shared)
    }

    /// Queues one 1xx response.
    pub(crate) fn send(&self, status: StatusCode, headers: &HeaderMap) {
        self.0.ask(|work| {
            let start = work.interim.len();
            work.interim.extend_from_slice(
                format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("")).as_bytes(),
            );
            for (name, value) in headers {
                work.interim.extend_from_slice(name.as_str().as_bytes());
                work.interim.extend_from_slice(b": ");
                work.interim.extend_from_slice(value.as_bytes());
                work.interim.extend_from_slice(b"\r\n");
            }
            work.interim.extend_from_slice(b"\r\n");
            if work.interim.len() > MAX_INTERIM {
                work.interim.truncate(start);
            }
        });
    }
}

// === impl ClientIo ===

impl ClientIo {
    pub(crate) fn new(stream: TcpStream) -> (Self, Arc<IoShared>) {
        let shared = Arc::new(IoShared::default());
        let io =
            Self { stream, shared: Arc::clone(&shared), at_boundary: true, writing: Vec::new(), gathered: Vec::new() };
        (io, shared)
    }

    /// Does what the stages asked for. Ready when no 1xx byte is left to be written.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.pending.swap(false, Relaxed) {
            let mut work = self.shared.work.lock();
            if std::mem::take(&mut work.wants_watch) {
                work.watch = self.stream.as_fd().try_clone_to_owned().ok();
                self.shared.watched.notify_one();
            }
            let interim = std::mem::take(&mut work.interim);
            if self.at_boundary {
                self.writing.extend_from_slice(&interim);
            }
        }
        while !self.writing.is_empty() {
            let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, &self.writing))?;
            self.writing.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Before hyper's own bytes.
    fn poll_before_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.pending.load(Relaxed) || !self.writing.is_empty() {
            std::task::ready!(self.poll_work(cx))?;
        }
        self.at_boundary = false;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before && !self.shared.heard.load(Relaxed) {
            self.shared.heard.store(true, Relaxed);
        }
        result
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_before_write(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes the socket once its own buffer is empty.
        self.at_boundary = true;
        if self.shared.pending.load(Relaxed) || !self.writing.is_empty() {
            std::task::ready!(self.poll_work(cx))?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_before_write(cx))?;
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() > GATHERED {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        let Self { stream, gathered, .. } = &mut *self;
        gathered.clear();
        for buf in bufs {
            gathered.extend_from_slice(buf);
        }
        Pin::new(stream).poll_write(cx, gathered)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
