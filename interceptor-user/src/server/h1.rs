//! Serves a client over HTTP/1.1: reads a request, has it handled, writes the response, and again. One task for each
//! connection; request and response move within it, without a channel between them.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version};
use tokio::time::Instant;

use super::{
    connection::{Connection, Phase},
    date,
};
use crate::{
    h1::{
        self, Malformed,
        body::{ClientBody, Frame, Wire},
        encode::{self, Encoder, Sink as _},
        fields::Known,
        framing::{self, Framing},
        io::{HIGH_WATER, Io},
        parse::{Progress, RequestHead},
    },
    net::Stream,
    proxy::{
        self, Ask, Reply,
        body::{BodyError, RequestBody},
        headers,
        interim::Interim,
        target::Target,
        upgrade::Handover,
    },
    worker::Worker,
};

/// What a client of HTTP/2 that knows whom it speaks to says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much of a body that nobody wanted is read so that the connection may go on.
const MAX_DISCARDED: usize = 256 * 1024;

/// How long, and for how many bytes, a connection that is closed on a client that still sends is kept half open: closed
/// at once, it would be reset, and the client might never see the response.
const LINGER: Duration = Duration::from_millis(500);
const MAX_LINGERED: usize = 4 * 1024 * 1024;

/// How a connection goes on after HTTP/1.1.
#[derive(Debug)]
pub(crate) enum Ended {
    Closed,
    /// The client speaks HTTP/2; this was read ahead of the socket.
    Http2(Stream, Bytes),
}

/// What comes next from a client.
enum Next {
    Request(RequestHead),
    Refused(Malformed),
    Http2,
    End,
}

/// How a connection goes on after a response.
enum After {
    Next,
    Close,
    Tunnel(Box<Reply>),
}

/// How a response is to be written.
struct Plan {
    /// The head is all there is.
    bodiless: bool,
    framing: Framing,
    /// The response's own length goes on, although it has no body here.
    length: bool,
    /// The connection goes on afterwards.
    keep: bool,
    version: Version,
}

/// Serves until the connection ends, or turns out to be one of HTTP/2.
pub(crate) async fn serve(worker: &Rc<Worker>, connection: &Rc<Connection>, stream: Stream) -> Ended {
    let wire = Rc::new(RefCell::new(Wire::new(Io::new(stream))));
    let mut progress = Progress::default();
    let mut first = true;
    loop {
        match poll_fn(|cx| poll_next(&wire, connection, &mut progress, first, cx)).await {
            Next::Request(head) => match exchange(worker, connection, &wire, head).await {
                After::Next => first = false,
                After::Close => return Ended::Closed,
                After::Tunnel(reply) => {
                    tunnel(worker, wire, *reply);
                    return Ended::Closed;
                }
            },
            Next::Refused(error) => {
                refuse(&wire, error).await;
                return Ended::Closed;
            }
            Next::Http2 => return into_http2(wire),
            Next::End => return Ended::Closed,
        }
    }
}

fn into_http2(wire: Rc<RefCell<Wire>>) -> Ended {
    // No request has been begun, so nobody else has a handle.
    let Some(wire) = Rc::into_inner(wire) else { return Ended::Closed };
    let (stream, ahead) = wire.into_inner().io.into_parts();
    Ended::Http2(stream, ahead)
}

/// Waits for a request's head.
fn poll_next(
    wire: &RefCell<Wire>,
    connection: &Connection,
    progress: &mut Progress,
    first: bool,
    cx: &mut Context<'_>,
) -> Poll<Next> {
    let io = &mut wire.borrow_mut().io;
    loop {
        if first && !io.input.is_empty() && PREFACE.starts_with(&io.input[..io.input.len().min(PREFACE.len())]) {
            if io.input.len() >= PREFACE.len() {
                return Poll::Ready(Next::Http2);
            }
        } else {
            skip_empty_lines(&mut io.input);
            match progress.request(&mut io.input) {
                Ok(Some(head)) => return Poll::Ready(Next::Request(head)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Next::Refused(error)),
            }
        }
        if io.input.is_empty() && connection.phase() >= Phase::Closing {
            return Poll::Ready(Next::End);
        }
        match ready!(io.poll_read(cx)) {
            Ok(0) | Err(_) => return Poll::Ready(Next::End),
            Ok(_) => connection.heard(),
        }
    }
}

