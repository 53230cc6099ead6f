//! Sends a request on a connection and waits for the response's head, within the deadlines.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Method, Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::Instant;

use super::{body::RequestBody, deadline::Timer, error::ProxyError, pool::Lease};

/// What became of a request that was to be sent.
pub(crate) enum Sent {
    /// The response's head.
    Response(Response<Incoming>),
    /// Not a byte of it was sent: it may go to any connection.
    Unsent(Request<RequestBody>),
    /// The request may be repeated. Either a kept connection was closed before it answered, and the request had no body
    /// and asks for nothing to be changed (RFC 9110 §9.2.2; Go's transport does the same); or an HTTP/2 peer said that
    /// it did not process the request (RFC 9113 §8.7), which had no body either.
    Repeat(Request<RequestBody>),
}

/// The deadlines of one request on a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// From the end of the request to the response's head.
    pub(crate) response_header: Option<Duration>,
    /// The whole request.
    pub(crate) request: Option<Instant>,
}

/// Sends `request` on `lease`.
///
/// Dropping the future closes an HTTP/1.1 connection with the lease, and resets an HTTP/2 stream.
pub(crate) async fn send(
    lease: &mut Lease,
    request: Request<RequestBody>,
    deadlines: Deadlines,
    timer: &mut Timer,
) -> Result<Sent, ProxyError> {
    let closed_may_repeat = lease.is_reused() && is_safe(request.method());
    let spare = if closed_may_repeat || lease.has_own_task() { spare(&request) } else { None };
    let body_sent = request.body().sent();
    let began = Instant::now();
    let mut response = pin!(lease.send(request));
    poll_fn(|cx| {
        // An HTTP/1.1 connection is driven right here, so the response is there when it has been driven; only an
        // HTTP/2 one makes progress elsewhere and has to wake this task.
        lease.drive(cx);
        let polled = if lease.has_own_task() {
            response.as_mut().poll(cx)
        } else {
            response.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        };
        if let Poll::Ready(result) = polled {
            return Poll::Ready(
                result.map(Sent::Response).or_else(|error| failed(error, spare.clone(), closed_may_repeat)),
            );
        }
        if let Some(deadline) = deadlines.request
            && timer.poll(cx, deadline).is_ready()
        {
            return Poll::Ready(Err(ProxyError::RequestTimeout));
        }
        if let Some(deadline) = header_deadline(deadlines.response_header, body_sent.as_ref(), began)
            && timer.poll(cx, deadline).is_ready()
        {
            return Poll::Ready(Err(ProxyError::ResponseHeaderTimeout));
        }
        Poll::Pending
    })
    .await
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// The head of a request without a body, which alone is enough to send it again.
fn spare(request: &Request<RequestBody>) -> Option<Request<()>> {
    if request.body().sent().is_some() {
        return None;
    }
    let mut spare = Request::new(());
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.version_mut() = request.version();
    spare.headers_mut().clone_from(request.headers());
    Some(spare)
}

fn failed(
    error: TrySendError<Request<RequestBody>>,
    spare: Option<Request<()>>,
    closed_may_repeat: bool,
) -> Result<Sent, ProxyError> {
    let mut error = error;
    if let Some(request) = error.take_message() {
        return Ok(Sent::Unsent(request));
    }
    let error = error.into_error();
    let closed = error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_reset(&error);
    match spare {
        Some(spare) if (closed && closed_may_repeat) || is_refused(&error) => {
            Ok(Sent::Repeat(spare.map(|()| RequestBody::empty())))
        }
        _ if error.is_incomplete_message() || error.is_canceled() => Err(ProxyError::UpstreamClosed),
        _ => Err(ProxyError::Upstream(error)),
    }
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

/// The response head's deadline runs from when the request was taken whole.
fn header_deadline(
    limit: Option<Duration>,
    body_sent: Option<&Rc<Cell<Option<Instant>>>>,
    began: Instant,
) -> Option<Instant> {
    let from = match body_sent {
        None => began,
        Some(sent) => sent.get()?,
    };
    limit.map(|limit| from + limit)
}
