//! Bodies in both directions: they carry what must end with the last byte — the count of the request, the loan of the
//! upstream connection, the deadline.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use tokio::{
    io::Interest,
    time::{Instant, Sleep},
};

use super::{inflight::InFlight, pool::Lease};
use crate::{
    h1::{
        body::{ClientBody, ClientBodyError, Frame},
        client::{self, ClientError},
        fields::Fields,
        framing::Framing,
    },
    http2::{
        receive::Incoming,
        respond::Responder,
        send::{Broken, Pieces, Sender},
    },
};

/// How long a body waits for the upstream's `100 Continue` before it is sent all the same; Go's transport's value,
/// which the add-on has.
const EXPECT_CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The client's request body on its way to the upstream.
#[derive(Debug)]
pub(crate) struct RequestBody {
    source: Source,
    framing: Framing,
    /// Was taken for a connection that did not take it.
    unsent: Bytes,
    /// When the last byte was taken by the upstream connection; the response head's deadline counts from there.
    sent: Option<Rc<Cell<Option<Instant>>>>,
    gate: Option<Gate>,
}

#[derive(Debug)]
enum Source {
    Empty,
    Client(ClientBody),
    Http2 {
        incoming: Incoming,
        /// The client waits for `100 Continue` before it sends its body.
        awaits_continue: Option<Rc<Responder>>,
    },
}

/// Holds a body back until the upstream asks for it.
#[derive(Debug)]
struct Gate {
    open: bool,
    wait: Pin<Box<Sleep>>,
}

/// Why a request can't be sent to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    #[error("client's body broke off")]
    Client(#[from] ClientBodyError),
    #[error("client's stream broke off")]
    Stream(#[source] h2::Error),
    #[error("client's body is longer or shorter than it said")]
    Length,
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
    Full(Bytes),
    Http1 {
        /// `None` once it was given back.
        lease: Option<Lease>,
        /// What is still being sent of the request.
        request: Option<Box<RequestBody>>,
    },
    Http2 {
        incoming: Incoming,
        lease: Option<Lease>,
        /// What is still being sent of the request.
        request: Option<Box<Sending>>,
    },
}

/// A request's body on its way to an upstream that has answered already.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) body: RequestBody,
    pub(crate) sender: Sender,
}

