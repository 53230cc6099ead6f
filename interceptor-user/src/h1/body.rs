//! A client's connection as its requests share it: the body that is read from it, and 1xx responses that go before the
//! response. Owned by `server::h1`; the request's stages hold handles.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::{
    Malformed,
    decode::{Decoder, Step},
    encode::{self, Sink as _},
    fields::Fields,
    framing::Framing,
    io::{HIGH_WATER, Io},
};

/// A piece of a body.
#[derive(Debug)]
pub(crate) enum Frame {
    Data(Bytes),
    /// The last piece, if there are any.
    Trailers(Box<HeaderMap>),
}

/// Why a client's body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientBodyError {
    #[error("client left in the middle of its body")]
    Gone,
    #[error("client's body is malformed")]
    Malformed(#[source] Malformed),
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) io: Io,
    /// Of the request that is being served.
    pub(crate) decoder: Decoder,
    /// Its body is malformed, so that nobody can tell where the next request begins.
    pub(crate) broken: bool,
    /// Which request that is.
    number: u64,
    /// The client waits for `100 Continue` before it sends its body.
    pub(crate) awaits_continue: bool,
    /// The response has begun, so that no interim one may follow.
    pub(crate) responding: bool,
    /// Of the connection's task, while another reads the body.
    server: Option<Waker>,
}

/// The body of one request.
#[derive(Debug)]
pub(crate) struct ClientBody {
    wire: Rc<RefCell<Wire>>,
    number: u64,
}

/// Sends 1xx responses to a client.
#[derive(Clone, Debug)]
pub(crate) struct Interim {
    wire: Rc<RefCell<Wire>>,
    number: u64,
}

// === impl Wire ===

impl Wire {
    pub(crate) fn new(io: Io) -> Self {
        Self {
            io,
            decoder: Decoder::new(Framing::None),
            broken: false,
            number: 0,
            awaits_continue: false,
            responding: false,
            server: None,
        }
    }

    /// The next request's head was read. Handles of the one before have no effect any more.
    pub(crate) fn begin(&mut self, framing: Framing, awaits_continue: bool) {
        self.decoder = Decoder::new(framing);
        self.number += 1;
        self.awaits_continue = awaits_continue;
        self.responding = false;
        self.server = None;
    }

    /// Ready when the client has left. Reads ahead while nobody reads a body, within limits.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.decoder.is_done() {
            if !self.server.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                self.server = Some(cx.waker().clone());
            }
            return if self.io.has_ended() { Poll::Ready(()) } else { Poll::Pending };
        }
        while self.io.input.len() < HIGH_WATER {
            match ready!(self.io.poll_read(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// The next piece of the body, which is no more than can be read at once.
    pub(crate) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ClientBodyError>>> {
        let Self { io, decoder, broken, .. } = self;
        let frame = loop {
            match decoder.decode(&mut io.input) {
                Ok(Step::Data(data)) => break Some(Ok(Frame::Data(data))),
                Ok(Step::Trailers(trailers)) => break Some(Ok(Frame::Trailers(Box::new(trailers)))),
                Ok(Step::End) => break None,
                Ok(Step::Need) => {}
                Err(error) => {
                    *broken = true;
                    break Some(Err(ClientBodyError::Malformed(error)));
                }
            }
            match ready!(io.poll_read(cx)) {
                Ok(0) | Err(_) => break Some(Err(ClientBodyError::Gone)),
                Ok(_) => {}
            }
        };
        if self.decoder.is_done() || matches!(frame, Some(Err(_))) {
            // The connection's task watches for the client's leaving from now on.
            if let Some(server) = self.server.take()
                && !server.will_wake(cx.waker())
            {
                server.wake();
            }
        }
        Poll::Ready(frame)
    }

    /// Tells the client to go on, if it waits for that.
    fn let_go(&mut self, cx: &mut Context<'_>) {
        if std::mem::take(&mut self.awaits_continue) && !self.responding && self.io.input.is_empty() {
            self.io.output().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            // A failure shows when the body is read.
            let _ = self.io.poll_flush(cx);
        }
    }
}

// === impl ClientBody ===

impl ClientBody {
    /// The body of the request that was begun last.
    pub(crate) fn new(wire: &Rc<RefCell<Wire>>) -> Self {
        Self { wire: Rc::clone(wire), number: wire.borrow().number }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ClientBodyError>>> {
        let mut wire = self.wire.borrow_mut();
        if wire.number != self.number {
            return Poll::Ready(Some(Err(ClientBodyError::Gone)));
        }
        wire.let_go(cx);
        wire.poll_body(cx)
    }

    /// Whether all of it has been taken.
    pub(crate) fn is_done(&self) -> bool {
        let wire = self.wire.borrow();
        wire.number != self.number || wire.decoder.is_done()
    }

    /// A watch on the client, for while the body is not read; a socket of its own, so that it takes no wake-up away
    /// from whoever reads.
    pub(crate) fn watch(&self) -> std::io::Result<tokio::net::TcpStream> {
        use std::os::fd::AsFd as _;
        let socket = self.wire.borrow().io.stream().as_fd().try_clone_to_owned()?;
        tokio::net::TcpStream::from_std(std::net::TcpStream::from(socket))
    }
}

// === impl Interim ===

impl Interim {
    /// For the request that was begun last.
    pub(crate) fn new(wire: &Rc<RefCell<Wire>>) -> Self {
        Self { wire: Rc::clone(wire), number: wire.borrow().number }
    }

    /// Puts one 1xx response before the response; the connection's task sends it. What is too much is dropped, as any
    /// recipient may (RFC 9110 §15.2).
    pub(crate) fn send(&self, status: StatusCode, fields: &Fields) {
        let mut wire = self.wire.borrow_mut();
        if wire.number != self.number || wire.responding || wire.io.waiting() > HIGH_WATER {
            return;
        }
        let output = wire.io.output();
        encode::status_line(output, status);
        for field in fields.iter().filter(|field| field.known.passes_before_a_response()) {
            output.line(fields, field);
        }
        output.extend_from_slice(b"\r\n");
    }
}
