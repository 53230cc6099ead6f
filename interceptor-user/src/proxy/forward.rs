//! Sends a request on a connection and waits for the response's head, within the deadlines.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{Method, Request, Response, StatusCode, Uri, Version, header};
use interceptor_core::upstream::Protocol;
use tokio::time::Instant;

use super::{
    body::{RequestBody, RequestBodyError},
    deadline::Timer,
    error::ProxyError,
    extended::Extended,
    headers::{self, Outgoing},
    interim::Interim,
    pool::Lease,
    trace::Parent,
};
use crate::{
    h1::{
        body::ClientBodyError,
        client::{ClientError, Connection, is_switch},
        encode::{self, Sink as _},
        fields::Fields,
        framing::Framing,
        parse::ResponseHead,
    },
    http2::{
        Call,
        send::{Broken, Pieces as _, Sender},
    },
};

/// What became of a request that was to be sent.
pub(crate) enum Sent {
    /// A response's head from an HTTP/1.1 connection.
    Http1(ResponseHead),
    /// A response from an HTTP/2 one.
    Http2(Box<Answer>),
    /// What an upgrade asked for is open, on an HTTP/2 one.
    Opened(Box<Opened>),
    /// Not a byte of it was sent: it may go to any connection.
    Unsent,
    /// The request may be repeated. Either a kept connection was closed before it answered, and the request had no body
    /// and asks for nothing to be changed (RFC 9110 §9.2.2; Go's transport does the same); or an HTTP/2 peer said that
    /// it did not process the request (RFC 9113 §8.7), which had no body either.
    Repeat,
}

/// A response's head over HTTP/2.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<RecvStream>,
    /// What is still being sent of the request.
    pub(crate) sender: Option<Sender>,
}

/// A stream that an extended CONNECT has opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) response: Response<RecvStream>,
    pub(crate) stream: SendStream<Bytes>,
}

/// The deadlines of one request on a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// From the end of the request to the response's head.
    pub(crate) response_header: Option<Duration>,
    /// The whole request.
    pub(crate) request: Option<Instant>,
    /// When the connection was there.
    pub(crate) began: Instant,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outbound<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path_and_query: &'a Bytes,
    pub(crate) fields: &'a Fields,
    pub(crate) outgoing: Outgoing<'a>,
    pub(crate) interim: Option<&'a Interim>,
    pub(crate) extended: Option<&'a Extended>,
}

/// Sends a request on `lease`.
///
/// Dropping the future closes an HTTP/1.1 connection with the lease, and resets an HTTP/2 stream.
pub(crate) async fn send(
    lease: &mut Lease,
    outbound: &Outbound<'_>,
    body: &mut RequestBody,
    deadlines: Deadlines,
    timer: &mut Timer,
) -> Result<Sent, ProxyError> {
    match lease.protocol() {
        Protocol::Http1 => {
            let Some(connection) = lease.http1() else { return Err(ProxyError::UpstreamClosed) };
            connection.begin(body.framing(), |output| outbound.write(body.framing(), output));
            poll_fn(|cx| {
                let polled = poll_http1(connection, outbound, body, cx);
                if polled.is_ready() { polled } else { poll_late(deadlines, body, timer, cx) }
            })
            .await
        }
        Protocol::H2c if outbound.is_upgrade(body) => open_http2(lease, outbound, body, deadlines, timer).await,
        Protocol::H2c => send_http2(lease, outbound, body, deadlines, timer).await,
    }
}

// === impl Deadlines ===

impl Deadlines {
    /// The same on a connection that was there at this time.
    pub(crate) fn from(self, began: Instant) -> Self {
        Self { began, ..self }
    }
}

// === impl Outbound ===

impl<'a> Outbound<'a> {
    /// The same, with what the upstream's spans are to be below.
    pub(crate) fn traced(self, parent: &'a Parent) -> Self {
        Self { outgoing: Outgoing { trace: Some(parent), ..self.outgoing }, ..self }
    }

    /// Whether it asks for another protocol, in a way that HTTP/2 has too.
    fn is_upgrade(&self, body: &RequestBody) -> bool {
        self.upgrade().is_some() && *self.method == Method::GET && body.is_done()
    }

    /// The protocol that it asks for, if the next hop is to be asked for it. HTTP/2 in clear is none that a pod which speaks it
    /// already could change to.
    pub(crate) fn upgrade(&self) -> Option<&Bytes> {
        let asked = self.outgoing.hop.upgrade.as_ref().filter(|_| self.outgoing.upgradable);
        asked.filter(|protocol| !protocol.eq_ignore_ascii_case(b"h2c"))
    }

