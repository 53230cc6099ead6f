//! Upstreams for the tests.

use std::{net::SocketAddr, sync::Arc};

use interceptor_core::{
    Endpoint, ObjectKey, Upstream, UpstreamId,
    route::{PortRef, Target},
    upstream::{Encryption, Protocol, Resolution},
};

pub(crate) fn upstream(id: u32, service: &str, addrs: &[SocketAddr]) -> Arc<Upstream> {
    let mut endpoints: Vec<_> = addrs.iter().map(|addr| Endpoint { addr: *addr, pod: None }).collect();
    endpoints.sort();
    Arc::new(Upstream {
        id: UpstreamId(id),
        target: Target { service: ObjectKey::new("test", service), port: PortRef::Number(80) },
        resolution: Resolution::Found,
        protocol: Protocol::Http1,
        encryption: Encryption::AsReceived,
        affinity: None,
        endpoints: endpoints.into(),
        early: [].into(),
        pending: [].into(),
        probe: None,
        direct: None,
    })
}
