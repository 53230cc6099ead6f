//! Connections to one endpoint, pooled per worker: HTTP/1.1 ones are lent to one request each, an HTTP/2 one is shared.
//!
//! An HTTP/1.1 connection has no task of its own: the request that borrows it moves its bytes, without a wake-up between
//! tasks, and a client that leaves ends it. While it is idle it is looked at only when it is taken out and when the
//! worker sweeps.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use interceptor_core::{route::Target, upstream::Protocol};
use rustls::pki_types::ServerName;
use tls::client::{Client, Offer as Offered};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsConnector, TlsStream};

use super::error::ProxyError;
use crate::{
    h1::{MAX_HEAD, client},
    http2::{Call, STREAM_WINDOW},
    net::Stream,
};

/// How long an unused connection is kept; Go's transport's value, which the add-on has.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a connection must have been unused to count against the limits of idle ones.
const RESTING: Duration = Duration::from_secs(1);

/// Most connections to one endpoint that a burst leaves behind until the next sweep; what is more is closed.
const BURST: usize = 4096;

/// First and longest pause before an endpoint that refused a connection is tried again.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// How much an endpoint may send over HTTP/2 in all, in bytes: as good as no limit, so that clients that read slowly hold
/// nobody else up who shares the connection. [`STREAM_WINDOW`] limits each of them.
const CONNECTION_WINDOW: u32 = 1 << 30;

/// What small pieces of bodies from one endpoint may cost while they wait for clients, beside their own bytes. Without a limit
/// a window of single bytes would take a hundred times its size.
const PIECES: usize = 32 * 1024 * 1024;

/// How many streams are opened before an endpoint has said how many it takes: it says so at once, and what it refuses
/// with a body can't be repeated.
const STREAMS_BEFORE_SETTINGS: usize = 1;

/// How long the handshake with an endpoint may take; Go's transport's value.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// One endpoint as a worker sees it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) addr: SocketAddr,
    pub(crate) protocol: Protocol,
    /// With whom connections are encrypted; in clear without.
    tls: Option<Tls>,
    /// Requests in flight from this worker.
    load: Cell<u32>,
    idle: RefCell<Vec<Idle>>,
    max_idle: usize,
    h2: RefCell<Option<SendRequest<Bytes>>>,
    /// It speaks HTTP/2 and takes no extended CONNECT, as an upgrade has found out.
    upgrades_over_http1: Cell<bool>,
    health: Cell<Health>,
    retired: Cell<bool>,
}

/// How connections to an endpoint are encrypted.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// The name that the certificate must have: that of the Service.
    name: ServerName<'static>,
    client: Client,
}

/// What this worker knows of an endpoint's accepting connections.
#[derive(Clone, Copy, Debug)]
enum Health {
    /// Accepted the last connection.
    Accepting,
    /// Not known to accept: one connection attempt at a time, from `retry_at` on.
    Unproven { failures: u32, retry_at: Instant, connecting: bool },
}

#[derive(Debug)]
struct Idle {
    connection: Box<client::Connection>,
    /// When a sweep first found it here: a clock read for each request would cost more than it is worth.
    since: Option<Instant>,
}

/// A connection lent to one request. Dropped before its response has ended, an HTTP/1.1 connection is closed.
#[derive(Debug)]
pub(crate) struct Lease {
    endpoint: Rc<Endpoint>,
    connection: Connection,
}

#[derive(Debug)]
enum Connection {
    H1(Box<client::Connection>),
    H2(SendRequest<Bytes>),
    /// Given back.
    Gone,
}

/// What an endpoint can offer now.
pub(crate) enum Offer {
    /// A connection that is open.
    Lease(Lease),
    /// Leave to connect.
    Connect(Permit),
}

/// Leave to open a connection; given up when dropped.
pub(crate) struct Permit {
    endpoint: Rc<Endpoint>,
    upgraded: bool,
    done: bool,
}

// === impl Tls ===

impl Tls {
    /// Of an endpoint of `target`, under the name that the KEDA HTTP Add-on gives it.
    pub(crate) fn new(target: &Target, addr: SocketAddr, client: &Client) -> Self {
        let name = format!("{}.{}", target.service.name(), target.service.namespace());
        // A Service has no name that can't be one of DNS; if one had, no certificate would fit it.
        let name = ServerName::try_from(name).unwrap_or_else(|_no_name| ServerName::from(addr.ip()));
        Self { name, client: client.clone() }
    }
}

