//! A stream as a connection: what an extended CONNECT makes of it (RFC 8441).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Both directions of a stream.
#[derive(Debug)]
pub(crate) struct Duplex {
    incoming: RecvStream,
    /// Has come and was not read yet.
    ahead: Bytes,
    outgoing: SendStream<Bytes>,
}

// === impl Duplex ===

impl Duplex {
    pub(crate) fn new(incoming: RecvStream, outgoing: SendStream<Bytes>) -> Self {
        Self { incoming, ahead: Bytes::new(), outgoing }
    }
}

impl AsyncRead for Duplex {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { incoming, ahead, .. } = &mut *self;
        while ahead.is_empty() {
            match ready!(incoming.poll_data(cx)) {
                Some(data) => *ahead = data.map_err(broken)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = ahead.len().min(buf.remaining());
        buf.put_slice(&ahead[..count]);
        ahead.advance(count);
        // Fails for a stream that has ended, which needs no more room.
        let _ = incoming.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.outgoing.reserve_capacity(buf.len());
        while self.outgoing.capacity() == 0 {
            match ready!(self.outgoing.poll_capacity(cx)) {
                Some(room) => _ = room.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = self.outgoing.capacity().min(buf.len());
        self.outgoing.send_data(Bytes::copy_from_slice(&buf[..count]), false).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task sends what there is.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.reserve_capacity(0);
        Poll::Ready(self.outgoing.send_data(Bytes::new(), true).map_err(broken))
    }
}

fn broken(error: h2::Error) -> io::Error {
    match error.reason() {
        // As a reset of a TCP connection (RFC 8441 §4).
        Some(Reason::CANCEL) => io::ErrorKind::ConnectionReset.into(),
        _ => io::Error::other(error),
    }
}