/// Before a request they mean nothing (RFC 9112 §2.2).
fn skip_empty_lines(input: &mut BytesMut) {
    while input.starts_with(b"\r\n") {
        let _ = input.split_to(2);
    }
}

/// One request and its response.
async fn exchange(
    worker: &Rc<Worker>,
    connection: &Rc<Connection>,
    wire: &Rc<RefCell<Wire>>,
    head: RequestHead,
) -> After {
    let framing = match framing::request(&head).and_then(|framing| expectation(&head).map(|()| framing)) {
        Ok(framing) => framing,
        Err(error) => {
            refuse(wire, error).await;
            return After::Close;
        }
    };
    // After CONNECT a client may go on with what is no HTTP, although nobody has opened a tunnel for it.
    let keep = head.method != Method::CONNECT && framing::is_persistent(head.version, &head.fields);
    let (version, is_head) = (head.version, head.method == Method::HEAD);
    let reply = {
        let handled = pin!(proxy::handle(Rc::clone(worker), Rc::clone(connection), ask(wire, head, framing)));
        attend(wire, connection, handled).await
    };
    let Some(mut reply) = reply else { return After::Close };
    if reply.tunnel.is_some() {
        return After::Tunnel(Box::new(reply));
    }
    let going = worker.is_draining() || connection.phase() >= Phase::Closing;
    let mut plan = Plan::new(&reply, is_head, version, keep && !going && !reply.closes);
    {
        let wire = wire.borrow();
        // The client may send its body or not: nobody can tell where the next request begins.
        plan.keep &= !wire.broken && (!wire.awaits_continue || wire.decoder.is_done());
        plan.keep &= wire.decoder.left().is_none_or(|left| left <= MAX_DISCARDED as u64);
    }
    let whole = respond(wire, &mut reply, &plan).await;
    // The request ends here, with the connection to its pod.
    drop(reply);
    if whole.is_none() {
        return After::Close;
    }
    if plan.keep && discard(wire).await {
        wire.borrow_mut().io.rest();
        return After::Next;
    }
    linger(wire).await;
    After::Close
}

/// Waits for the reply while it watches the client, and sends interim responses; `None` when the client has left. A client
/// that still waits when the connection is cut is told that there will be none.
async fn attend(
    wire: &RefCell<Wire>,
    connection: &Connection,
    mut handled: Pin<&mut impl Future<Output = Reply>>,
) -> Option<Reply> {
    poll_fn(|cx| {
        let polled = handled.as_mut().poll(cx);
        let mut wire = wire.borrow_mut();
        if wire.io.waiting() > 0 && matches!(wire.io.poll_flush(cx), Poll::Ready(Err(_))) {
            return Poll::Ready(None);
        }
        match polled {
            Poll::Ready(reply) => Poll::Ready(Some(reply)),
            Poll::Pending if connection.phase() == Phase::Cut => Poll::Ready(Some(proxy::too_late())),
            Poll::Pending => wire.poll_gone(cx).map(|()| None),
        }
    })
    .await
}

/// There is one expectation that a server can meet (RFC 9110 §10.1.1).
fn expectation(head: &RequestHead) -> Result<(), Malformed> {
    let met = head.fields.first(Known::Expect).is_none_or(<[u8]>::is_empty);
    if met || head.fields.expects_continue() { Ok(()) } else { Err(Malformed::Expectation) }
}

/// The request as the stages handle it.
fn ask(wire: &Rc<RefCell<Wire>>, head: RequestHead, framing: Framing) -> Ask {
    let RequestHead { method, target, version, fields } = head;
    wire.borrow_mut().begin(framing, fields.expects_continue() && version == Version::HTTP_11);
    let body = match framing {
        Framing::None | Framing::Length(0) => RequestBody::empty(framing),
        Framing::Length(_) | Framing::Chunked | Framing::UntilClose => {
            RequestBody::client(ClientBody::new(wire), framing)
        }
    };
    let interim = (version == Version::HTTP_11).then(|| Interim::Http1(h1::body::Interim::new(wire)));
    let target = Target::parse(&target)
        .or_else(|| (method == Method::CONNECT && !target.is_empty()).then(|| Target::connect(&target)));
    Ask { method, target, version, fields, body, interim, extended: None }
}

