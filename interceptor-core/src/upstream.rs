//! What a route's target resolves to: one port of one Service with its ready endpoints.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::{direct::Direct, endpoint::Endpoints, probe::Probe, route::Target};

/// Identifies one [`Target`] while any route refers to it; dense, so that it can index arrays (the kernel's too).
/// An id is used again only after its last route has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(pub u32);

/// How requests are spoken to the endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1, the default.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge: `appProtocol: kubernetes.io/h2c`.
    H2c,
}

/// Whether requests to the endpoints are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encryption {
    /// If they were on their way here, as the KEDA HTTP Add-on has it.
    #[default]
    AsReceived,
    /// Never: `appProtocol: http` or `kubernetes.io/ws`.
    Never,
    /// Always: `appProtocol: https` or `kubernetes.io/wss`.
    Always,
}

/// Whether the target's Service and port exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Both do.
    Found,
    /// There is no such Service. A target by port number is still usable when slices list endpoints for it.
    NoService,
    /// The Service has no such port. A number is still tried at the Service's name while it has ready endpoints.
    NoPort,
}

/// One port of one Service as the snapshot has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its id.
    pub id: UpstreamId,
    /// The Service and the port.
    pub target: Target,
    /// Whether they exist.
    pub resolution: Resolution,
    /// How to speak to its endpoints.
    pub protocol: Protocol,
    /// Whether that is encrypted.
    pub encryption: Encryption,
    /// How long a client stays with an endpoint after its last request, if it shall.
    pub affinity: Option<Duration>,
    /// Ready endpoints that have the port.
    pub endpoints: Endpoints,
    /// Those of `endpoints` that are ready by their own word, not by the slices'.
    pub early: Arc<[SocketAddr]>,
    /// Endpoints that may get ready and are not, if there is a probe to ask them with.
    pub pending: Endpoints,
    /// How to ask them.
    pub probe: Option<Arc<Probe>>,
    /// What a node has to know to let clients reach the pods without a proxy, if a route asks for it.
    pub direct: Option<Arc<Direct>>,
}

// === impl Encryption ===

impl Encryption {
    /// Whether a request that was or was not received encrypted goes on encrypted.
    pub fn applies(self, received: bool) -> bool {
        match self {
            Self::AsReceived => received,
            Self::Never => false,
            Self::Always => true,
        }
    }
}
