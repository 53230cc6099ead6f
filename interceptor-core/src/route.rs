//! A route as the data plane sees it. Written by `api`'s conversions, read by the table, the proxy and the scaler.

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderMap;

use crate::{ObjectKey, UpstreamId, kubelet::UnnamedProbe, network::Ignored, probe::Probing};

mod bucket;
mod check;
mod holding;
pub(crate) mod host;
pub(crate) mod path;
pub(crate) mod ranked;
mod response;
mod session;
mod shadow;
pub(crate) mod table;
mod tree;

pub use self::{
    check::{MAX_HEADERS, MAX_KEYS, MAX_STATIC_PATTERNS, RouteError},
    holding::{Holding, Overflow},
    host::MAX_HOST,
    path::MAX_PREFIX,
    response::{ResponseMode, StaticBody, StaticResponse, StaticRoute},
    session::Session,
    shadow::{LONG_WAIT, Shadow},
    table::RouteTable,
};

/// Identifies one version-independent route for the life of a process; never reused, so that metrics and
/// counters of a deleted route can't be taken for those of a new one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId(pub u64);

/// Which custom resource a route was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// `http.keda.sh/v1beta1` InterceptorRoute.
    InterceptorRoute,
    /// `http.keda.sh/v1alpha1` HTTPScaledObject.
    HttpScaledObject,
}

/// A route: which requests it takes, where they go, and how demand is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which custom resource it was made from.
    pub kind: RouteKind,
    /// Its namespace and name.
    pub key: ObjectKey,
    /// `metadata.creationTimestamp` in seconds since the epoch; the older route wins a tie.
    pub created: i64,
    /// Which requests it takes. Without rules it is counted but unreachable.
    pub rules: Vec<Rule>,
    /// Where they go.
    pub target: Target,
    /// How clients in the cluster reach it.
    pub data_path: DataPath,
    /// How interceptors stand in for the target's Service, if they do.
    pub shadow: Option<Shadow>,
    /// Whether nodes without an agent have ready pods of it, so that nobody counts what they take.
    pub uncounted: bool,
    /// What its clients speak.
    pub traffic: Traffic,
    /// Where they go when no endpoint of `target` gets ready in time.
    pub fallback: Option<Target>,
    /// What is answered at once while `target` has no ready endpoint.
    pub placeholder: Option<Arc<StaticResponse>>,
    /// Which requests are answered here; the first that matches counts.
    pub static_routes: Vec<StaticRoute>,
    /// How its requests are held while `target` has no ready endpoint.
    pub holding: Holding,
    /// How clients stay with a pod, if they do.
    pub session: Option<Arc<Session>>,
    /// How the target's pods are asked whether they are ready while requests are held.
    pub probing: Probing,
    /// The Secret with the certificate that the target's pods are shown, and with the authorities that they are believed by.
    /// Where there is one, connections to them are always encrypted.
    pub identity: Option<ObjectKey>,
    /// Whose connections are no demand. Of routes with the same target, what one ignores is ignored for all.
    pub ignored: Ignored,
    /// Probes of its pods by kubelets that do not show that they are such.
    pub unnamed_probes: Vec<UnnamedProbe>,
    /// How its demand is measured.
    pub scaling: Scaling,
    /// Deadlines that replace those of the environment.
    pub timeouts: Timeouts,
}

/// One rule: hosts × paths, each with all of the headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Exact names, `*.suffix`, or `*`; none means `*`.
    pub hosts: Vec<String>,
    /// Path prefixes in whole segments; none means `/`.
    pub paths: Vec<String>,
    /// All must match.
    pub headers: Vec<HeaderMatch>,
}

/// A request's headers. Most requests are routed by host and path alone, so their map is asked for only when a rule
/// asks for a header, and may be made then.
pub trait Headers {
    /// All of them.
    fn map(&self) -> &HeaderMap;
}

/// A header that a request must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Compared without regard to case.
    pub name: http::HeaderName,
    /// `None` asks for presence alone; `Some` for one value that is equal to it, byte for byte.
    pub value: Option<Vec<u8>>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRef {
    /// By the Service's port number.
    Number(u16),
    /// By the Service's port name.
    Name(Arc<str>),
}

