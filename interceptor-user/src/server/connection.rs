//! One client connection: its state that requests share, and the future that serves it.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    num::NonZeroU16,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{proxy::Timer, trust::Trust};

/// How long a request's head may take from its first byte; the add-on's value.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_mins(1);

/// The same once listeners are closed: a head that is on its way arrives within this, or keeps the process from ending.
const CLOSING_HEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// How far the process's end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    #[default]
    Running,
    /// No new requests; those in flight may finish.
    Closing,
    /// Everything ends now.
    Cut,
}

/// What the requests of one client connection share. Belongs to the worker that accepted it.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: SocketAddr,
    peer_ip: Box<[u8]>,
    /// The client speaks TLS.
    encrypted: bool,
    trust: Trust,
    /// The port of one Service that it came by.
    entrance: Option<NonZeroU16>,
    phase: Cell<Phase>,
    waker: RefCell<Option<Waker>>,
    requests: Cell<u32>,
    /// Bytes have come since the last request was complete.
    heard: Cell<bool>,
    /// Since when a request's head has been coming in, without being complete.
    head_since: Cell<Option<Instant>>,
    /// Of the request before; HTTP/1.1 has one at a time.
    timer: RefCell<Option<Timer>>,
}

/// A timer on loan to one request.
pub(crate) struct TimerLoan {
    pub(crate) timer: Timer,
    connection: Rc<Connection>,
}

/// Serves a connection until it ends, or is cut.
pub(crate) struct Serve<'a, C> {
    pub(crate) inner: Pin<&'a mut C>,
    pub(crate) connection: &'a Connection,
}

// === impl Connection ===

impl Connection {
    pub(crate) fn new(peer: SocketAddr, encrypted: bool, trust: Trust) -> Self {
        let ip = peer.ip().to_string();
        Self {
            peer,
            peer_ip: ip.into_bytes().into(),
            encrypted,
            trust,
            entrance: None,
            heard: Cell::new(false),
            phase: Cell::default(),
            waker: RefCell::default(),
            requests: Cell::new(0),
            head_since: Cell::new(Some(Instant::now())),
            timer: RefCell::default(),
        }
    }

    /// The same, at the port of one Service.
    pub(crate) fn entered_by(self, port: NonZeroU16) -> Self {
        Self { entrance: Some(port), ..self }
    }

    /// The port of one Service that it came by, if it is not the proxy's own.
    pub(crate) fn entrance(&self) -> Option<NonZeroU16> {
        self.entrance
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The client's address as `X-Forwarded-For` has it.
    pub(crate) fn peer_ip(&self) -> &[u8] {
        &self.peer_ip
    }

    /// Whether the client speaks TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Whether the client is believed what it says of a client before it.
    pub(crate) fn trust(&self) -> Trust {
        self.trust
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Bytes have come in that may be the beginning of a request.
    pub(crate) fn heard(&self) {
        self.heard.set(true);
    }

    pub(crate) fn timer(self: &Rc<Self>) -> TimerLoan {
        TimerLoan { timer: self.timer.borrow_mut().take().unwrap_or_default(), connection: Rc::clone(self) }
    }

    pub(crate) fn request_began(&self) {
        self.requests.set(self.requests.get() + 1);
        self.head_since.set(None);
        self.heard.set(false);
    }

    pub(crate) fn request_ended(&self) {
        self.requests.set(self.requests.get() - 1);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.requests.get() == 0
    }

    /// Moves the connection to `phase`, if that is a step forward.
    pub(crate) fn advance(&self, phase: Phase) {
        if phase > self.phase.get() {
            self.phase.set(phase);
            if let Some(waker) = self.waker.borrow().as_ref() {
                waker.wake_by_ref();
            }
        }
    }

    /// Ends the connection when a request's head takes too long. Called by the worker every second, which is
    /// precise enough and costs a request nothing.
    pub(crate) fn check_head(&self, now: Instant) -> bool {
        if !self.is_idle() {
            return false;
        }
        let limit = if self.phase.get() == Phase::Running { HEAD_TIMEOUT } else { CLOSING_HEAD_TIMEOUT };
        match self.head_since.get() {
            None if self.heard.take() => self.head_since.set(Some(now)),
            Some(since) if now.duration_since(since) >= limit => {
                self.advance(Phase::Cut);
                return true;
            }
            None | Some(_) => {}
        }
        false
    }
}

// === impl TimerLoan ===

impl Drop for TimerLoan {
    fn drop(&mut self) {
        self.connection.timer.replace(Some(std::mem::take(&mut self.timer)));
    }
}

// === impl Serve ===

impl<C: Future<Output = ()>> Future for Serve<'_, C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // A last time when it is cut: who waits for a response can still be given one.
        let is_cut = self.connection.phase.get() == Phase::Cut;
        let polled = self.inner.as_mut().poll(cx);
        if is_cut {
            return Poll::Ready(());
        }
        if polled.is_pending() {
            let mut waker = self.connection.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        polled
    }
}