// === impl Endpoint ===

impl Endpoint {
    pub(crate) fn new(addr: SocketAddr, protocol: Protocol, tls: Option<Tls>, max_idle: usize) -> Self {
        Self {
            addr,
            protocol,
            tls,
            load: Cell::new(0),
            idle: RefCell::default(),
            max_idle,
            h2: RefCell::new(None),
            upgrades_over_http1: Cell::new(false),
            health: Cell::new(Health::Unproven { failures: 0, retry_at: Instant::now(), connecting: false }),
            retired: Cell::new(false),
        }
    }

    /// Whether its certificate is asked for under the same name, or it has none either.
    pub(crate) fn is_known_as(&self, tls: Option<&Tls>) -> bool {
        self.tls.as_ref().map(|tls| &tls.name) == tls.map(|tls| &tls.name)
    }

    /// Requests in flight, or `None` while no request may be sent here.
    pub(crate) fn usable_load(&self, now: Instant) -> Option<u32> {
        match self.health.get() {
            Health::Accepting => Some(self.load.get()),
            Health::Unproven { connecting: true, .. } => None,
            Health::Unproven { retry_at, .. } => (retry_at <= now).then(|| self.load.get()),
        }
    }

    /// When an endpoint that may not be used now may be tried again; `None` while an attempt is under way.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        match self.health.get() {
            Health::Accepting | Health::Unproven { connecting: true, .. } => None,
            Health::Unproven { retry_at, .. } => Some(retry_at),
        }
    }

    /// An open connection, or leave to make one. To be `upgraded` it must be one of HTTP/1.1, or one on which extended CONNECT is
    /// taken.
    pub(crate) fn offer(self: &Rc<Self>, upgraded: bool) -> Offer {
        let is_open = |sender: &SendRequest<Bytes>| sender.is_extended_connect_protocol_enabled();
        if let Some(sender) =
            self.shared().filter(|sender| !upgraded || (self.protocol == Protocol::H2c && is_open(sender)))
        {
            return Offer::Lease(Lease::new(Rc::clone(self), Connection::H2(sender)));
        }
        let may_be_h1 = self.protocol == Protocol::Http1 || upgraded;
        // The last one in is the likeliest to be open still, and the others may run out.
        while let Some(idle) = may_be_h1.then(|| self.take_idle()).flatten() {
            let mut connection = idle.connection;
            if connection.is_quiet() {
                return Offer::Lease(Lease::new(Rc::clone(self), Connection::H1(connection)));
            }
        }
        if let Health::Unproven { failures, retry_at, .. } = self.health.get() {
            self.health.set(Health::Unproven { failures, retry_at, connecting: true });
        }
        Offer::Connect(Permit { endpoint: Rc::clone(self), upgraded, done: false })
    }

    /// No request is sent here any more: what comes back is closed.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.h2.borrow_mut().take();
    }

    /// Drops connections that have ended or were not used for long, and of those that rest those that exceed `limit` or
    /// the endpoint's own; returns what is left of `limit`.
    pub(crate) fn sweep(&self, now: Instant, limit: usize) -> usize {
        let mut idle = self.idle.borrow_mut();
        idle.retain_mut(|idle| {
            let since = *idle.since.get_or_insert(now);
            if since < now {
                idle.connection.rest();
            }
            idle.connection.is_quiet() && now.duration_since(since) < IDLE_TIMEOUT
        });
        // The oldest lie in front. One that was used just now is not idle, but between two requests of a burst.
        let excess = idle.len().saturating_sub(limit.min(self.max_idle));
        let resting = idle.partition_point(|idle| idle.since.is_some_and(|since| now.duration_since(since) >= RESTING));
        idle.drain(..excess.min(resting));
        limit.saturating_sub(idle.len())
    }

    /// The HTTP/2 connection, if it takes requests.
    fn shared(&self) -> Option<SendRequest<Bytes>> {
        let mut shared = self.h2.borrow_mut();
        let mut context = Context::from_waker(Waker::noop());
        // Its copies wait for their streams themselves; this one only tells whether the connection has ended.
        let open = matches!(shared.as_mut()?.poll_ready(&mut context), Poll::Ready(Ok(())));
        if open { shared.clone() } else { shared.take().and(None) }
    }

    fn take_idle(&self) -> Option<Idle> {
        self.idle.borrow_mut().pop()
    }

    fn put_idle(&self, connection: Box<client::Connection>) {
        let mut idle = self.idle.borrow_mut();
        if !self.retired.get() && idle.len() < BURST {
            idle.push(Idle { connection, since: None });
        }
    }

    fn failed(&self) {
        let failures = match self.health.get() {
            Health::Accepting => 0,
            Health::Unproven { failures, .. } => failures,
        };
        // Another may be started in its place.
        self.upgrades_over_http1.set(false);
        let pause = BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
        let retry_at = Instant::now() + pause;
        self.health.set(Health::Unproven { failures: failures.saturating_add(1), retry_at, connecting: false });
    }
}

