//! A socket with the bytes read ahead of it and the bytes that wait to be sent on it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite as _;
use tokio_util::io::poll_read_buf;

use crate::net::Stream;

/// Room for one read: at first, and at most, once reads fill what they are given.
const READ_FIRST: usize = 4 * 1024;
const READ_MOST: usize = 128 * 1024;

/// Less room than this is not worth a read.
const READ_LEAST: usize = 1024;

/// Larger pieces of a body are sent from where they lie, smaller ones are copied behind what is to be sent already.
const COPIED: usize = 8 * 1024;

/// What waits to be sent at most before more is asked for.
pub(crate) const HIGH_WATER: usize = 64 * 1024;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Io {
    stream: Stream,
    pub(crate) input: BytesMut,
    room: usize,
    ended: bool,
    output: Vec<u8>,
    /// How much of `output` has been sent.
    sent: usize,
    /// Goes behind `output`, with `tail` behind it.
    piece: Bytes,
    tail: &'static [u8],
    /// Whether anything was ever sent since [`Io::mark`].
    touched: bool,
}

// === impl Io ===

impl Io {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            room: READ_FIRST,
            ended: false,
            output: Vec::new(),
            sent: 0,
            piece: Bytes::new(),
            tail: &[],
            touched: false,
        }
    }

    /// Reads more bytes behind `input`; none means that the peer has ended.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.input.capacity() - self.input.len() < READ_LEAST.max(self.room / 2) {
            self.input.reserve(self.room);
        }
        let room = self.input.capacity() - self.input.len();
        let count = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input))?;
        if count == room && self.room < READ_MOST {
            self.room *= 2;
        }
        self.ended = count == 0;
        Poll::Ready(Ok(count))
    }

    /// Whether the peer has ended or sent something since the last read.
    pub(crate) fn has_news(&mut self) -> bool {
        self.ended || !self.input.is_empty() || !self.stream.is_quiet()
    }

    /// Whether the peer has ended what it sends.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Forgets that anything was sent.
    pub(crate) fn mark(&mut self) {
        self.touched = false;
    }

    /// Whether a byte was sent since [`Io::mark`].
    pub(crate) fn is_touched(&self) -> bool {
        self.touched
    }

    /// Where bytes are put that are to be sent next. Nothing may wait behind it: see [`Io::has_piece`].
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        debug_assert!(!self.has_piece(), "bytes would be sent out of order");
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
        &mut self.output
    }

    /// Sends `data` and `tail` behind the output.
    pub(crate) fn push(&mut self, data: Bytes, tail: &'static [u8]) {
        if data.len() > COPIED {
            return self.push_whole(data, tail);
        }
        let output = self.output();
        output.extend_from_slice(&data);
        output.extend_from_slice(tail);
    }

    /// The same, but `data` is not copied, so that it can be taken back.
    pub(crate) fn push_whole(&mut self, data: Bytes, tail: &'static [u8]) {
        debug_assert!(!self.has_piece(), "bytes would be sent out of order");
        self.piece = data;
        self.tail = tail;
    }

    /// Takes the piece back, and forgets all that waits.
    pub(crate) fn take_back(&mut self) -> Bytes {
        self.output.clear();
        self.sent = 0;
        self.tail = &[];
        std::mem::take(&mut self.piece)
    }

    /// Whether a piece waits, so that nothing may be put behind the output.
    pub(crate) fn has_piece(&self) -> bool {
        !self.piece.is_empty() || !self.tail.is_empty()
    }

    /// How many bytes wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.output.len() - self.sent + self.piece.len() + self.tail.len()
    }

    /// Sends all that waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.waiting() > 0 {
            let head = &self.output[self.sent..];
            let stream = Pin::new(&mut self.stream);
            let mut count = if self.piece.is_empty() && self.tail.is_empty() {
                ready!(stream.poll_write(cx, head))?
            } else {
                let parts = [IoSlice::new(head), IoSlice::new(&self.piece), IoSlice::new(self.tail)];
                let first = parts.iter().position(|part| !part.is_empty()).unwrap_or_default();
                ready!(stream.poll_write_vectored(cx, &parts[first..]))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.touched = true;
            let of_head = count.min(head.len());
            self.sent += of_head;
            count -= of_head;
            let of_piece = count.min(self.piece.len());
            if of_piece == self.piece.len() {
                // Lets the buffer go that it was a part of.
                self.piece = Bytes::new();
            } else {
                self.piece.advance(of_piece);
            }
            self.tail = &self.tail[count - of_piece..];
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if self.output.capacity() > HIGH_WATER {
            self.output = Vec::new();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends what is sent; the peer may go on.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Gives large buffers back while nothing happens.
    pub(crate) fn rest(&mut self) {
        if self.input.is_empty() && self.room > READ_FIRST {
            self.input = BytesMut::new();
            self.room = READ_FIRST;
        }
    }

    /// Takes what waits to be sent.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        debug_assert!(!self.has_piece(), "a response would be sent out of order");
        let sent = std::mem::take(&mut self.sent);
        let mut output = std::mem::take(&mut self.output);
        output.drain(..sent);
        output
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The socket, and what was read ahead of it.
    pub(crate) fn into_parts(self) -> (Stream, Bytes) {
        (self.stream, self.input.freeze())
    }
}
