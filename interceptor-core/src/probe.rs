//! How to ask a pod whether it is ready, as its workload's readiness probe says. Written by `api`'s conversions, carried to
//! whoever may ask by [`Upstream::probe`](crate::Upstream::probe).

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};

/// A readiness probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub action: Action,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Between two probes of a kubelet.
    pub period: Duration,
    /// Before a kubelet's first.
    pub initial_delay: Duration,
    /// Successes in a row that make a pod ready.
    pub successes: u32,
    /// Failures in a row that make it unready.
    pub failures: u32,
}

/// What is asked of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A GET that is answered with a status from 200 to 399.
    Http(HttpGet),
    /// A connection that opens.
    Tcp(u16),
    /// `grpc.health.v1.Health` that says of a service that it serves.
    Grpc {
        /// The pod's port.
        port: u16,
        /// The service's name; empty is the server as a whole.
        service: String,
    },
}

/// A GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGet {
    /// The pod's port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// By TLS, whatever the certificate.
    pub tls: bool,
    /// What is sent with it.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What a route says of probing its target's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probing {
    /// Nothing.
    #[default]
    Unsaid,
    /// Not to do it: the EndpointSlices alone decide.
    Refused,
    /// How.
    By(Arc<Probe>),
}

// === impl Probe ===

impl Probe {
    /// Within which time a kubelet, too, finds a pod ready that has just answered, though it may miss it as often as makes
    /// no difference. Past it, the pod has answered us and nobody else.
    pub fn patience(&self) -> Duration {
        const SLICE: Duration = Duration::from_secs(10);
        let probes = self.successes.saturating_add(self.failures);
        self.period.saturating_mul(probes).saturating_add(self.initial_delay).saturating_add(SLICE)
    }
}

impl Action {
    /// The pod's port that is asked.
    pub fn port(&self) -> u16 {
        match self {
            Self::Http(HttpGet { port, .. }) | Self::Tcp(port) | Self::Grpc { port, .. } => *port,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(HttpGet { port, path, tls: false, headers: _ }) => write!(f, "http :{port}{path}"),
            Self::Http(HttpGet { port, path, tls: true, headers: _ }) => write!(f, "https :{port}{path}"),
            Self::Tcp(port) => write!(f, "tcp :{port}"),
            Self::Grpc { port, service } => write!(f, "grpc :{port} {service}"),
        }
    }
}

impl Probing {
    /// What holds for a target that several routes share: none may be forced, and one may tell for all.
    pub fn of_all<'a>(routes: impl Iterator<Item = &'a Self>) -> Option<Arc<Probe>> {
        let mut probe = None;
        for route in routes {
            match route {
                Self::Refused => return None,
                Self::By(by) if probe.is_none() => probe = Some(Arc::clone(by)),
                Self::By(_) | Self::Unsaid => {}
            }
        }
        probe
    }
}