/// Why a response ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("upstream broke off its response")]
    Http1(#[from] ClientError),
    #[error("upstream broke off its stream")]
    Http2(#[source] h2::Error),
    #[error("client broke off its request in the middle of the response")]
    Request(#[from] RequestBodyError),
    #[error("request's deadline passed in the middle of its response")]
    Deadline,
}

// === impl RequestBody ===

impl RequestBody {
    /// No body; `framing` is how that was said.
    pub(crate) fn empty(framing: Framing) -> Self {
        Self { source: Source::Empty, framing, unsent: Bytes::new(), sent: None, gate: None }
    }

    /// The body of a client of HTTP/1.1.
    pub(crate) fn client(body: ClientBody, framing: Framing) -> Self {
        Self { source: Source::Client(body), sent: Some(Rc::default()), ..Self::empty(framing) }
    }

    /// The body of a client of HTTP/2, whose head gave this length.
    pub(crate) fn http2(incoming: Incoming, length: Option<u64>, awaits_continue: Option<Rc<Responder>>) -> Self {
        let framing = length.map(Framing::Length);
        if incoming.is_done() {
            return Self::empty(framing.unwrap_or(Framing::None));
        }
        let framing = framing.unwrap_or(Framing::Chunked);
        Self { source: Source::Http2 { incoming, awaits_continue }, sent: Some(Rc::default()), ..Self::empty(framing) }
    }

    /// The body, which leaves none behind.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::empty(Framing::None))
    }

    /// How the body is framed.
    pub(crate) fn framing(&self) -> Framing {
        self.framing
    }

    /// Sends nothing until [`RequestBody::go_on`], or until the upstream has had its time.
    pub(crate) fn wait_for_continue(&mut self) {
        self.gate = Some(Gate { open: false, wait: Box::pin(tokio::time::sleep(EXPECT_CONTINUE_WAIT)) });
    }

    /// The upstream has asked for the body.
    pub(crate) fn go_on(&mut self) {
        if let Some(gate) = &mut self.gate {
            gate.open = true;
        }
    }

    /// When the body was taken whole; `None` for a request without a body.
    pub(crate) fn sent(&self) -> Option<&Rc<Cell<Option<Instant>>>> {
        self.sent.as_ref()
    }

    /// Whether there is a body of which nothing was taken.
    pub(crate) fn is_unread(&self) -> bool {
        self.sent.as_ref().is_some_and(|sent| sent.get().is_none())
    }

    /// Takes a piece back that was not sent.
    pub(crate) fn put_back(&mut self, data: Bytes) {
        self.unsent = data;
    }

    /// Resolves when a client of HTTP/1.1 has left, although nobody reads its body.
    pub(crate) async fn client_gone(&self) {
        let Source::Client(body) = &self.source else { return std::future::pending().await };
        let Ok(stream) = body.watch() else { return std::future::pending().await };
        loop {
            // Edge-triggered: each arrival of data wakes once, and the end of data once.
            match stream.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => {
                    let _ = stream.try_io(Interest::READABLE, || Err::<(), _>(std::io::ErrorKind::WouldBlock.into()));
                }
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// The next piece.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, RequestBodyError>>> {
        if let Some(gate) = &mut self.gate {
            if !gate.open {
                ready!(gate.wait.as_mut().poll(cx));
            }
            self.gate = None;
        }
        if !self.unsent.is_empty() {
            return Poll::Ready(Some(Ok(Frame::Data(std::mem::take(&mut self.unsent)))));
        }
        let (frame, ended) = match &mut self.source {
            Source::Empty => return Poll::Ready(None),
            Source::Client(body) => {
                let frame = ready!(body.poll_frame(cx)).map(|frame| frame.map_err(RequestBodyError::Client));
                (frame, body.is_done())
            }
            Source::Http2 { incoming, awaits_continue } => {
                if let Some(responder) = awaits_continue.take() {
                    responder.interim(StatusCode::CONTINUE, &Fields::default());
                }
                let frame = ready!(incoming.poll_frame(cx)).map(|frame| frame.map_err(RequestBodyError::Stream));
                (frame, incoming.is_done())
            }
        };
        if frame.is_none() || ended {
            self.source = Source::Empty;
            if let Some(sent) = &self.sent {
                sent.set(Some(Instant::now()));
            }
        }
        Poll::Ready(frame)
    }
}

impl Pieces for RequestBody {
    type Error = RequestBodyError;

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, RequestBodyError>>> {
        Self::poll_frame(self, cx)
    }

    fn is_done(&self) -> bool {
        matches!(self.source, Source::Empty) && self.unsent.is_empty()
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self { kind: Kind::Full(bytes), deadline: None, in_flight: None }
    }

    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// The body of an upstream's response over HTTP/1.1; `lease` goes back to its pool at the body's end. `request` is
    /// what is still being sent.
    pub(crate) fn http1(lease: Lease, request: RequestBody, deadline: Option<Instant>) -> Self {
        let sent = lease.http1_ref().is_none_or(client::Connection::is_sent);
        let request = (!sent).then(|| Box::new(request));
        let mut body = Self {
            kind: Kind::Http1 { lease: Some(lease), request },
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
            in_flight: None,
        };
        body.release_if_ended();
        body
    }

    /// The same over HTTP/2.
    pub(crate) fn http2(
        incoming: Incoming,
        lease: Lease,
        request: Option<Box<Sending>>,
        deadline: Option<Instant>,
    ) -> Self {
        let mut body = Self {
            kind: Kind::Http2 { incoming, lease: Some(lease), request },
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
            Kind::Full(bytes) => Some(bytes),
            Kind::Http1 { .. } | Kind::Http2 { .. } => None,
        }
    }

    /// Whether nothing more comes.
    pub(crate) fn is_done(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Http1 { lease, .. } => lease.is_none(),
            Kind::Http2 { incoming, .. } => incoming.is_done(),
        }
    }

    /// How many bytes are still to come, where that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match &self.kind {
            Kind::Full(bytes) => Some(bytes.len() as u64),
            Kind::Http1 { lease: None, .. } => Some(0),
            Kind::Http1 { lease: Some(lease), .. } => lease.http1_ref().and_then(client::Connection::body_left),
            Kind::Http2 { incoming, .. } => incoming.left(),
        }
    }

    /// Gives the connection back as soon as the last byte has been taken from it, not when the client has it.
    fn release_if_ended(&mut self) {
        let ended = match &mut self.kind {
            Kind::Full(_) => None,
            Kind::Http1 { lease, .. } => {
                lease.take_if(|lease| lease.http1_ref().is_none_or(client::Connection::is_body_done))
            }
            Kind::Http2 { incoming, lease, .. } => lease.take_if(|_| incoming.is_done()),
        };
        if let Some(lease) = ended {
            lease.finish();
        }
    }

    /// The next piece.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(BodyError::Deadline)));
        }
        let frame = match &mut self.kind {
            Kind::Full(bytes) if bytes.is_empty() => None,
            Kind::Full(bytes) => Some(Ok(Frame::Data(std::mem::take(bytes)))),
            Kind::Http1 { lease, request } => ready!(poll_http1(lease, request, cx)),
            Kind::Http2 { incoming, request, .. } => ready!(poll_http2(incoming, request, cx)),
        };
        self.release_if_ended();
        if let (Some(in_flight), Some(Ok(Frame::Data(data)))) = (&mut self.in_flight, &frame) {
            in_flight.add_bytes(data.len());
        }
        Poll::Ready(frame)
    }
}

/// Moves both directions of an exchange.
fn poll_http1(
    lease: &mut Option<Lease>,
    request: &mut Option<Box<RequestBody>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame, BodyError>>> {
    let Some(connection) = lease.as_mut().and_then(Lease::http1) else { return Poll::Ready(None) };
    if let Some(body) = request {
        match connection.poll_send(cx, body) {
            Poll::Ready(Ok(())) => *request = None,
            Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Pending => {}
        }
    }
    connection.poll_body(cx).map(|frame| frame.map(|frame| frame.map_err(BodyError::Http1)))
}

/// The same over HTTP/2.
fn poll_http2(
    incoming: &mut Incoming,
    request: &mut Option<Box<Sending>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame, BodyError>>> {
    if let Some(sending) = request {
        match sending.sender.poll(cx, &mut sending.body) {
            // An upstream that takes no more may go on with its response.
            Poll::Ready(Ok(()) | Err(Broken::Stream(_))) => *request = None,
            Poll::Ready(Err(Broken::Body(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Pending => {}
        }
    }
    incoming.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(BodyError::Http2)))
}

impl Pieces for ResponseBody {
    type Error = BodyError;

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        Self::poll_frame(self, cx)
    }

    fn is_done(&self) -> bool {
        Self::is_done(self)
    }
}
