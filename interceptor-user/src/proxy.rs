//! A request's way through the stages: route → count → hold → forward → respond.

use std::{
    convert::Infallible,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{self, CONNECTION, EXPECT, HOST, TRANSFER_ENCODING},
    request,
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use interceptor_core::{Route, route::Backend, upstream::Protocol};
use tokio::time::Instant;

mod balance;
pub(crate) mod body;
mod deadline;
mod driver;
mod error;
mod fixed;
mod forward;
mod headers;
mod hold;
pub(crate) mod inflight;
mod media_type;
mod pool;
mod respond;
mod upgrade;

pub(crate) use self::{
    balance::Balancer,
    deadline::Timer,
    error::ProxyError,
    hold::ColdWait,
    respond::{Verdict, verdict},
};
use self::{
    body::{RequestBody, ResponseBody},
    fixed::Static,
    forward::{Deadlines, Sent},
    headers::Direction,
    hold::{Acquired, Limits},
    inflight::{InFlight, Line},
    pool::Lease,
    upgrade::Tunnel,
};
use crate::{
    coldstart::ColdStart,
    server::connection::Connection,
    worker::{LocalRoute, Worker},
};

/// How often a request that was not sent may look for another connection. Each try needs a connection that died
/// between being found open and being written to, so more in a row means that something else is wrong.
const MAX_TRIES: usize = 4;

/// How long a request with a fallback waits for its target when nothing else is said; the add-on's value.
const READINESS_WITH_FALLBACK: Duration = Duration::from_secs(30);

/// Serves one request.
///
/// Dropping the future, as hyper does when the client leaves, ends the request everywhere.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let line = worker.shared.config.log_requests.then(|| line(&request));
    let version = request.version();
    let mut in_flight = InFlight::new(Rc::clone(&worker), Rc::clone(&connection), request.method(), line);
    let mut exchange = Exchange { worker, connection, route: None, cold: None };
    let (mut response, tunnel) = match exchange.run(request, &mut in_flight).await {
        Ok((response, tunnel)) => (response, tunnel),
        Err(error) => (exchange.fail(&error), None),
    };
    in_flight.set_status(response.status());
    if let Some(cold) = exchange.cold
        && exchange.worker.shared.config.cold_start_header
        && in_flight.is_counted()
    {
        // Replaced, not added: a workload that sends the field itself does not know better.
        response
            .headers_mut()
            .insert(headers::COLD_START, HeaderValue::from_static(if cold { "true" } else { "false" }));
    }
    if exchange.worker.is_draining() && version <= Version::HTTP_11 && tunnel.is_none() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    match tunnel {
        Some(tunnel) => tunnel.into_tunnel(in_flight).spawn(&exchange.worker),
        None => response.body_mut().count(in_flight),
    }
    Ok(response)
}

/// One request on its way.
struct Exchange {
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    route: Option<Rc<LocalRoute>>,
    /// Value of the cold-start header; `None` while none is due.
    cold: Option<bool>,
}

/// An upgrade that both sides agreed to.
struct Agreed {
    client: OnUpgrade,
    upstream: OnUpgrade,
    lease: Lease,
    deadline: Option<Instant>,
}

/// What the client asked to switch to.
struct Asked {
    protocol: HeaderValue,
    client: OnUpgrade,
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
    async fn run(
        &mut self,
        request: Request<Incoming>,
        in_flight: &mut InFlight,
    ) -> Result<(Response<ResponseBody>, Option<Agreed>), ProxyError> {
        if request.method() == Method::OPTIONS && request.uri().path() == "*" {
            return Ok((respond::options_asterisk(), None));
        }
        if request.method() == Method::CONNECT {
            return Err(ProxyError::Connect);
        }
        let host = headers::host(request.headers(), request.uri().authority(), request.version())
            .ok_or(ProxyError::BadHost)?;
        let route = self.worker.route(&host, request.uri().path(), request.headers()).ok_or(ProxyError::NoRoute)?;
        self.route = Some(Rc::clone(&route));
        in_flight.set_route(&route);
        if self.worker.is_unresolved(&route.entry, Backend::Target) {
            return Err(ProxyError::Unresolved);
        }
        if let Some(answer) = self.answer(&route, &host, &request, in_flight)? {
            return Ok((answer, None));
        }
        let due = self.due(&route, in_flight.arrived());
        let (outgoing, asked) = self.outgoing(request, host);
        self.exchange(&route, outgoing, asked, due, in_flight.arrived()).await
    }

