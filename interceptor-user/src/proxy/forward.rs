//! Sends a request on a connection and waits for the response's head, within the deadlines.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::{body::Incoming, client::conn::TrySendError};
use interceptor_core::upstream::Protocol;
use tokio::time::Instant;

use super::{
    body::{RequestBody, RequestBodyError},
    deadline::Timer,
    error::ProxyError,
    headers::{self, Outgoing},
    pool::Lease,
};
use crate::h1::{
    body::{ClientBodyError, Interim},
    client::{ClientError, Connection, is_switch},
    encode::{self, Sink as _},
    fields::Fields,
    framing::Framing,
    parse::ResponseHead,
};

/// What became of a request that was to be sent.
pub(crate) enum Sent {
    /// A response's head from an HTTP/1.1 connection.
    Http1(ResponseHead),
    /// A response from an HTTP/2 one.
    Http2(Response<Incoming>),
    /// Not a byte of it was sent: it may go to any connection.
    Unsent,
    /// The request may be repeated. Either a kept connection was closed before it answered, and the request had no body
    /// and asks for nothing to be changed (RFC 9110 §9.2.2; Go's transport does the same); or an HTTP/2 peer said that
    /// it did not process the request (RFC 9113 §8.7), which had no body either.
    Repeat,
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

impl Outbound<'_> {
    /// The head in the form of HTTP/1.1.
    fn write(&self, framing: Framing, output: &mut Vec<u8>) {
        let Self { method, path_and_query, fields, outgoing, interim: _ } = self;
        encode::request_line(output, method, path_and_query);
        output.pair("host", outgoing.host);
        headers::request(fields, outgoing, output);
        encode::framing(output, framing);
        output.extend_from_slice(b"\r\n");
    }

    /// The head in the form of HTTP/2; `None` when the host can't be an authority.
    fn head(&self, framing: Framing, encrypted: bool) -> Option<Request<()>> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if encrypted { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
        parts.authority = Some(http::uri::Authority::try_from(self.outgoing.host).ok()?);
        parts.path_and_query = Some(http::uri::PathAndQuery::from_maybe_shared(self.path_and_query.clone()).ok()?);
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        *request.version_mut() = Version::HTTP_2;
        let outgoing = Outgoing { upgradable: false, ..self.outgoing };
        headers::request(self.fields, &outgoing, request.headers_mut());
        if let Framing::Length(length) = framing {
            request.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
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
        if head.status == StatusCode::CONTINUE {
            // The client is told when its body is first asked for.
            body.go_on();
        } else if let Some(interim) = outbound.interim {
            interim.send(head.status, &head.fields);
        }
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
    // What is left here has the same clock, which the deadlines look at.
    let rest = body.leave();
    let request = head.map(|()| std::mem::replace(body, rest));
    let mut response = pin!(lease.send_http2(request).ok_or(ProxyError::UpstreamClosed)?);
    let result = poll_fn(|cx| match response.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Ok(result)),
        Poll::Pending => match poll_late(deadlines, body, timer, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        },
    })
    .await?;
    match result {
        Ok(response) => Ok(Sent::Http2(response)),
        Err(error) => failed_http2(error, outbound.method, body),
    }
}

fn failed_http2(
    error: TrySendError<Request<RequestBody>>,
    method: &Method,
    body: &mut RequestBody,
) -> Result<Sent, ProxyError> {
    let mut error = error;
    if let Some(request) = error.take_message() {
        *body = request.into_body();
        return Ok(Sent::Unsent);
    }
    let error = error.into_error();
    let closed = error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_reset(&error);
    if body.sent().is_none() && (closed && is_safe(method) || is_refused(&error)) {
        return Ok(Sent::Repeat);
    }
    if error.is_incomplete_message() || error.is_canceled() {
        return Err(ProxyError::UpstreamClosed);
    }
    Err(ProxyError::Http2(error))
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// The peer has not looked at the request: it had more streams than it takes.
fn is_refused(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn is_reset(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::BrokenPipe
                    | std::io::ErrorKind::ConnectionAborted
            );
        }
        source = error.source();
    }
    false
}