/// A Service and one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The Service, in the route's namespace.
    pub service: ObjectKey,
    /// Its port.
    pub port: PortRef,
}

/// How clients in the cluster reach a route's target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataPath {
    /// Through the interceptor's proxy.
    #[default]
    Proxy,
    /// At the Service's own address, without a proxy, where a node has the agent.
    Direct,
}

/// What a route's clients speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// HTTP.
    #[default]
    Http,
    /// Anything over TCP, which no rule can look into.
    Tcp,
}

/// Which of a route's Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// Its target, which is scaled.
    Target,
    /// The one that stands in while the target stays cold.
    Fallback,
}

/// How a route's demand is measured. An HTTPScaledObject has one value and integer targets; the scaler tells by
/// [`RouteKind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scaling {
    /// Target of concurrent requests per replica.
    pub concurrency: Option<u32>,
    /// Target of requests per second and replica.
    pub rate: Option<Rate>,
    /// Target of open connections per replica; only where clients reach the target directly.
    pub connections: Option<u32>,
    /// Target of connections per replica that nobody has accepted yet; likewise.
    pub accept_queue: Option<u32>,
}

/// A request rate as demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests per second and replica.
    pub target: u32,
    /// Over which time the rate is averaged.
    pub window: Duration,
    /// Into buckets of which length the window is divided.
    pub granularity: Duration,
}

/// Deadlines of a route; `None` takes the environment's, zero means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// How long a request may wait for a ready endpoint.
    pub readiness: Option<Duration>,
    /// How long a request may take in all.
    pub request: Option<Duration>,
    /// How long the upstream may take from the request's end to its response's head.
    pub response_header: Option<Duration>,
}

/// A route in the table: what the request path needs, resolved.
#[derive(Debug)]
pub struct RouteEntry {
    /// Stable over edits of the route.
    pub id: RouteId,
    /// The route.
    pub route: Route,
    /// Where to look its target's endpoints up in the snapshot.
    pub upstream: UpstreamId,
    /// Where to look up those of its fallback.
    pub fallback: Option<UpstreamId>,
    /// Its counters; shared by all versions of the route.
    pub counters: crate::inflight::RouteCounters,
}

// === impl Route ===

impl Route {
    /// One that says nothing but where it leads: it takes no requests, and has defaults for the rest.
    pub fn new(kind: RouteKind, key: ObjectKey, target: Target) -> Self {
        Self {
            kind,
            key,
            created: 0,
            rules: Vec::new(),
            target,
            data_path: DataPath::default(),
            shadow: None,
            uncounted: false,
            traffic: Traffic::default(),
            fallback: None,
            placeholder: None,
            static_routes: Vec::new(),
            holding: Holding::default(),
            session: None,
            probing: Probing::default(),
            identity: None,
            ignored: Ignored::default(),
            unnamed_probes: Vec::new(),
            scaling: Scaling::default(),
            timeouts: Timeouts::default(),
        }
    }
}

// === impl Headers ===

impl Headers for HeaderMap {
    fn map(&self) -> &HeaderMap {
        self
    }
}

// === impl HeaderMatch ===

impl HeaderMatch {
    /// Whether `headers` have it.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        match &self.value {
            None => headers.contains_key(&self.name),
            Some(value) => headers.get_all(&self.name).iter().any(|found| found.as_bytes() == value.as_slice()),
        }
    }
}

// === impl RouteKind ===

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InterceptorRoute => "InterceptorRoute",
            Self::HttpScaledObject => "HTTPScaledObject",
        })
    }
}

// === impl PortRef ===

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

// === impl RouteEntry ===

impl RouteEntry {
    /// One of its Services, and where to look it up; `None` if it has no such.
    pub fn backend(&self, backend: Backend) -> Option<(UpstreamId, &Target)> {
        match backend {
            Backend::Target => Some((self.upstream, &self.route.target)),
            Backend::Fallback => self.fallback.zip(self.route.fallback.as_ref()),
        }
    }
}

impl PartialEq for RouteEntry {
    fn eq(&self, other: &Self) -> bool {
        let Self { id, route, upstream, fallback, counters: _ } = self;
        *id == other.id && *route == other.route && *upstream == other.upstream && *fallback == other.fallback
    }
}

#[cfg(test)]
mod tests;
