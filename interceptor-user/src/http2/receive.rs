//! A body that comes in on a stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::header;

use crate::h1::body::Frame;

/// What comes in on a stream.
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: RecvStream,
    /// Bytes that were taken and have not gone on yet, as far as is known.
    owed: usize,
    /// How many bytes are still to come, where that was said.
    left: Option<u64>,
    /// All data has come; trailers may follow.
    data_done: bool,
}

// === impl Incoming ===

impl Incoming {
    /// What comes in on `stream`, whose head gave this length.
    pub(crate) fn new(stream: RecvStream, length: Option<u64>) -> Self {
        Self { stream, owed: 0, left: length, data_done: false }
    }

    /// Whether nothing more comes.
    pub(crate) fn is_done(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// How many bytes are still to come, where that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        if self.is_done() { Some(0) } else { self.left }
    }

    /// The next piece. Whoever asks for it has passed on the one before, so that the peer may send as much again.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, h2::Error>>> {
        self.release();
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => return Poll::Ready(Some(Ok(Frame::Data(self.taken(data))))),
                // What a server that has answered says to the rest of a request (RFC 9113 §8.1): nothing is missing,
                // unless more was announced.
                Some(Err(error))
                    if error.reason() == Some(Reason::NO_ERROR) && self.left.is_none_or(|left| left == 0) =>
                {
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_done = true,
            }
        }
        let Some(trailers) = ready!(self.stream.poll_trailers(cx)).transpose() else { return Poll::Ready(None) };
        Poll::Ready(Some(trailers.map(|mut trailers| {
            // As over HTTP/1.1: what frames or routes a message must not get a meaning on the next hop.
            trailers.remove(header::CONTENT_LENGTH);
            trailers.remove(header::HOST);
            Frame::Trailers(Box::new(trailers))
        })))
    }

    fn taken(&mut self, data: Bytes) -> Bytes {
        self.owed = data.len();
        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
        if self.stream.is_end_stream() {
            self.release();
        }
        data
    }

    fn release(&mut self) {
        if self.owed > 0 {
            // Fails for a stream that has ended, which needs no more room.
            let _ = self.stream.flow_control().release_capacity(std::mem::take(&mut self.owed));
        }
    }
}