    /// Counts the request, unless a static route takes it, and answers it if that needs no upstream.
    fn answer(
        &self,
        route: &Rc<LocalRoute>,
        host: &HeaderValue,
        request: &Request<Incoming>,
        in_flight: &mut InFlight,
    ) -> Result<Option<Response<ResponseBody>>, ProxyError> {
        let Route { placeholder, static_routes, .. } = &route.entry.route;
        if placeholder.is_none() && static_routes.is_empty() {
            in_flight.count(route);
            return Ok(None);
        }
        let snapshot = self.worker.snapshot();
        let is_cold = snapshot.upstream_of(&route.entry).is_none_or(|upstream| upstream.endpoints.is_empty());
        match fixed::static_route(static_routes, is_cold, host, request) {
            Static::Answer(response) => return fixed::answer(response, &snapshot, request.uri().path()).map(Some),
            Static::Forward => return Ok(None),
            Static::Pass => in_flight.count(route),
        }
        let placeholder = placeholder.as_ref().filter(|_| is_cold);
        placeholder.map(|response| fixed::placeholder(response, &snapshot, request.uri().path())).transpose()
    }

    /// Finds a connection, sends, and repeats where that is safe.
    async fn exchange(
        &mut self,
        route: &Rc<LocalRoute>,
        mut request: Request<RequestBody>,
        asked: Option<Asked>,
        due: Due,
        arrived: Instant,
    ) -> Result<(Response<ResponseBody>, Option<Agreed>), ProxyError> {
        let deadlines = Deadlines { response_header: due.response_header, request: due.request };
        let mut timer = self.connection.timer();
        for _ in 0..MAX_TRIES {
            let (mut lease, cold) = self.acquire(route, &request, due).await?;
            Self::address(&mut request, lease.protocol(), asked.as_ref());
            let addr = lease.addr();
            let sent = forward::send(&mut lease, request, deadlines, &mut timer.timer).await?;
            match sent {
                Sent::Response(response) => {
                    if let Some(cold) = cold {
                        self.record_cold_start(route, cold, arrived, response.status());
                    }
                    return Self::respond(response, lease, asked, due);
                }
                Sent::Unsent(again) | Sent::Repeat(again) => {
                    tracing::debug!(endpoint = %addr, "connection was closed before the request was sent or answered");
                    request = again;
                }
            }
        }
        Err(ProxyError::UpstreamClosed)
    }

    async fn acquire(
        &mut self,
        route: &Rc<LocalRoute>,
        request: &Request<RequestBody>,
        due: Due,
    ) -> Result<(Lease, Option<ColdWait>), ProxyError> {
        let limits = Limits { readiness: due.readiness, request: due.request };
        let unread_body = request.body().sent().is_some_and(|sent| sent.get().is_none());
        match hold::acquire(&self.worker, &self.connection, route, limits, unread_body).await {
            Ok(Acquired { lease, backend, cold }) => {
                match backend {
                    // A second try of the same request is no cold start of its own.
                    Backend::Target => _ = self.cold.get_or_insert(cold.is_some()),
                    Backend::Fallback => self.cold = None,
                }
                Ok((lease, cold))
            }
            Err(error) => {
                if error.past_hold {
                    self.cold.get_or_insert(error.cold);
                }
                Err(error.error)
            }
        }
    }

    /// The request as the upstream is to see it, but for what depends on the connection.
    fn outgoing(&self, request: Request<Incoming>, host: HeaderValue) -> (Request<RequestBody>, Option<Asked>) {
        let (mut parts, body) = request.into_parts();
        let client = parts.extensions.remove::<OnUpgrade>();
        parts.extensions.clear();
        let expects =
            parts.headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let protocol = headers::strip_hop_by_hop(&mut parts.headers, Direction::Request);
        headers::set_forwarded(&mut parts.headers, self.connection.peer_ip(), &host);
        if parts.headers.get(HOST) != Some(&host) {
            parts.headers.insert(HOST, host);
        }
        let mut body = RequestBody::new(body);
        if expects && body.sent().is_some() {
            self.relay_informational(&mut parts, Some(&mut body));
        } else if parts.version == Version::HTTP_11 {
            self.relay_informational(&mut parts, None);
        }
        parts.version = Version::HTTP_11;
        let asked = protocol.zip(client).map(|(protocol, client)| Asked { protocol, client });
        (Request::from_parts(parts, body), asked)
    }

    /// Passes 1xx responses on, and lets a body that waits for `100 Continue` go.
    fn relay_informational(&self, parts: &mut request::Parts, body: Option<&mut RequestBody>) {
        let interim = (parts.version == Version::HTTP_11).then(|| self.connection.interim());
        let open = Arc::new(AtomicBool::new(false));
        if let Some(body) = body {
            body.wait_for_continue(Arc::clone(&open));
        }
        let mut carrier = Request::new(());
        hyper::ext::on_informational(&mut carrier, move |response| {
            if response.status() == StatusCode::CONTINUE {
                // hyper's server says it to the client when the body is first asked for.
                open.store(true, Relaxed);
            } else if let Some(interim) = &interim {
                interim.send(response.status(), response.headers());
            }
        });
        parts.extensions = std::mem::take(carrier.extensions_mut());
    }

