//! Upstreams for the tests.

use std::{net::SocketAddr, sync::Arc};

use interceptor_core::{
    Endpoints, ObjectKey, Upstream, UpstreamId,
    route::{PortRef, Target},
    upstream::{Encryption, Protocol, Resolution},
};

pub(crate) fn upstream(id: u32, service: &str, addrs: &[SocketAddr]) -> Arc<Upstream> {
    Arc::new(Upstream {
        id: UpstreamId(id),
        target: Target { service: ObjectKey::new("test", service), port: PortRef::Number(80) },
        resolution: Resolution::Found,
        protocol: Protocol::Http1,
        encryption: Encryption::AsReceived,
        affinity: None,
        endpoints: addrs.iter().map(|addr| (*addr, None)).collect(),
        early: [].into(),
        pending: Endpoints::new(),
        probe: None,
        direct: None,
    })
}
