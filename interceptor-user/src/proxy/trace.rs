//! A request's spans for OpenTelemetry, made only where the process was asked for them: one for the request as its
//! server, below it one for each stage that took time, and one for each attempt as a client, which the upstream goes on
//! from. Names and attributes are the KEDA HTTP Add-on's and OpenTelemetry's semantic conventions for HTTP; the stages
//! are ours.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    net::SocketAddr,
    time::SystemTime,
};

use http::{Method, StatusCode};
use interceptor_core::ObjectKey;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span},
};
use tokio::time::Instant;

use super::{hold::Acquired, message::Ask, target::Target};
use crate::{h1::fields::Fields, metrics::MethodLabel, server::connection::Connection};

/// One request's spans; they end when it is dropped.
#[derive(Debug)]
pub(crate) struct Trace {
    tracer: SdkTracer,
    /// Holds the server's span, below which the others are.
    server: Context,
    /// The attempt that goes on now.
    client: RefCell<Option<Span>>,
    cold: Cell<Option<bool>>,
}

/// What an upstream goes on from, as W3C's Trace Context spells it.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) parent: String,
    /// Empty when there is none.
    pub(crate) state: String,
}

struct Carrier<'a>(&'a Fields);

// === impl Trace ===

impl Trace {
    /// A request that has come.
    pub(crate) fn begin(tracer: &SdkTracer, ask: &Ask, connection: &Connection) -> Box<Self> {
        let client = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(&ask.fields));
        let builder = SpanBuilder::from_name("keda-http-interceptor")
            .with_kind(SpanKind::Server)
            .with_attributes(of_request(ask, connection));
        let server = client.with_span(tracer.build_with_context(builder, &client));
        Box::new(Self { tracer: tracer.clone(), server, client: RefCell::default(), cold: Cell::default() })
    }

    /// Its route was looked for from `since` on.
    pub(crate) fn routed(&self, since: Instant, route: Option<&ObjectKey>) {
        let attributes = route.map(|key| {
            [
                KeyValue::new("route.name", key.name().to_owned()),
                KeyValue::new("route.namespace", key.namespace().to_owned()),
            ]
        });
        self.stage("route", (since, None), attributes.into_iter().flatten());
    }

    /// It has waited from `since` on and got a connection.
    pub(crate) fn acquired(&self, since: Instant, acquired: &Acquired) {
        if let Some(cold) = &acquired.cold {
            self.stage("hold", (since, Some(cold.endpoint_seen)), []);
            self.stage("connect", (cold.endpoint_seen, Some(cold.connected)), []);
        } else if acquired.at > since {
            self.stage("connect", (since, Some(acquired.at)), []);
        }
    }

    /// It has waited from `since` on and got none.
    pub(crate) fn gave_up(&self, since: Instant) {
        self.stage("hold", (since, None), []);
    }

    /// It is sent to an endpoint: what the upstream is to be told.
    pub(crate) fn attempt(&self, method: &Method, endpoint: SocketAddr) -> Parent {
        let builder = SpanBuilder::from_name(format!("HTTP {method}")).with_kind(SpanKind::Client).with_attributes([
            method_attribute(method),
            KeyValue::new("server.address", endpoint.ip().to_string()),
            KeyValue::new("server.port", i64::from(endpoint.port())),
        ]);
        let span = self.tracer.build_with_context(builder, &self.server);
        let context = span.span_context();
        let parent = Parent {
            parent: format!(
                "00-{}-{}-{:02x}",
                context.trace_id(),
                context.span_id(),
                u8::from(context.trace_flags().is_sampled())
            ),
            state: context.trace_state().header(),
        };
        self.client.replace(Some(span));
        parent
    }

    /// The attempt was answered.
    pub(crate) fn answered(&self, status: StatusCode) {
        if let Some(client) = &mut *self.client.borrow_mut() {
            client.set_attribute(status_attribute(status.as_u16()));
            if status.is_client_error() || status.is_server_error() {
                client.set_status(Status::error(""));
            }
        }
    }

    /// The attempt came to nothing.
    pub(crate) fn failed(&self, why: impl Into<Cow<'static, str>>) {
        if let Some(mut client) = self.client.take() {
            client.set_status(Status::error(why));
        }
    }

    /// What the cold-start header says, if there is one.
    pub(crate) fn set_cold(&self, cold: Option<bool>) {
        self.cold.set(cold);
    }

    /// The response has ended.
    pub(crate) fn end(self: Box<Self>, status: u16) {
        drop(self.client.take());
        let server = self.server.span();
        server.set_attribute(status_attribute(status));
        server.set_attribute(KeyValue::new("service", "keda-http-interceptor-proxy-upstream"));
        let cold = match self.cold.get() {
            Some(true) => "true",
            Some(false) => "false",
            None => "",
        };
        server.set_attribute(KeyValue::new("cold-start", cold));
        if status >= 500 {
            server.set_status(Status::error(""));
        }
        server.end();
    }

    fn stage(
        &self,
        name: &'static str,
        (since, until): (Instant, Option<Instant>),
        attributes: impl IntoIterator<Item = KeyValue>,
    ) {
        let builder = SpanBuilder::from_name(name).with_start_time(wall(since)).with_attributes(attributes);
        let mut span = self.tracer.build_with_context(builder, &self.server);
        span.end_with_timestamp(until.map_or_else(SystemTime::now, wall));
    }
}

// === impl Carrier ===

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.0.find(key)?).ok()
    }

    fn keys(&self) -> Vec<&str> {
        ["traceparent", "tracestate"].into_iter().filter(|key| self.0.find(key).is_some()).collect()
    }
}

fn wall(at: Instant) -> SystemTime {
    SystemTime::now().checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn of_request(ask: &Ask, connection: &Connection) -> Vec<KeyValue> {
    let peer = connection.peer();
    let mut attributes = vec![
        method_attribute(&ask.method),
        KeyValue::new("url.scheme", if connection.is_encrypted() { "https" } else { "http" }),
        KeyValue::new("network.peer.address", peer.ip().to_string()),
        KeyValue::new("network.peer.port", i64::from(peer.port())),
        KeyValue::new("network.protocol.version", format!("{:?}", ask.version).trim_start_matches("HTTP/").to_owned()),
    ];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if let Some(target) = &ask.target {
        attributes.push(KeyValue::new("url.path", text(target.path())));
        attributes.extend(query(target).map(|query| KeyValue::new("url.query", text(query))));
        let host = target.authority.as_deref().or_else(|| ask.fields.find("host"));
        attributes.extend(host.map(|host| KeyValue::new("server.address", text(host))));
    }
    let agent = ask.fields.find("user-agent");
    attributes.extend(agent.map(|agent| KeyValue::new("user_agent.original", text(agent))));
    attributes
}

fn query(target: &Target) -> Option<&[u8]> {
    target.path_and_query.get(target.path().len() + 1..).filter(|query| !query.is_empty())
}

fn method_attribute(method: &Method) -> KeyValue {
    KeyValue::new("http.request.method", MethodLabel::from(method).as_str())
}

fn status_attribute(status: u16) -> KeyValue {
    KeyValue::new("http.response.status_code", i64::from(status))
}
