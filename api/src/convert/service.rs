//! A Service, reduced to its TCP ports and the addresses that clients reach it at.

use std::{net::IpAddr, time::Duration};

use interceptor_core::{
    network::Network,
    service::{Reach, Service, ServicePort, Sources},
};
use k8s_openapi::api::core::v1::{Service as Object, ServiceSpec};

use super::{ConvertError, key, parts};

/// How long a client stays with a pod if the Service does not tell; the API server's default.
const AFFINITY_SECONDS: u64 = 10_800;

/// Name, addresses and TCP ports of `object`.
pub fn service(object: &Object) -> Result<Service, ConvertError> {
    let ports = object.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let tcp = ports.iter().enumerate().filter(|(_, port)| is_tcp(port.protocol.as_deref()));
    let ports = tcp.map(|(index, port)| {
        Ok(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            port: parts::port(&format!("spec.ports[{index}].port"), port.port)?,
            app_protocol: port.app_protocol.as_deref().map(Into::into),
            // Zero is a port that has not been allotted.
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
        })
    });
    let (cluster, listed, balancers) = (cluster(object), listed(object), balancers(object));
    // As kube-proxy has it: a Service without a cluster IP of a family is reached nowhere else by that family.
    let of_family = |ip: &IpAddr| cluster.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
    let external = sorted(listed.iter().chain(&balancers).copied().filter(of_family));
    // An address that is listed, too, is everybody's.
    let guarded = sorted(balancers.iter().copied().filter(|ip| of_family(ip) && !listed.contains(ip)));
    let spec = object.spec.as_ref();
    let networks = spec.map(sources).unwrap_or_default();
    let sources = if networks.is_empty() { Sources::default() } else { Sources { addresses: guarded, networks } };
    Ok(Service {
        key: key(&object.metadata)?,
        ports: ports.collect::<Result<_, _>>()?,
        addresses: sorted(cluster.iter().chain(&external).copied()),
        reach: Reach { external, sources, ..spec.map(reach).unwrap_or_default() },
    })
}

fn reach(spec: &ServiceSpec) -> Reach {
    let is = |field: &Option<String>, value: &str| field.as_deref() == Some(value);
    let name = spec.external_name.as_deref().filter(|name| !name.is_empty() && is(&spec.type_, "ExternalName"));
    let family = spec.ip_families.as_deref().and_then(|families| families.first());
    let told = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let seconds = told.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS);
    Reach {
        external_name: name.map(Into::into),
        prefers_v6: family.map(|family| family == "IPv6"),
        external: Vec::new(),
        sources: Sources::default(),
        affinity: is(&spec.session_affinity, "ClientIP").then(|| Duration::from_secs(seconds)),
    }
}

/// What is no address, such as the `None` of a headless Service, leads no client anywhere.
fn cluster(object: &Object) -> Vec<IpAddr> {
    let spec = object.spec.as_ref();
    let cluster = spec.and_then(|spec| spec.cluster_ip.as_ref()).into_iter();
    read(cluster.chain(spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten()))
}

/// External IPs.
fn listed(object: &Object) -> Vec<IpAddr> {
    read(object.spec.as_ref().and_then(|spec| spec.external_ips.as_ref()).into_iter().flatten())
}

/// Those of the load balancer at which packets come to a node as clients have sent them. With another `ipMode` the balancer is a
/// proxy, which even pods have to go through.
fn balancers(object: &Object) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    let as_sent = ingress.filter(|ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
    read(as_sent.filter_map(|ingress| ingress.ip.as_ref()))
}

/// Whom the load balancer is for, if not for all. The API server lets spaces pass.
fn sources(spec: &ServiceSpec) -> Vec<Network> {
    let texts = spec.load_balancer_source_ranges.as_ref().into_iter().flatten();
    texts.filter_map(|text| text.trim().parse().ok()).collect()
}

/// What of these can be read.
fn read<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn sorted(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = addresses.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Whether a port's protocol is TCP, which it is unless told.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}
