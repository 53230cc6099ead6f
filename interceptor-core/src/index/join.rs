//! What a target is, given its Service, slices and the pods that have answered: one pass, pure.

use std::{net::IpAddr, sync::Arc};

use crate::{
    Endpoint, Upstream, UpstreamId,
    direct::{Direct, Pod},
    probe::Probe,
    route::{PortRef, Target},
    service::{Service, ServicePort, Slice, SliceEndpoint, SlicePort},
    upstream::{Encryption, Protocol, Resolution},
};

/// What a port's `appProtocol` says of how its pods are spoken to.
fn spoken(app_protocol: Option<&str>) -> (Protocol, Encryption) {
    match app_protocol {
        Some("kubernetes.io/h2c") => (Protocol::H2c, Encryption::AsReceived),
        Some("http" | "kubernetes.io/ws") => (Protocol::Http1, Encryption::Never),
        Some("https" | "kubernetes.io/wss") => (Protocol::Http1, Encryption::Always),
        _ => (Protocol::Http1, Encryption::AsReceived),
    }
}

/// The pod's address, if it may get ready and is not.
pub(super) fn pending(endpoint: &SliceEndpoint) -> Option<IpAddr> {
    endpoint.addresses.first().copied().filter(|_| !endpoint.ready && !endpoint.terminating)
}

/// What a target is, given its Service and slices, what routes ask of it, and which pods have answered.
pub(super) fn join<'a>(
    (id, target): (UpstreamId, &Target),
    service: Option<&Service>,
    slices: impl Iterator<Item = &'a Slice>,
    (probe, is_direct): (Option<Arc<Probe>>, bool),
    is_early: impl Fn(IpAddr) -> bool,
) -> Upstream {
    let port = service.and_then(|service| service.ports.iter().find(|port| target.port.names(port)));
    let resolution = resolution(target, service, port);
    let (protocol, encryption) = spoken(port.and_then(|port| port.app_protocol.as_deref()));
    let (mut ready, mut early, mut waiting, mut pods) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut leaving = Vec::new();
    for slice in slices {
        let target_port = match (resolution, port) {
            (Resolution::Found, Some(port)) => slice.ports.iter().find(|candidate| candidate.name == port.name),
            (Resolution::NoService, _) => without_service(&target.port, &slice.ports),
            _ => None,
        };
        let Some(target_port) = target_port else { continue };
        for listed in &slice.endpoints {
            let Some(address) = listed.addresses.first() else { continue };
            let endpoint = Endpoint { addr: (*address, target_port.port).into(), pod: listed.pod.clone() };
            if is_direct {
                pods.push(Pod::new(endpoint.addr, listed));
            }
            if listed.ready && listed.terminating {
                leaving.push(endpoint);
            } else if listed.ready {
                ready.push(endpoint);
            } else if probe.is_some() && pending(listed).is_some() {
                if is_early(*address) {
                    early.push(endpoint.addr);
                    ready.push(endpoint);
                } else {
                    waiting.push(endpoint);
                }
            }
        }
    }
    // Pods that go, and are published all the same, are better than none.
    if ready.is_empty() {
        ready = leaving;
    }
    if let Some(v6) = service.and_then(|service| service.reach.prefers_v6) {
        prefer(&mut ready, v6);
        prefer(&mut waiting, v6);
        early.retain(|early| ready.iter().any(|endpoint| endpoint.addr == *early));
    }
    early.sort_unstable();
    early.dedup();
    Upstream {
        id,
        target: target.clone(),
        resolution,
        protocol,
        encryption,
        affinity: service.and_then(|service| service.reach.affinity),
        endpoints: sorted(ready),
        early: early.into(),
        pending: sorted(waiting),
        probe,
        direct: is_direct.then(|| Arc::new(Direct::new(target, service, port, pods))),
    }
}

/// Whether Service and port exist. A name for something elsewhere needs no list of ports.
fn resolution(target: &Target, service: Option<&Service>, port: Option<&ServicePort>) -> Resolution {
    let needs_none = |service: &Service| service.reach.external_name.is_some() && service.ports.is_empty();
    match (service, port) {
        (None, _) => Resolution::NoService,
        (Some(service), None) if needs_none(service) && matches!(target.port, PortRef::Number(_)) => Resolution::Found,
        (Some(_), None) => Resolution::NoPort,
        (Some(_), Some(_)) => Resolution::Found,
    }
}

/// Keeps the addresses of one family, if there are any: each pod of a Service with two has one of either.
fn prefer(endpoints: &mut Vec<Endpoint>, v6: bool) {
    if endpoints.iter().any(|endpoint| endpoint.addr.is_ipv6() == v6) {
        endpoints.retain(|endpoint| endpoint.addr.is_ipv6() == v6);
    }
}

/// By address, each once.
pub(super) fn sorted(mut endpoints: Vec<Endpoint>) -> Arc<[Endpoint]> {
    // `None` sorts before a name, so the named one of two equal addresses has to come first to stay.
    endpoints.sort_by(|a, b| (a.addr, &b.pod).cmp(&(b.addr, &a.pod)));
    endpoints.dedup_by_key(|endpoint| endpoint.addr);
    endpoints.into()
}

/// Slices without a Service object don't tell its port numbers: then a number means the target port of that number, or
/// the only one there is.
fn without_service<'a>(port: &PortRef, ports: &'a [SlicePort]) -> Option<&'a SlicePort> {
    let PortRef::Number(number) = port else { return None };
    let same = ports.iter().find(|candidate| candidate.port == *number);
    same.or(match ports {
        [only] => Some(only),
        _ => None,
    })
}
