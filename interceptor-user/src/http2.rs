//! HTTP/2 streams, which the crate `h2` speaks: what passes through them. The server and the upstream side share it.
//!
//! ```text
//!  stream ─► receive (pieces of a body) ─► proxy::body ─► send (pieces onto a stream) ─► stream
//!  stream ◄─ respond (1xx responses, then the head of the response)
//! ```
//!
//! Each direction has back-pressure: the peer is given room for more only when what it sent has gone on, and a piece is
//! asked for only when there is room for it.

use bytes::Bytes;

pub(crate) mod duplex;
pub(crate) mod receive;
pub(crate) mod respond;
pub(crate) mod send;

/// How much a peer may send of one body before it has gone on, in bytes.
pub(crate) const STREAM_WINDOW: u32 = 512 * 1024;

/// A request's stream to an upstream, before its response.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) response: h2::client::ResponseFuture,
    pub(crate) stream: h2::SendStream<Bytes>,
}
