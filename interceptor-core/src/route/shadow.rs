//! How interceptors stand in for a Service whose clients reach the pods without a proxy: as endpoints in EndpointSlices of
//! their own, while no pod is ready and before the last one goes. Written by the operator into a route's status.

use std::{num::NonZeroU16, time::Duration};

use super::{DataPath, Route, Traffic};

/// A wait for a replica that is longer needs an interceptor: Linux gives up connecting after six repetitions of the first
/// packet, 127 seconds (`tcp_syn_retries`), and a connection that the kernel holds has not been opened yet.
pub const LONG_WAIT: Duration = Duration::from_secs(127);

/// What the operator says of a route's shadow slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// The port of interceptors that stands for the Service.
    pub port: NonZeroU16,
    /// Whether interceptors are listed as the Service's endpoints.
    pub published: bool,
    /// After which time without demand they are; `None` where the last replica is never taken away.
    pub after: Option<Duration>,
}

// === impl Route ===

impl Route {
    /// Whether requests need an interceptor while no replica is ready: it answers some of them itself, sends them elsewhere,
    /// or holds them for longer than a connection can be held.
    pub fn needs_proxy_while_cold(&self) -> bool {
        let waits = self.timeouts.readiness.is_some_and(|wait| wait > LONG_WAIT);
        let answers = self.placeholder.is_some() || !self.static_routes.is_empty() || self.fallback.is_some();
        self.traffic == Traffic::Http && (answers || waits)
    }

    /// The port of interceptors that stands for its target's Service.
    pub fn entrance(&self) -> Option<NonZeroU16> {
        self.shadow.filter(|_| self.data_path == DataPath::Direct).map(|shadow| shadow.port)
    }
}
