//! HTTP/1.1 on the wire: heads, bodies and the socket they pass through. The server and the upstream side share it.
//!
//! ```text
//!  socket ─► io (bytes read ahead) ─► parse (a head's lines) ─► framing (where its body ends) ─► decode (the body)
//!  socket ◄─ io (bytes to be sent) ◄─ encode (start line, fields, chunks) ◄─ proxy::headers (what goes on)
//! ```
//!
//! Parsing, framing, decoding and encoding are functions of bytes alone; only `io`, `client` and `body` know a socket.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod fields;
pub(crate) mod framing;
pub(crate) mod io;
pub(crate) mod parse;

/// Most bytes of a message's head; Go's server's and transport's value, which the add-on has.
pub(crate) const MAX_HEAD: usize = 1024 * 1024;

/// Most lines of a head. Each costs a few bytes beside its own, so that a head of empty lines could otherwise take many
/// times its size.
pub(crate) const MAX_LINES: usize = 4096;

/// Why foreign bytes are no HTTP/1.1 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("head is not HTTP/1.1")]
    Head,
    #[error("version of HTTP is not 1.0 or 1.1")]
    Version,
    #[error("client expects something else than to be told to continue")]
    Expectation,
    #[error("head is larger than {MAX_HEAD} bytes or has more than {MAX_LINES} lines")]
    TooLarge,
    #[error("length of the body is given twice, or not as a number")]
    Length,
    #[error("transfer coding is not chunked alone")]
    Coding,
    #[error("chunk does not begin with its size, or does not end where it should")]
    Chunk,
    #[error("trailers are no fields, or too large")]
    Trailers,
}