// === impl Plan ===

impl Plan {
    fn new(reply: &Reply, is_head: bool, version: Version, keep: bool) -> Self {
        let left = reply.body.left();
        if is_head || matches!(reply.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            // An upstream's own length stands in its fields; of what is made here, it is that of the body.
            let own = reply.fields.has(Known::ContentLength);
            let framing = left.filter(|left| *left > 0 && is_head && !own).map_or(Framing::None, Framing::Length);
            let length = own && reply.status != StatusCode::NO_CONTENT;
            return Self { bodiless: true, framing, length, keep, version };
        }
        let framing = match left {
            Some(left) => Framing::Length(left),
            None if version == Version::HTTP_11 => Framing::Chunked,
            None => Framing::UntilClose,
        };
        let keep = keep && framing != Framing::UntilClose;
        Self { bodiless: framing == Framing::Length(0), framing, length: false, keep, version }
    }

    /// Writes the head of `reply`.
    fn head(&self, reply: &Reply, output: &mut Vec<u8>) {
        let start = output.len();
        encode::status_line(output, reply.status);
        if self.version == Version::HTTP_10 {
            encode::as_http_1_0(&mut output[start..]);
        }
        headers::response(&reply.fields, &reply.hop, reply.cold, self.length, output);
        encode::framing(output, self.framing);
        if !reply.fields.has(Known::Date) {
            date::write(output);
        }
        if !self.keep {
            output.pair("connection", b"close");
        } else if self.version == Version::HTTP_10 {
            output.pair("connection", b"keep-alive");
        }
        output.extend_from_slice(b"\r\n");
    }
}

/// Writes a response to its end; `None` when it broke off.
async fn respond(wire: &RefCell<Wire>, reply: &mut Reply, plan: &Plan) -> Option<()> {
    {
        let mut wire = wire.borrow_mut();
        wire.responding = true;
        plan.head(reply, wire.io.output());
    }
    let mut encoder = (!plan.bodiless).then(|| Encoder::new(plan.framing));
    poll_fn(|cx| poll_respond(wire, reply, &mut encoder, cx)).await
}

/// Moves a response's body; the encoder is gone once all of it lies in the buffer.
fn poll_respond(
    wire: &RefCell<Wire>,
    reply: &mut Reply,
    encoder: &mut Option<Encoder>,
    cx: &mut Context<'_>,
) -> Poll<Option<()>> {
    loop {
        let more = match poll_fill(wire, reply, encoder, cx) {
            Ok(more) => more,
            Err(error) => {
                tracing::debug!(%error, "response broke off");
                return Poll::Ready(None);
            }
        };
        let mut wire = wire.borrow_mut();
        match ready!(wire.io.poll_flush(cx)) {
            Err(_) => return Poll::Ready(None),
            Ok(()) if encoder.is_none() => return Poll::Ready(Some(())),
            Ok(()) if more.is_pending() => return wire.poll_gone(cx).map(|()| None),
            Ok(()) => {}
        }
    }
}

/// Takes pieces of the body until there is enough to send, or none.
fn poll_fill(
    wire: &RefCell<Wire>,
    reply: &mut Reply,
    encoder: &mut Option<Encoder>,
    cx: &mut Context<'_>,
) -> Result<Poll<()>, Broken> {
    while let Some(writer) = encoder {
        {
            let io = &wire.borrow().io;
            if io.has_piece() || io.waiting() >= HIGH_WATER {
                return Ok(Poll::Ready(()));
            }
        }
        let frame = match reply.body.poll_frame(cx) {
            Poll::Ready(frame) => frame.transpose()?,
            Poll::Pending => return Ok(Poll::Pending),
        };
        let io = &mut wire.borrow_mut().io;
        let (fits, ends) = match frame {
            Some(Frame::Data(data)) => (writer.data(io, data, false), writer.is_full()),
            Some(Frame::Trailers(trailers)) => (writer.end(io.output(), Some(&trailers)), true),
            None => (writer.end(io.output(), None), true),
        };
        if !fits {
            return Err(Broken::Length);
        }
        if ends {
            *encoder = None;
        }
    }
    Ok(Poll::Ready(()))
}

