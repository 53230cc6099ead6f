//! Bodies in both directions: they carry what must end with the last byte — the count of the request, the loan of the
//! upstream connection, the deadline.

use std::{
    cell::Cell,
    error::Error as StdError,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{inflight::InFlight, pool::Lease};

/// How long a body waits for the upstream's `100 Continue` before it is sent all the same; Go's transport's value,
/// which the add-on has.
const EXPECT_CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The client's request body on its way to the upstream.
#[derive(Debug)]
pub(crate) struct RequestBody {
    inner: Option<Incoming>,
    /// When the last byte was taken by the upstream connection; the response head's deadline counts from there.
    sent: Option<Rc<Cell<Option<Instant>>>>,
    gate: Option<Gate>,
}

/// Holds a body back until the upstream asks for it.
#[derive(Debug)]
struct Gate {
    open: Arc<AtomicBool>,
    wait: Pin<Box<Sleep>>,
}

/// A response's body on its way to the client.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    kind: Kind,
    /// The whole request's deadline.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Ends the request when the body ends or is dropped.
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
enum Kind {
    Full(Option<Bytes>),
    Upstream { incoming: Incoming, lease: Option<Lease> },
}

/// Why a response ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("upstream broke off its response")]
    Upstream(#[source] hyper::Error),
    #[error("request's deadline passed in the middle of its response")]
    Deadline,
}

// === impl RequestBody ===

impl RequestBody {
    pub(crate) fn new(inner: Incoming) -> Self {
        let empty = inner.is_end_stream();
        let sent = (!empty).then(Rc::default);
        Self { inner: (!empty).then_some(inner), sent, gate: None }
    }

    /// A body for a repeated request that had none.
    pub(crate) fn empty() -> Self {
        Self { inner: None, sent: None, gate: None }
    }

    /// Sends nothing until `open` is set, or until the upstream has had its time.
    pub(crate) fn wait_for_continue(&mut self, open: Arc<AtomicBool>) {
        self.gate = Some(Gate { open, wait: Box::pin(tokio::time::sleep(EXPECT_CONTINUE_WAIT)) });
    }

    /// When the body was taken whole; `None` for a request without a body.
    pub(crate) fn sent(&self) -> Option<Rc<Cell<Option<Instant>>>> {
        self.sent.clone()
    }

    /// Whether there is a body of which nobody has said how long it is.
    pub(crate) fn has_unknown_length(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| !inner.is_end_stream() && inner.size_hint().exact().is_none())
    }

    fn finish(&mut self) {
        self.inner = None;
        if let Some(sent) = &self.sent {
            sent.set(Some(Instant::now()));
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(gate) = &mut self.gate {
            if !gate.open.load(Relaxed) && gate.wait.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.gate = None;
        }
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(&mut *inner).poll_frame(cx));
        if frame.is_none() || inner.is_end_stream() {
            self.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self { kind: Kind::Full(Some(bytes)), deadline: None, in_flight: None }
    }

    pub(crate) fn empty() -> Self {
        Self { kind: Kind::Full(None), deadline: None, in_flight: None }
    }

    /// An upstream's body; `lease` goes back to its pool at the body's end.
    pub(crate) fn upstream(incoming: Incoming, lease: Lease, deadline: Option<Instant>) -> Self {
        let mut body = Self {
            kind: Kind::Upstream { incoming, lease: Some(lease) },
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
            in_flight: None,
        };
        body.release_if_ended();
        body
    }

    /// Keeps the request counted until this body ends.
    pub(crate) fn count(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    #[cfg(test)]
    pub(crate) fn as_full(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Full(bytes) => bytes.as_deref(),
            Kind::Upstream { .. } => None,
        }
    }

    /// Gives the connection back as soon as the last byte has been taken from it, not when the client has it.
    fn release_if_ended(&mut self) {
        if let Kind::Upstream { incoming, lease } = &mut self.kind
            && incoming.is_end_stream()
            && let Some(lease) = lease.take()
        {
            lease.finish();
        }
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Kind::Upstream { incoming, lease } = &mut self.kind else { return Poll::Ready(None) };
        // Frames come out of the connection, which is driven here; so the connection alone needs the waker.
        let frame = match lease {
            Some(lease) if !lease.has_own_task() => {
                let mut take = |lease: &mut Lease| {
                    lease.quietly(|| Pin::new(&mut *incoming).poll_frame(&mut Context::from_waker(Waker::noop())))
                };
                let mut frame = take(lease);
                if frame.is_pending() {
                    lease.drive(cx);
                    frame = take(lease);
                }
                frame
            }
            Some(_) | None => Pin::new(&mut *incoming).poll_frame(cx),
        };
        match std::task::ready!(frame) {
            None => {
                if let Some(lease) = lease.take() {
                    lease.finish();
                }
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                self.release_if_ended();
                if let (Some(in_flight), Some(data)) = (&mut self.in_flight, frame.data_ref()) {
                    in_flight.add_bytes(data.len());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(BodyError::Upstream(error)))),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(BodyError::Deadline)));
        }
        match &mut self.kind {
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Upstream { .. } => self.poll_upstream(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}

// === impl BodyError ===

/// The bound that hyper asks of a body's error.
const _: fn(BodyError) -> Box<dyn StdError + Send + Sync> = |error| Box::new(error);
