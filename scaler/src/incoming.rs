//! Connections to the gRPC port, bounded. Read by the gRPC server alone.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Most connections at a time. KEDA keeps one per process and the kubelet one per probe; the rest is for people.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
/// Without descriptors, accepting fails at once and again: wait for some to be closed.
const PAUSE: Duration = Duration::from_millis(100);

/// Counts connections that were closed at once because too many were open.
#[derive(Debug, Default)]
pub struct Refused(AtomicU64);

/// A connection that is counted while it is open.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

/// Every connection that is accepted, at most `limit` at a time; further ones are closed at once.
pub(crate) fn incoming(
    listener: TcpListener,
    limit: usize,
    refused: Arc<Refused>,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let state = (listener, Arc::new(Semaphore::new(limit)), refused);
    stream::unfold(state, |(listener, free, refused)| async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                refused.0.fetch_add(1, Relaxed);
                continue;
            };
            // An edge must not wait for the acknowledgement of the message before it.
            if stream.set_nodelay(true).is_err() {
                continue;
            }
            return Some((Ok(Connection { stream, _permit: permit }), (listener, free, refused)));
        }
    })
}

// === impl Refused ===

impl Refused {
    /// How many, ever.
    pub(crate) fn total(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_connection_too_many_is_closed_until_another_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let refused = Arc::new(Refused::default());
        let mut incoming = Box::pin(incoming(listener, 1, Arc::clone(&refused)));
        let _client = TcpStream::connect(address).await.unwrap();
        let first = incoming.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let closed = async { second.read(&mut [0; 1]).await.unwrap() };
        tokio::select! {
            read = closed => assert_eq!(read, 0),
            _ = incoming.next() => panic!("the second connection was let in"),
        }
        assert_eq!(refused.total(), 1);
        drop(first);
        let _client = TcpStream::connect(address).await.unwrap();
        assert!(incoming.next().await.unwrap().is_ok());
    }
}
