//! A body that goes out on a stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};

use crate::h1::body::Frame;

/// A body as the stages give it.
pub(crate) trait Pieces {
    /// Why it breaks off.
    type Error;

    /// The next piece.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Self::Error>>>;

    /// Whether nothing more comes.
    fn is_done(&self) -> bool;
}

/// Moves a body onto a stream, as fast as the peer takes it.
#[derive(Debug)]
pub(crate) struct Sender {
    stream: SendStream<Bytes>,
    /// A piece for which there is no room yet, and whether it is the last.
    piece: Option<(Bytes, bool)>,
}

/// Why a body was not sent to its end.
#[derive(Debug)]
pub(crate) enum Broken<E> {
    /// It broke off itself.
    Body(E),
    /// The peer takes no more.
    Stream(h2::Error),
}

// === impl Sender ===

impl Sender {
    pub(crate) fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, piece: None }
    }

    /// Sends what there is of `body`; ready when that is all.
    pub(crate) fn poll<P: Pieces>(&mut self, cx: &mut Context<'_>, body: &mut P) -> Poll<Result<(), Broken<P::Error>>> {
        loop {
            // Asked first, so that a peer that resets the stream is heard while the body is waited for.
            match self.stream.poll_reset(cx) {
                Poll::Ready(reason) => {
                    return Poll::Ready(Err(Broken::Stream(reason.map_or_else(|error| error, h2::Error::from))));
                }
                Poll::Pending => {}
            }
            if self.piece.is_some() {
                ready!(self.poll_room(cx)).map_err(Broken::Stream)?;
            }
            if let Some((piece, last)) = self.piece.take() {
                self.stream.send_data(piece, last).map_err(Broken::Stream)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(body.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => {
                    let last = body.is_done();
                    if !data.is_empty() {
                        // What is asked for counts against the whole connection, so no more than the least: the piece
                        // is sent whole as soon as there is any room, and the next one waits until it has gone.
                        self.stream.reserve_capacity(1);
                    }
                    if last || !data.is_empty() {
                        self.piece = Some((data, last));
                    }
                }
                Some(Ok(Frame::Trailers(trailers))) => {
                    self.stream.reserve_capacity(0);
                    return Poll::Ready(self.stream.send_trailers(*trailers).map_err(Broken::Stream));
                }
                Some(Err(error)) => return Poll::Ready(Err(Broken::Body(error))),
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(Broken::Stream)),
            }
        }
    }

    /// Ends the stream before its end.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Ready when there is room for the piece.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let needs_room = self.piece.as_ref().is_some_and(|(piece, _)| !piece.is_empty());
        while needs_room && self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(room) => _ = room?,
                None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}