// === impl Permit ===

impl Permit {
    pub(crate) fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    /// The endpoint did not accept.
    pub(crate) fn failed(mut self) {
        self.done = true;
        self.endpoint.failed();
    }

    /// The endpoint accepted `stream`.
    pub(crate) async fn accepted(mut self, stream: TcpStream) -> Result<Lease, ProxyError> {
        self.done = true;
        self.endpoint.health.set(Health::Accepting);
        let endpoint = Rc::clone(&self.endpoint);
        let upgrades = self.upgraded && endpoint.protocol == Protocol::H2c;
        let (mut stream, mut protocol) = self.encrypted(stream).await?;
        if upgrades && protocol == Protocol::H2c {
            if let Some(sender) = self.try_extended(stream).await? {
                return Ok(Lease::new(endpoint, Connection::H2(sender)));
            }
            // Servers that speak HTTP/2 in clear and know no extended CONNECT mostly speak HTTP/1.1 too.
            let again = async {
                let stream = TcpStream::connect(endpoint.addr).await?;
                let _ = stream.set_nodelay(true);
                Ok(stream)
            };
            let again = tokio::time::timeout(HANDSHAKE_TIMEOUT, again).await;
            let again = again.unwrap_or_else(|_elapsed| Err(std::io::ErrorKind::TimedOut.into()));
            let again = again.map_err(|error| ProxyError::ConnectTimeout(Some(error)))?;
            (stream, protocol) = self.encrypted(again).await?;
        }
        let connection = match protocol {
            Protocol::Http1 => Connection::H1(Box::new(client::Connection::new(stream))),
            Protocol::H2c => Connection::H2(self.share(stream, false).await?.0),
        };
        Ok(Lease::new(endpoint, connection))
    }

    /// Makes an HTTP/2 connection, which others may use too. With `ask`: tells whether the endpoint takes an extended CONNECT.
    async fn share(&self, stream: Stream, ask: bool) -> Result<(SendRequest<Bytes>, bool), ProxyError> {
        let (sender, takes) = handshake_h2(stream, ask).await.map_err(ProxyError::Http2)?;
        if !self.endpoint.retired.get() {
            self.endpoint.h2.replace(Some(sender.clone()));
        }
        Ok((sender, takes))
    }

    /// An HTTP/2 connection, if the endpoint takes an extended CONNECT on it; what it does is kept in mind.
    async fn try_extended(&self, stream: Stream) -> Result<Option<SendRequest<Bytes>>, ProxyError> {
        let asked = match tokio::time::timeout(HANDSHAKE_TIMEOUT, Box::pin(self.share(stream, true))).await {
            Ok(asked) => asked,
            Err(_elapsed) => return Err(ProxyError::ConnectTimeout(None)),
        };
        // One that breaks off does not speak HTTP/2, whatever was said of it.
        let taken = asked.ok().filter(|(_, takes)| *takes).map(|(sender, _)| sender);
        self.endpoint.upgrades_over_http1.set(taken.is_none());
        Ok(taken)
    }

