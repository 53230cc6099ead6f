//! A request's way through the stages: route → count → hold → forward → respond.

use std::{
    net::SocketAddr,
    rc::Rc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use interceptor_core::{
    Route,
    route::{Backend, Overflow},
};
use tokio::time::Instant;

mod access;
mod balance;
pub(crate) mod body;
mod deadline;
mod error;
mod extended;
mod fixed;
pub(crate) mod forward;
mod gate;
mod grpc;
pub(crate) mod headers;
mod hold;
pub(crate) mod inflight;
pub(crate) mod interim;
mod media_type;
pub(crate) mod message;
mod pool;
pub(crate) mod raw;
mod respond;
mod session;
pub(crate) mod target;
mod trace;
pub(crate) mod upgrade;

use self::{
    access::Line,
    body::{RequestBody, ResponseBody, Sending},
    fixed::{Asked, Recipient, Static},
    forward::{Answer, Deadlines, Opened, Outbound, Sent},
    headers::{Hop, Outgoing},
    hold::{Acquired, Limits, Need},
    inflight::{InFlight, Told},
    pool::Lease,
    session::Wish,
    trace::Trace,
    upgrade::{Tunnel, Upstream},
};
pub(crate) use self::{
    balance::Balancer,
    deadline::Timer,
    error::ProxyError,
    gate::Gates,
    hold::ColdWait,
    message::{Ask, Reply},
    respond::{Verdict, verdict},
    session::Clients,
};
use crate::{
    h1::{
        client::is_switch,
        fields::{Fields, Known, Lazy},
        framing,
        parse::ResponseHead,
    },
    http2::{duplex::Duplex, receive::Incoming},
    server::connection::{Connection, Phase},
    trust::Trust,
    worker::{LocalRoute, Received, Worker},
};

/// How often a request that was not sent may look for another connection. Each try needs a connection that died
/// between being found open and being written to, so more in a row means that something else is wrong.
const MAX_TRIES: usize = 4;

/// How long a request with a fallback waits for its target when nothing else is said; the add-on's value.
const READINESS_WITH_FALLBACK: Duration = Duration::from_secs(30);

/// Serves one request.
///
/// Dropping the future, as the servers do when the client leaves, ends the request everywhere.
pub(crate) async fn handle(worker: Rc<Worker>, connection: Rc<Connection>, mut ask: Ask) -> Reply {
    let line = Line::of(&ask, worker.shared.config.access_log);
    let trace = worker.shared.tracer.as_ref().map(|tracer| Trace::begin(tracer, &ask, &connection));
    let told = Told { line, trace };
    let mut in_flight = InFlight::new(Rc::clone(&worker), Rc::clone(&connection), &ask.method, told);
    let mut exchange = Exchange { worker, connection, route: None, cold: None, pod: None };
    let mut reply = match exchange.run(&mut ask, &mut in_flight).await {
        Ok(reply) => {
            in_flight.set_status(reply.status);
            reply
        }
        Err(error) => {
            in_flight.set_status(verdict(&error).status);
            exchange.fail(&error, &ask.fields)
        }
    };
    exchange.let_go();
    if exchange.worker.shared.config.cold_start_header && in_flight.is_counted() {
        reply.cold = exchange.cold;
    }
    if let Some(trace) = in_flight.trace() {
        trace.set_cold(reply.cold);
    }
    match &mut reply.tunnel {
        Some(tunnel) => tunnel.in_flight = Some(in_flight),
        None => reply.body.count(in_flight),
    }
    reply
}

/// The reply to a request that the process does not wait for any longer, as it ends.
pub(crate) fn too_late() -> Reply {
    respond::respond(&ProxyError::RequestTimeout)
}

/// One request on its way.
struct Exchange {
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    route: Option<Rc<LocalRoute>>,
    /// Value of the cold-start header; `None` while none is due.
    cold: Option<bool>,
    /// The target's endpoint that was taken.
    pod: Option<SocketAddr>,
}

/// A request's deadlines, from the route or else the environment.
#[derive(Clone, Copy)]
struct Due {
    readiness: Option<Instant>,
    request: Option<Instant>,
    response_header: Option<Duration>,
}

// === impl Exchange ===

impl Exchange {
    async fn run(&mut self, ask: &mut Ask, in_flight: &mut InFlight) -> Result<Reply, ProxyError> {
        let Ask { method, target, version, fields, body, interim, extended } = ask;
        let version = *version;
        let target = target.as_ref().ok_or(ProxyError::BadTarget)?;
        if *method == Method::OPTIONS && &target.path_and_query[..] == b"*" {
            return Ok(respond::options_asterisk());
        }
        let host = headers::host(fields, target, version).ok_or(ProxyError::BadHost)?;
        let since = in_flight.trace().map(|_| Instant::now());
        let route = match self.connection.entrance() {
            None => self.worker.route(&host, target.path(), &Lazy::new(fields)),
            Some(entrance) => self.worker.route_at(entrance, &host, target.path(), &Lazy::new(fields)),
        };
        if let (Some(trace), Some(since)) = (in_flight.trace(), since) {
            trace.routed(since, route.as_ref().map(|route| &route.entry.route.key));
        }
        let route = route.ok_or(ProxyError::NoRoute)?;
        self.route = Some(Rc::clone(&route));
        in_flight.set_route(&route);
        if self.worker.lacks_target(&route) {
            return Err(ProxyError::Unresolved);
        }
        let recipient = Recipient { path: target.path(), interim: interim.as_ref() };
        if let Some(answer) = self.answer(&route, &Asked { host: &host, target, fields }, recipient, in_flight)? {
            return Ok(answer);
        }
        let due = self.due(&route, in_flight.arrived());
        let hop = extended.as_ref().map_or_else(|| Hop::of(fields), |extended| Hop::upgrade(&extended.protocol));
        let connection = Rc::clone(&self.connection);
        let outbound = Outbound {
            method,
            path_and_query: &target.path_and_query,
            fields,
            outgoing: Outgoing {
                host: &host,
                client: connection.peer_ip(),
                encrypted: connection.is_encrypted(),
                trust: connection.trust(),
                hop: &hop,
                upgradable: version == Version::HTTP_11 || extended.is_some(),
                trace: None,
            },
            extended: extended.as_deref(),
            interim: interim.as_ref(),
        };
        match self.exchange(&route, &outbound, body.take(), due, in_flight).await {
            Ok(reply) if route.has_session => Ok(self.stay(&route, fields, reply)),
            Err(ProxyError::HoldFull) => self.overflow(&route, recipient),
            result => result,
        }
    }

    /// Counts the request, unless a static route takes it, and answers it if that needs no upstream.
    fn answer(
        &self,
        route: &Rc<LocalRoute>,
        asked: &Asked<'_>,
        recipient: Recipient<'_>,
        in_flight: &mut InFlight,
    ) -> Result<Option<Reply>, ProxyError> {
        if !route.has_answers {
            in_flight.count(route);
            return Ok(None);
        }
        let Route { placeholder, static_routes, holding, .. } = &route.entry.route;
        let snapshot = self.worker.snapshot();
        let is_cold = snapshot.upstream_of(&route.entry).is_none_or(|upstream| upstream.endpoints.is_empty());
        match fixed::static_route(static_routes, is_cold, asked) {
            Static::Answer(response) => return fixed::answer(response, &snapshot, recipient).map(Some),
            Static::Forward => return Ok(None),
            Static::Pass => in_flight.count(route),
        }
        let placeholder = placeholder.as_ref().filter(|_| is_cold && !holding.goes_before_placeholder());
        placeholder.map(|response| fixed::placeholder(response, &snapshot, recipient)).transpose()
    }

    /// Answers a request for which there is no place in the hold queue.
    fn overflow(&self, route: &LocalRoute, recipient: Recipient<'_>) -> Result<Reply, ProxyError> {
        let Route { holding, placeholder, key, .. } = &route.entry.route;
        if let Some(response) = placeholder.as_ref().filter(|_| holding.overflow == Overflow::Placeholder) {
            return fixed::placeholder(response, &self.worker.snapshot(), recipient);
        }
        self.worker.shared.metrics.hold_rejected(key);
        Err(ProxyError::HoldFull)
    }

    /// Finds a connection, sends, and repeats where that is safe.
    async fn exchange(
        &mut self,
        route: &Rc<LocalRoute>,
        outbound: &Outbound<'_>,
        mut body: RequestBody,
        due: Due,
        in_flight: &InFlight,
    ) -> Result<Reply, ProxyError> {
        let arrived = in_flight.arrived();
        let deadlines = Deadlines { response_header: due.response_header, request: due.request, began: arrived };
        let mut timer = self.connection.timer();
        if outbound.fields.expects_continue() && body.sent().is_some() {
            body.wait_for_continue();
        }
        let mut now = arrived;
        for _ in 0..MAX_TRIES {
            let upgraded = outbound.upgrade().is_some();
            let acquired = self.acquire(route, (&body, in_flight), due, (outbound, upgraded, now)).await;
            if let Some(trace) = in_flight.trace() {
                match &acquired {
                    Ok(acquired) => trace.acquired(now, acquired),
                    Err(_error) => trace.gave_up(now),
                }
            }
            let acquired = acquired?;
            let Acquired { mut lease, at, backend: _, cold } = acquired;
            let addr = lease.addr();
            let parent = in_flight.trace().map(|trace| trace.attempt(outbound.method, addr));
            let traced = parent.as_ref().map(|parent| outbound.traced(parent));
            let outbound = traced.as_ref().unwrap_or(outbound);
            let sent = forward::send(&mut lease, outbound, &mut body, deadlines.from(at), &mut timer.timer).await;
            if let (Some(trace), Err(error)) = (in_flight.trace(), &sent) {
                trace.failed(error.to_string());
            }
            let sent = sent?;
            let status = match &sent {
                Sent::Http1(head) => head.status,
                Sent::Http2(answer) => answer.response.status(),
                Sent::Opened(_) => StatusCode::SWITCHING_PROTOCOLS,
                Sent::Unsent | Sent::Repeat => {
                    tracing::debug!(endpoint = %addr, "connection was closed before the request was sent or answered");
                    if let Some(trace) = in_flight.trace() {
                        trace.failed("the connection was closed");
                    }
                    now = Instant::now();
                    continue;
                }
            };
            if let Some(trace) = in_flight.trace() {
                trace.answered(status);
            }
            if let Some(cold) = cold {
                self.record_cold_start(route, cold, arrived, status);
            }
            return match sent {
                Sent::Http1(head) if is_switch(&head) => switch(head, lease, outbound, due),
                Sent::Http1(head) => {
                    Ok(Reply::new(head.status, head.fields, ResponseBody::http1(lease, body, due.request)))
                }
                Sent::Http2(answer) => Ok(from_http2(*answer, body, lease, due)),
                Sent::Opened(opened) => Ok(open(*opened, lease, outbound, due)),
                Sent::Unsent | Sent::Repeat => Err(ProxyError::UpstreamClosed),
            };
        }
        Err(ProxyError::UpstreamClosed)
    }

    async fn acquire(
        &mut self,
        route: &Rc<LocalRoute>,
        asker: (&RequestBody, &InFlight),
        due: Due,
        (outbound, upgraded, now): (&Outbound<'_>, bool, Instant),
    ) -> Result<Acquired, ProxyError> {
        let limits = Limits { readiness: due.readiness, request: due.request };
        let received = Received::requests(self.connection.is_encrypted());
        let need = Need { received, upgraded, wish: self.wish(route, outbound) };
        match hold::acquire(&self.worker, route, (limits, need), asker, now).await {
            Ok(acquired) => {
                self.pod = Some(acquired.lease.addr()).filter(|_| acquired.backend == Backend::Target);
                match acquired.backend {
                    // A second try of the same request is no cold start of its own.
                    Backend::Target => _ = self.cold.get_or_insert(acquired.cold.is_some()),
                    Backend::Fallback => self.cold = None,
                }
                Ok(acquired)
            }
            Err(error) => {
                if error.past_hold {
                    self.cold.get_or_insert(error.cold);
                }
                Err(error.error)
            }
        }
    }

    /// To which pod the request is to go, if it can.
    fn wish(&self, route: &LocalRoute, outbound: &Outbound<'_>) -> Wish {
        let session = if route.has_session { route.entry.route.session.as_deref() } else { None };
        if let Some(pod) = session.and_then(|session| session::pod_of(session, outbound.fields, SystemTime::now())) {
            return Wish::Pod(pod);
        }
        let peer = self.connection.peer().ip();
        if outbound.outgoing.trust != Trust::Given {
            return Wish::Any(peer);
        }
        let told = outbound.fields.first(Known::ForwardedFor).and_then(session::last_address);
        Wish::Any(told.unwrap_or(peer))
    }

    /// Lets the client stay with the pod that has answered, unless its cookie says so already.
    fn stay(&self, route: &LocalRoute, asked: &Fields, mut reply: Reply) -> Reply {
        let (Some(session), Some(pod)) = (&route.entry.route.session, self.pod) else { return reply };
        let encrypted = self.connection.is_encrypted();
        let name =
            self.worker.target(route, Received::requests(encrypted)).ok().and_then(|balancer| balancer.name_of(pod));
        let now = SystemTime::now();
        let Some(name) = name.filter(|name| session::pod_of(session, asked, now) != Some(*name)) else { return reply };
        let cookie = session::cookie(session, name, session::is_secure(encrypted, asked), now);
        reply.fields = reply.fields.and("set-cookie", cookie.as_bytes());
        reply
    }

    /// Who came by an entrance need not come that way again once there is a pod: its next connection finds the pod itself.
    fn let_go(&self) {
        if self.pod.is_some() && self.connection.entrance().is_some() {
            self.connection.advance(Phase::Closing);
        }
    }

    fn due(&self, route: &LocalRoute, arrived: Instant) -> Due {
        let config = &self.worker.shared.config;
        let own = route.timeouts();
        let limit =
            |own: Option<Duration>, default: Duration| Some(own.unwrap_or(default)).filter(|limit| !limit.is_zero());
        // Without a limit the fallback's turn would never come.
        let with_fallback = route.has_fallback.then_some(READINESS_WITH_FALLBACK);
        Due {
            readiness: limit(own.readiness, config.readiness_timeout)
                .or(with_fallback)
                .and_then(|limit| arrived.checked_add(limit)),
            request: limit(own.request, config.request_timeout).and_then(|limit| arrived.checked_add(limit)),
            response_header: limit(own.response_header, config.response_header_timeout),
        }
    }

    fn fail(&self, error: &ProxyError, asked: &Fields) -> Reply {
        let verdict = verdict(error);
        self.worker.shared.metrics.failed(verdict);
        let route = self.route.as_ref().map(|route| tracing::field::display(&route.entry.route.key));
        let source = std::error::Error::source(error).map(tracing::field::display);
        tracing::debug!(%error, source, route, reason = verdict.reason, "request failed");
        let grpc = self.worker.shared.config.grpc_status && grpc::is_call(asked);
        if grpc { respond::respond_grpc(error) } else { respond::respond(error) }
    }

    fn record_cold_start(&self, route: &LocalRoute, cold: ColdWait, arrived: Instant, status: StatusCode) {
        let entry = &route.entry;
        let probed = self.worker.shared.probing.answered(&entry.route.target.service);
        self.worker.shared.cold_starts.note(entry, (arrived, probed), cold, status);
    }
}

fn from_http2(answer: Answer, body: RequestBody, lease: Lease, due: Due) -> Reply {
    let Answer { response, sender } = answer;
    let (parts, stream) = response.into_parts();
    let fields = Fields::from_map(&parts.headers);
    let incoming = Incoming::new(stream, framing::length(&fields).ok().flatten());
    let request = sender.map(|sender| Box::new(Sending { body, sender }));
    Reply::new(parts.status, fields, ResponseBody::http2(incoming, lease, request, due.request))
}

/// The upstream's answer to an extended CONNECT, in the form of HTTP/1.1.
fn open(opened: Opened, lease: Lease, outbound: &Outbound<'_>, due: Due) -> Reply {
    let Opened { response, stream } = opened;
    let (parts, incoming) = response.into_parts();
    let mut fields = Fields::from_map(&parts.headers);
    // A client of HTTP/2 wants none.
    if let Some(accept) = extended::acceptance(outbound.fields).filter(|_| outbound.extended.is_none()) {
        fields = fields.and("sec-websocket-accept", accept.as_bytes());
    }
    let protocol = outbound.upgrade().cloned().unwrap_or_default();
    let upstream = Upstream::Http2(Duplex::new(incoming, stream), lease);
    let mut reply = Reply::new(StatusCode::SWITCHING_PROTOCOLS, fields, ResponseBody::empty());
    reply.tunnel = Some(Box::new(Tunnel { protocol, upstream, in_flight: None, deadline: due.request }));
    reply
}

/// The upstream's `101`: both sides must have meant the same protocol.
fn switch(head: ResponseHead, lease: Lease, outbound: &Outbound<'_>, due: Due) -> Result<Reply, ProxyError> {
    let asked = outbound.outgoing;
    let mut reply = Reply::new(head.status, head.fields, ResponseBody::empty());
    let asked = asked.hop.upgrade.as_ref().filter(|_| asked.upgradable);
    let (Some(asked), Some(granted)) = (asked, &reply.hop.upgrade) else { return Err(ProxyError::UpgradeMismatch) };
    if !asked.eq_ignore_ascii_case(granted)
        || outbound.extended.is_some_and(|extended| !extended.is_accepted(&reply.fields))
    {
        return Err(ProxyError::UpgradeMismatch);
    }
    let protocol: Bytes = granted.clone();
    let upstream = Upstream::Http1(lease);
    reply.tunnel = Some(Box::new(Tunnel { protocol, upstream, in_flight: None, deadline: due.request }));
    Ok(reply)
}
