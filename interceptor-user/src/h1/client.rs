//! One HTTP/1.1 connection to an upstream. It has no task of its own: the request that has borrowed it moves its bytes.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Method, StatusCode};

use super::{
    Malformed,
    body::Frame,
    decode::{Decoder, Step},
    encode::Encoder,
    framing::{self, Framing},
    io::{HIGH_WATER, Io},
    parse::{Progress, ResponseHead},
};
use crate::{
    net::Stream,
    proxy::body::{RequestBody, RequestBodyError},
};

/// A connection, and how far it is with its request.
#[derive(Debug)]
pub(crate) struct Connection {
    io: Io,
    /// It has served another request before.
    reused: bool,
    sending: Sending,
    progress: Progress,
    /// A byte of the response has come.
    answered: bool,
    /// Of the response's body, once its head is there.
    decoder: Option<Decoder>,
    persistent: bool,
}

/// How far the request is.
#[derive(Debug)]
enum Sending {
    Body(Encoder),
    /// All has been put into the buffer.
    Rest,
    Done,
    /// The upstream takes no more; it may have answered all the same.
    Failed,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("upstream closed its connection")]
    Closed,
    #[error("connection to the upstream broke")]
    Io(#[source] io::Error),
    #[error("upstream's response is malformed")]
    Malformed(#[from] Malformed),
}

// === impl Connection ===

impl Connection {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            io: Io::new(stream),
            reused: false,
            sending: Sending::Done,
            progress: Progress::default(),
            answered: false,
            decoder: None,
            persistent: true,
        }
    }

    /// Begins with a request: `head` writes its head.
    pub(crate) fn begin(&mut self, framing: Framing, head: impl FnOnce(&mut Vec<u8>)) {
        self.io.mark();
        self.answered = false;
        self.decoder = None;
        head(self.io.output());
        self.sending = match framing {
            Framing::None | Framing::Length(0) => Sending::Rest,
            Framing::Length(_) | Framing::Chunked | Framing::UntilClose => Sending::Body(Encoder::new(framing)),
        };
    }

    /// Sends what there is of the request; ready when that is all, or the upstream takes no more.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut RequestBody,
    ) -> Poll<Result<(), RequestBodyError>> {
        while !matches!(self.sending, Sending::Done | Sending::Failed) {
            let more = self.poll_fill(cx, body)?;
            match self.io.poll_flush(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => {
                    tracing::trace!(%error, "upstream takes no more of a request");
                    self.sending = Sending::Failed;
                    self.persistent = false;
                }
                Poll::Ready(Ok(())) if matches!(self.sending, Sending::Rest) => self.sending = Sending::Done,
                Poll::Ready(Ok(())) => ready!(more),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes one more piece of the body, if there is room for it.
    fn poll_fill(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Result<Poll<()>, RequestBodyError> {
        let Sending::Body(encoder) = &mut self.sending else { return Ok(Poll::Ready(())) };
        if self.io.has_piece() || self.io.waiting() >= HIGH_WATER {
            return Ok(Poll::Ready(()));
        }
        let (fits, ends) = match body.poll_frame(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Some(Err(error))) => return Err(error),
            // Until a byte was sent the request may have to go elsewhere.
            Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                let whole = !self.io.is_touched();
                (encoder.data(&mut self.io, data, whole), encoder.is_full())
            }
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => (encoder.end(self.io.output(), Some(&trailers)), true),
            Poll::Ready(None) => (encoder.end(self.io.output(), None), true),
        };
        if !fits {
            return Err(RequestBodyError::Length);
        }
        if ends {
            self.sending = Sending::Rest;
        }
        Ok(Poll::Ready(()))
    }

    /// The response's next head: an interim one, `101`, or the final one.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
    ) -> Poll<Result<ResponseHead, ClientError>> {
        loop {
            if let Some(head) = self.progress.response(&mut self.io.input)? {
                if !head.status.is_informational() {
                    let framing = framing::response(&head, method)?;
                    // A pod that believes it has opened a tunnel takes what follows for something else than a request.
                    self.persistent &= framing != Framing::UntilClose
                        && *method != Method::CONNECT
                        && framing::is_persistent(head.version, &head.fields);
                    self.decoder = Some(Decoder::new(framing));
                }
                return Poll::Ready(Ok(head));
            }
            match ready!(self.io.poll_read(cx)) {
                Ok(0) => return Poll::Ready(Err(ClientError::Closed)),
                Ok(_) => self.answered = true,
                Err(error) if is_closed(&error) => return Poll::Ready(Err(ClientError::Closed)),
                Err(error) => return Poll::Ready(Err(ClientError::Io(error))),
            }
        }
    }

    /// The next piece of the response's body.
    pub(crate) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ClientError>>> {
        let Some(decoder) = &mut self.decoder else { return Poll::Ready(None) };
        loop {
            match decoder.decode(&mut self.io.input) {
                Ok(Step::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Step::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::Trailers(Box::new(trailers))))),
                Ok(Step::End) => return Poll::Ready(None),
                Ok(Step::Need) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
            match ready!(self.io.poll_read(cx)) {
                Ok(0) if decoder.end() => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(ClientError::Closed))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(ClientError::Io(error)))),
            }
        }
    }

    /// Whether the response's body has been taken whole.
    pub(crate) fn is_body_done(&self) -> bool {
        self.decoder.as_ref().is_none_or(Decoder::is_done)
    }

    /// How many bytes of the body are still to come, where that is known.
    pub(crate) fn body_left(&self) -> Option<u64> {
        self.decoder.as_ref().map_or(Some(0), Decoder::left)
    }

    /// Whether the request has been sent whole.
    pub(crate) fn is_sent(&self) -> bool {
        matches!(self.sending, Sending::Done)
    }

    /// Whether not a byte of the request was sent. Gives the piece of the body back that was taken for it.
    pub(crate) fn is_unsent(&mut self, body: &mut RequestBody) -> bool {
        let unsent = !self.io.is_touched();
        if unsent {
            body.put_back(self.io.take_back());
        }
        unsent
    }

    /// Whether not a byte of a response has come.
    pub(crate) fn is_unanswered(&self) -> bool {
        !self.answered && self.io.input.is_empty()
    }

    pub(crate) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Whether the connection may serve another request. Bytes behind a response are nobody's answer: what follows
    /// them can't be trusted either.
    pub(crate) fn is_reusable(&self) -> bool {
        self.persistent && self.is_sent() && self.is_body_done() && self.io.input.is_empty() && !self.io.has_ended()
    }

    /// Gets ready for another request.
    pub(crate) fn keep(&mut self) {
        self.reused = true;
    }

    /// Gives memory back while there is no request.
    pub(crate) fn rest(&mut self) {
        self.io.rest();
    }

    /// Whether the connection is still open and silent after it was kept.
    pub(crate) fn is_quiet(&mut self) -> bool {
        !self.io.has_news()
    }

    /// The socket after `101`, and what came behind it.
    pub(crate) fn into_parts(self) -> (Stream, Bytes) {
        self.io.into_parts()
    }
}

/// `101` alone ends HTTP on a connection.
pub(crate) fn is_switch(head: &ResponseHead) -> bool {
    head.status == StatusCode::SWITCHING_PROTOCOLS
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted
    )
}