    /// An upgrade in the form of HTTP/2 (RFC 8441 §4); `None` when it has none.
    fn extended_head(&self, encrypted: bool) -> Option<Request<()>> {
        let protocol = std::str::from_utf8(self.upgrade()?).ok()?;
        let mut request = self.head(Framing::None, encrypted)?;
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
        request.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
        Some(request)
    }

    /// The head in the form of HTTP/1.1.
    pub(crate) fn write(&self, framing: Framing, output: &mut Vec<u8>) {
        let Self { method, path_and_query, fields, outgoing, interim: _, extended: _ } = self;
        // CONNECT to a host has no path (RFC 9110 §9.3.6).
        let target = if path_and_query.is_empty() { outgoing.host } else { path_and_query };
        encode::request_line(output, method, target);
        output.pair("host", outgoing.host);
        headers::request(fields, outgoing, output);
        encode::framing(output, framing);
        output.extend_from_slice(b"\r\n");
    }

    /// The head in the form of HTTP/2; `None` when the host can't be an authority.
    fn head(&self, framing: Framing, encrypted: bool) -> Option<Request<()>> {
        let mut parts = http::uri::Parts::default();
        parts.authority = Some(http::uri::Authority::try_from(self.outgoing.host).ok()?);
        if !self.path_and_query.is_empty() {
            parts.scheme = Some(if encrypted { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
            parts.path_and_query = Some(http::uri::PathAndQuery::from_maybe_shared(self.path_and_query.clone()).ok()?);
        }
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        *request.version_mut() = Version::HTTP_2;
        let outgoing = Outgoing { upgradable: false, ..self.outgoing };
        headers::request(self.fields, &outgoing, request.headers_mut());
        if let Framing::Length(length) = framing {
            request.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        Some(request)
    }
}

/// Moves both directions until there is a head.
fn poll_http1(
    connection: &mut Connection,
    outbound: &Outbound<'_>,
    body: &mut RequestBody,
    cx: &mut Context<'_>,
) -> Poll<Result<Sent, ProxyError>> {
    loop {
        if let Poll::Ready(Err(error)) = connection.poll_send(cx, body) {
            return Poll::Ready(Err(body_error(error)));
        }
        let head = match connection.poll_head(cx, outbound.method) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(head)) => head,
            Poll::Ready(Err(error)) => return Poll::Ready(failed(connection, outbound.method, body, error)),
        };
        if !head.status.is_informational() || is_switch(&head) {
            return Poll::Ready(Ok(Sent::Http1(head)));
        }
        interim(head.status, &head.fields, outbound, body);
    }
}

fn failed(
    connection: &mut Connection,
    method: &Method,
    body: &mut RequestBody,
    error: ClientError,
) -> Result<Sent, ProxyError> {
    if connection.is_unsent(body) {
        return Ok(Sent::Unsent);
    }
    match error {
        ClientError::Closed
            if connection.is_reused() && connection.is_unanswered() && body.sent().is_none() && is_safe(method) =>
        {
            Ok(Sent::Repeat)
        }
        ClientError::Closed => Err(ProxyError::UpstreamClosed),
        ClientError::Io(_) | ClientError::Malformed(_) => Err(ProxyError::Http1(error)),
    }
}

fn body_error(error: RequestBodyError) -> ProxyError {
    match error {
        RequestBodyError::Client(ClientBodyError::Gone) | RequestBodyError::Stream(_) => ProxyError::ClientGone,
        RequestBodyError::Client(ClientBodyError::Malformed(_)) | RequestBodyError::Length => {
            ProxyError::BadBody(error)
        }
    }
}

/// Ready when one of the deadlines has passed.
fn poll_late(
    deadlines: Deadlines,
    body: &RequestBody,
    timer: &mut Timer,
    cx: &mut Context<'_>,
) -> Poll<Result<Sent, ProxyError>> {
    if let Some(deadline) = deadlines.request
        && timer.poll(cx, deadline).is_ready()
    {
        return Poll::Ready(Err(ProxyError::RequestTimeout));
    }
    // The response head's deadline runs from when the request was taken whole.
    let from = body.sent().map_or(Some(deadlines.began), |sent| sent.get());
    if let Some((limit, from)) = deadlines.response_header.zip(from)
        && timer.poll(cx, from + limit).is_ready()
    {
        return Poll::Ready(Err(ProxyError::ResponseHeaderTimeout));
    }
    Poll::Pending
}

async fn send_http2(
    lease: &mut Lease,
    outbound: &Outbound<'_>,
    body: &mut RequestBody,
    deadlines: Deadlines,
    timer: &mut Timer,
) -> Result<Sent, ProxyError> {
    let framing = body.framing();
    let head = outbound.head(framing, lease.is_encrypted()).ok_or(ProxyError::BadTarget)?;
    let last = body.is_done();
    let Some(call) = lease.call(head, last) else { return Ok(Sent::Unsent) };
    let Call { mut response, stream } = call.map_err(ProxyError::Http2)?;
    let mut sender = (!last).then(|| Sender::new(stream));
    poll_fn(|cx| {
        let polled = poll_http2(&mut response, &mut sender, outbound, body, cx);
        if polled.is_ready() { polled } else { poll_late(deadlines, body, timer, cx) }
    })
    .await
}

/// Asks for an upgrade by an extended CONNECT.
async fn open_http2(
    lease: &mut Lease,
    outbound: &Outbound<'_>,
    body: &mut RequestBody,
    deadlines: Deadlines,
    timer: &mut Timer,
) -> Result<Sent, ProxyError> {
    let head = outbound.extended_head(lease.is_encrypted()).ok_or(ProxyError::BadTarget)?;
    let Some(call) = lease.call(head, false) else { return Ok(Sent::Unsent) };
    let Call { mut response, mut stream } = call.map_err(ProxyError::Http2)?;
    let sent = poll_fn(|cx| {
        let polled = poll_http2(&mut response, &mut None, outbound, body, cx);
        if polled.is_ready() { polled } else { poll_late(deadlines, body, timer, cx) }
    });
    match sent.await? {
        Sent::Http2(answer) if answer.response.status().is_success() => {
            Ok(Sent::Opened(Box::new(Opened { response: answer.response, stream })))
        }
        Sent::Http2(answer) => {
            // Nothing more comes from here; fails for a stream that has ended.
            let _ = stream.send_data(Bytes::new(), true);
            Ok(Sent::Http2(answer))
        }
        sent => Ok(sent),
    }
}

/// Moves both directions until there is a head.
fn poll_http2(
    response: &mut ResponseFuture,
    sender: &mut Option<Sender>,
    outbound: &Outbound<'_>,
    body: &mut RequestBody,
    cx: &mut Context<'_>,
) -> Poll<Result<Sent, ProxyError>> {
    loop {
        match sender.as_mut().map(|sender| sender.poll(cx, body)) {
            // What became of a stream that takes no more, the response tells.
            Some(Poll::Ready(Ok(()) | Err(Broken::Stream(_)))) => *sender = None,
            Some(Poll::Ready(Err(Broken::Body(error)))) => return Poll::Ready(Err(body_error(error))),
            Some(Poll::Pending) | None => {}
        }
        match response.poll_informational(cx) {
            Poll::Ready(Some(Ok(head))) => interim(head.status(), &Fields::from_map(head.headers()), outbound, body),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(failed_http2(error, outbound.method, body)),
            Poll::Ready(None) => break,
            Poll::Pending => return Poll::Pending,
        }
    }
    Pin::new(response).poll(cx).map(|response| match response {
        Ok(response) => Ok(Sent::Http2(Box::new(Answer { response, sender: sender.take() }))),
        Err(error) => failed_http2(error, outbound.method, body),
    })
}

/// Passes on what comes before a response.
fn interim(status: StatusCode, fields: &Fields, outbound: &Outbound<'_>, body: &mut RequestBody) {
    if status == StatusCode::CONTINUE {
        // The client is told when its body is first asked for.
        body.go_on();
    } else if let Some(interim) = outbound.interim {
        interim.send(status, fields);
    }
}

fn failed_http2(error: h2::Error, method: &Method, body: &RequestBody) -> Result<Sent, ProxyError> {
    let broke = error.is_io();
    if body.sent().is_none() && (broke && is_safe(method) || is_refused(&error)) {
        return Ok(Sent::Repeat);
    }
    Err(if broke { ProxyError::UpstreamClosed } else { ProxyError::Http2(error) })
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// The peer has not looked at the request: it had more streams than it takes, or goes away and had seen the last that it
/// takes (RFC 9113 §8.7).
fn is_refused(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    let going = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
    error.is_remote() && (refused || going)
}
