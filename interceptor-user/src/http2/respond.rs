//! A client's stream before its response: 1xx responses go first. The stream's task and the request's stages share it.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{SendStream, server::SendResponse};
use http::{Response, StatusCode};
use prometheus_client::metrics::counter::Counter;

use crate::h1::{encode::Sink as _, fields::Fields};

/// Most 1xx responses before a response. They are not subject to flow control, so that a client that does not read would
/// let them pile up; what is more is dropped, as any recipient may (RFC 9110 §15.2).
const MAX_INTERIM: u32 = 32;

/// The way to answer on a stream.
#[derive(Debug)]
pub(crate) struct Responder {
    respond: RefCell<SendResponse<Bytes>>,
    /// How many 1xx responses may still be sent; none once the response has begun.
    interim_left: Cell<u32>,
    /// Counts those beyond.
    dropped: Counter,
}

// === impl Responder ===

impl Responder {
    pub(crate) fn new(respond: SendResponse<Bytes>, dropped: Counter) -> Self {
        Self { respond: RefCell::new(respond), interim_left: Cell::new(MAX_INTERIM), dropped }
    }

    /// Sends one 1xx response, if there is still a response to come.
    pub(crate) fn interim(&self, status: StatusCode, fields: &Fields) {
        // HTTP/2 has no `101` (RFC 9113 §8.6).
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let Some(left) = self.interim_left.get().checked_sub(1) else {
            self.dropped.inc();
            return;
        };
        self.interim_left.set(left);
        let mut head = Response::new(());
        *head.status_mut() = status;
        for field in fields.iter().filter(|field| field.known.passes_before_a_response()) {
            head.headers_mut().line(fields, field);
        }
        if let Err(error) = self.respond.borrow_mut().send_informational(head) {
            tracing::debug!(%error, "interim response was not sent");
        }
    }

    /// Begins the response; with `last` its head is all there is.
    pub(crate) fn begin(&self, head: Response<()>, last: bool) -> Result<SendStream<Bytes>, h2::Error> {
        self.interim_left.set(0);
        self.respond.borrow_mut().send_response(head, last)
    }

    /// Ready when the client has reset the stream before the response, or its connection has ended.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.respond.borrow_mut().poll_reset(cx).map(|_reason| ())
    }

    /// Ends the stream without a response.
    pub(crate) fn reset(&self, reason: h2::Reason) {
        self.respond.borrow_mut().send_reset(reason);
    }
}