    /// Shakes hands if the endpoint wants it, and tells what is spoken then.
    async fn encrypted(&self, stream: TcpStream) -> Result<(Stream, Protocol), ProxyError> {
        let Endpoint { protocol, tls, .. } = &*self.endpoint;
        let over_http1 = self.upgraded && self.endpoint.upgrades_over_http1.get();
        let protocol = if over_http1 { Protocol::Http1 } else { *protocol };
        let Some(Tls { name, client }) = tls else { return Ok((Stream::Plain(stream), protocol)) };
        let offer = match protocol {
            Protocol::H2c => Offered::H2,
            Protocol::Http1 if self.upgraded => Offered::Http1,
            Protocol::Http1 => Offered::Any,
        };
        let connecting = TlsConnector::from(client.config(offer)).connect(name.clone(), stream);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, Box::pin(connecting)).await {
            Ok(connected) => connected.map_err(ProxyError::Handshake)?,
            Err(_elapsed) => return Err(ProxyError::ConnectTimeout(None)),
        };
        let stream = Stream::Tls(Box::new(TlsStream::Client(stream)));
        let is_h2 = protocol == Protocol::H2c || stream.alpn() == Some(b"h2");
        Ok((stream, if is_h2 { Protocol::H2c } else { Protocol::Http1 }))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.done
            && let Health::Unproven { failures, retry_at, .. } = self.endpoint.health.get()
        {
            self.endpoint.health.set(Health::Unproven { failures, retry_at, connecting: false });
        }
    }
}

/// With `ask`, waits until the peer's SETTINGS have come, and tells whether they announce extended CONNECT (RFC 8441 §3): they come
/// before the answer to a PING.
async fn handshake_h2(stream: Stream, ask: bool) -> Result<(SendRequest<Bytes>, bool), h2::Error> {
    let (sender, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("1 MiB fits into 32 bits"))
        .data_frame_budget(PIECES)
        .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
        .handshake(stream)
        .await?;
    let pings = if ask { connection.ping_pong() } else { None };
    runtime::task::spawn_local("upstream-h2", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream HTTP/2 connection ended");
        }
    });
    if let Some(mut pings) = pings {
        pings.ping(h2::Ping::opaque()).await?;
    }
    let takes = sender.is_extended_connect_protocol_enabled();
    Ok((sender, takes))
}

// === impl Lease ===

impl Lease {
    fn new(endpoint: Rc<Endpoint>, connection: Connection) -> Self {
        endpoint.load.set(endpoint.load.get() + 1);
        Self { endpoint, connection }
    }

    /// What is spoken on it.
    pub(crate) fn protocol(&self) -> Protocol {
        match &self.connection {
            Connection::H1(_) | Connection::Gone => Protocol::Http1,
            Connection::H2(_) => Protocol::H2c,
        }
    }

    /// Whether it is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.endpoint.tls.is_some()
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.endpoint.addr
    }

    /// The connection, if it is one of HTTP/1.1.
    pub(crate) fn http1(&mut self) -> Option<&mut client::Connection> {
        match &mut self.connection {
            Connection::H1(connection) => Some(connection),
            Connection::H2(_) | Connection::Gone => None,
        }
    }

    /// The same, to look at.
    pub(crate) fn http1_ref(&self) -> Option<&client::Connection> {
        match &self.connection {
            Connection::H1(connection) => Some(connection),
            Connection::H2(_) | Connection::Gone => None,
        }
    }

    /// Begins with a request on an HTTP/2 connection, which makes progress by itself; with `last` its head is all there
    /// is. `None` when the connection takes no more requests.
    pub(crate) fn call(&mut self, head: Request<()>, last: bool) -> Option<Result<Call, h2::Error>> {
        let Connection::H2(sender) = &mut self.connection else { return None };
        match sender.send_request(head, last) {
            Ok((response, stream)) => Some(Ok(Call { response, stream })),
            Err(error) if error.is_io() || error.is_go_away() => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// The socket of an HTTP/1.1 connection that was upgraded, and what was read ahead of it.
    pub(crate) fn into_socket(mut self) -> Option<(Stream, Bytes)> {
        match std::mem::replace(&mut self.connection, Connection::Gone) {
            Connection::H1(connection) => Some(connection.into_parts()),
            Connection::H2(_) | Connection::Gone => None,
        }
    }

    /// The response has ended: an open HTTP/1.1 connection goes back to the pool.
    pub(crate) fn finish(mut self) {
        if let Connection::H1(mut connection) = std::mem::replace(&mut self.connection, Connection::Gone)
            && connection.is_reusable()
            && connection.is_quiet()
        {
            connection.keep();
            self.endpoint.put_idle(connection);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.load.set(self.endpoint.load.get() - 1);
    }
}