    /// Puts the target and the upgrade into the form of the connection's protocol.
    fn address(request: &mut Request<RequestBody>, protocol: Protocol, asked: Option<&Asked>) {
        match protocol {
            Protocol::Http1 => {
                if request.uri().authority().is_some() {
                    *request.uri_mut() = origin_form(request.uri());
                }
                *request.version_mut() = Version::HTTP_11;
                if let Some(asked) = asked {
                    headers::set_upgrade(request.headers_mut(), asked.protocol.clone());
                }
                // hyper takes these two to have no body unless they say that they do.
                if matches!(*request.method(), Method::GET | Method::HEAD) && request.body().has_unknown_length() {
                    request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
            }
            Protocol::H2c => {
                *request.version_mut() = Version::HTTP_2;
                request.headers_mut().remove(TRANSFER_ENCODING);
                if let Some(uri) = absolute_form(request) {
                    *request.uri_mut() = uri;
                    request.headers_mut().remove(HOST);
                }
            }
        }
    }

    fn respond(
        response: Response<Incoming>,
        lease: Lease,
        asked: Option<Asked>,
        due: Due,
    ) -> Result<(Response<ResponseBody>, Option<Agreed>), ProxyError> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return switch(response, lease, asked, due);
        }
        let (mut parts, body) = response.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers, Direction::Response);
        parts.version = Version::HTTP_11;
        Ok((Response::from_parts(parts, ResponseBody::upstream(body, lease, due.request)), None))
    }

    fn due(&self, route: &LocalRoute, arrived: Instant) -> Due {
        let config = &self.worker.shared.config;
        let own = &route.entry.route.timeouts;
        let limit =
            |own: Option<Duration>, default: Duration| Some(own.unwrap_or(default)).filter(|limit| !limit.is_zero());
        // Without a limit the fallback's turn would never come.
        let with_fallback = route.entry.fallback.map(|_| READINESS_WITH_FALLBACK);
        Due {
            readiness: limit(own.readiness, config.readiness_timeout)
                .or(with_fallback)
                .and_then(|limit| arrived.checked_add(limit)),
            request: limit(own.request, config.request_timeout).and_then(|limit| arrived.checked_add(limit)),
            response_header: limit(own.response_header, config.response_header_timeout),
        }
    }

    fn fail(&self, error: &ProxyError) -> Response<ResponseBody> {
        let verdict = verdict(error);
        self.worker.shared.metrics.failed(verdict);
        let route = self.route.as_ref().map(|route| tracing::field::display(&route.entry.route.key));
        let source = std::error::Error::source(error).map(tracing::field::display);
        tracing::debug!(%error, source, route, reason = verdict.reason, "request failed");
        respond::respond(error)
    }

    fn record_cold_start(&self, route: &LocalRoute, cold: ColdWait, arrived: Instant, status: StatusCode) {
        self.worker.shared.cold_starts.push(ColdStart::new(&route.entry.route.key, arrived, cold, status));
    }
}

// === impl Agreed ===

impl Agreed {
    fn into_tunnel(self, in_flight: InFlight) -> Tunnel {
        let Self { client, upstream, lease, deadline } = self;
        Tunnel { client, upstream, lease, in_flight, deadline }
    }
}

/// The upstream's `101`: both sides must have meant the same protocol.
fn switch(
    mut response: Response<Incoming>,
    lease: Lease,
    asked: Option<Asked>,
    due: Due,
) -> Result<(Response<ResponseBody>, Option<Agreed>), ProxyError> {
    let granted = headers::strip_hop_by_hop(response.headers_mut(), Direction::Response);
    let (Some(asked), Some(granted)) = (asked, granted) else { return Err(ProxyError::UpgradeMismatch) };
    if !asked.protocol.as_bytes().eq_ignore_ascii_case(granted.as_bytes()) {
        return Err(ProxyError::UpgradeMismatch);
    }
    let upstream = hyper::upgrade::on(&mut response);
    let (mut parts, _body) = response.into_parts();
    headers::set_upgrade(&mut parts.headers, granted);
    let agreed = Agreed { client: asked.client, upstream, lease, deadline: due.request };
    Ok((Response::from_parts(parts, ResponseBody::empty()), Some(agreed)))
}

fn origin_form(uri: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = uri.path_and_query().cloned();
    Uri::from_parts(parts).unwrap_or_default()
}

/// The target with scheme and the client's own authority; `None` when the authority is none.
fn absolute_form(request: &Request<RequestBody>) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = Some(http::uri::Authority::try_from(request.headers().get(HOST)?.as_bytes()).ok()?);
    parts.path_and_query = request.uri().path_and_query().cloned();
    Uri::from_parts(parts).ok()
}

fn line(request: &Request<Incoming>) -> Box<Line> {
    Box::new(Line {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        version: request.version(),
        referer: request.headers().get(header::REFERER).cloned(),
        user_agent: request.headers().get(header::USER_AGENT).cloned(),
    })
}
