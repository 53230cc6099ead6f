//! Serves a client over HTTP/2, which hyper speaks.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::{Connection, Phase};
use crate::{
    h1::MAX_HEAD,
    net::Stream,
    proxy::{self, Ask},
    rt::LocalExec,
    worker::Worker,
};

/// Streams a client may have open at once on one connection; Go's server's value, which the add-on has.
const MAX_STREAMS: u32 = 250;

/// A socket of which something was read already.
struct Prefixed {
    ahead: Bytes,
    stream: Stream,
}

/// Serves until the connection ends.
pub(crate) async fn serve(worker: &Rc<Worker>, connection: &Rc<Connection>, stream: Stream, ahead: Bytes) {
    let service = service_fn(|request: Request<Incoming>| {
        let handled = proxy::handle(Rc::clone(worker), Rc::clone(connection), Ask::http2(request));
        async { Ok::<_, Infallible>(handled.await.into_http2()) }
    });
    let io = TokioIo::new(Prefixed { ahead, stream });
    let mut served = pin!(builder().serve_connection(io, service));
    let mut told = false;
    let ended = poll_fn(|cx| {
        if connection.phase() >= Phase::Closing && !std::mem::replace(&mut told, true) {
            served.as_mut().graceful_shutdown();
        }
        served.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        tracing::debug!(client = %connection.peer(), %error, "connection ended");
    }
}

fn builder() -> http2::Builder<LocalExec> {
    let mut builder = http2::Builder::new(LocalExec);
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("1 MiB fits into 32 bits"))
        .timer(TokioTimer::new());
    builder
}

// === impl Prefixed ===

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
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
