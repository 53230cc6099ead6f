//! A Service, reduced to its TCP ports and the addresses that clients reach it at.

use std::{net::IpAddr, time::Duration};

use interceptor_core::service::{Reach, Service, ServicePort};
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
    Ok(Service {
        key: key(&object.metadata)?,
        ports: ports.collect::<Result<_, _>>()?,
        addresses: addresses(object),
        reach: Reach { external: sorted(external(object)), ..object.spec.as_ref().map(reach).unwrap_or_default() },
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
        affinity: is(&spec.session_affinity, "ClientIP").then(|| Duration::from_secs(seconds)),
    }
}

/// Cluster IPs, external IPs and those of the load balancer. What is no address, such as the `None` of a headless Service,
/// leads no client anywhere.
fn addresses(object: &Object) -> Vec<IpAddr> {
    let spec = object.spec.as_ref();
    let cluster = spec.and_then(|spec| spec.cluster_ip.as_ref()).into_iter();
    let cluster = cluster.chain(spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten());
    sorted(cluster.chain(external(object)))
}

/// Addresses for clients outside of the cluster.
fn external(object: &Object) -> impl Iterator<Item = &String> {
    let listed = object.spec.as_ref().and_then(|spec| spec.external_ips.as_ref());
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    listed.into_iter().flatten().chain(ingress.filter_map(|ingress| ingress.ip.as_ref()))
}

/// What of these can be read.
fn sorted<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Whether a port's protocol is TCP, which it is unless told.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}