/// Why a response could not be written to its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Body(#[from] BodyError),
    #[error("upstream's body is longer or shorter than it said")]
    Length,
}

/// Hands the connection over to an upgrade, which begins with the `101` to the client.
fn tunnel(worker: &Worker, wire: Rc<RefCell<Wire>>, mut reply: Reply) {
    // The request has ended, so nobody else has a handle.
    let (Some(tunnel), Some(wire)) = (reply.tunnel.take(), Rc::into_inner(wire)) else { return };
    let mut io = wire.into_inner().io;
    let mut head = io.take_output();
    encode::status_line(&mut head, reply.status);
    headers::response(&reply.fields, &reply.hop, reply.cold, false, &mut head);
    headers::upgrade(&tunnel.protocol, &mut head);
    head.extend_from_slice(b"\r\n");
    let (client, ahead) = io.into_parts();
    let copied = tunnel.run(Handover { client, ahead, head }, worker.tunnel_watch());
    runtime::task::spawn_local("tunnel", copied);
}

/// Reads what is left of a request's body, so that the next request can be found. Whether that is worth it.
async fn discard(wire: &RefCell<Wire>) -> bool {
    let mut left = MAX_DISCARDED;
    poll_fn(|cx| {
        let mut wire = wire.borrow_mut();
        while !wire.decoder.is_done() {
            match ready!(wire.poll_body(cx)) {
                Some(Ok(Frame::Data(data))) if data.len() <= left => left -= data.len(),
                Some(Ok(Frame::Trailers(_))) | None => {}
                Some(Ok(Frame::Data(_)) | Err(_)) => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    })
    .await
}

/// Answers what is no request, or none that can be served, in the words of Go's server, and ends the connection.
async fn refuse(wire: &RefCell<Wire>, error: Malformed) {
    tracing::debug!(%error, "client sent no request");
    let status = match error {
        Malformed::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Malformed::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        Malformed::Expectation => StatusCode::EXPECTATION_FAILED,
        Malformed::Head | Malformed::Length | Malformed::Coding | Malformed::Chunk | Malformed::Trailers => {
            StatusCode::BAD_REQUEST
        }
    };
    let text = format!("{} {}", status.as_str(), status.canonical_reason().unwrap_or_default());
    {
        let mut wire = wire.borrow_mut();
        let output = wire.io.output();
        encode::status_line(output, status);
        encode::framing(output, Framing::Length(text.len() as u64));
        date::write(output);
        output.pair("content-type", b"text/plain; charset=utf-8");
        output.pair("connection", b"close");
        output.extend_from_slice(b"\r\n");
        output.extend_from_slice(text.as_bytes());
    }
    if poll_fn(|cx| wire.borrow_mut().io.poll_flush(cx)).await.is_ok() {
        linger(wire).await;
    }
}

/// Ends the response's direction, and waits a moment for the client to have read it. Nothing needs to be said in clear to a
/// client that has nothing more to say itself.
async fn linger(wire: &RefCell<Wire>) {
    {
        let mut wire = wire.borrow_mut();
        if wire.decoder.is_done() && wire.io.input.is_empty() && !wire.io.stream().is_encrypted() {
            return;
        }
        wire.io.input.clear();
    }
    let (mut left, deadline) = (MAX_LINGERED, Instant::now() + LINGER);
    let drained = async {
        let _ = poll_fn(|cx| wire.borrow_mut().io.poll_shutdown(cx)).await;
        while left > 0 {
            match poll_fn(|cx| wire.borrow_mut().io.poll_read(cx)).await {
                Ok(0) | Err(_) => return,
                Ok(count) => left = left.saturating_sub(count),
            }
            wire.borrow_mut().io.input.clear();
        }
    };
    let _ = tokio::time::timeout_at(deadline, drained).await;
}
