//! An EndpointSlice, reduced to its TCP ports and the addresses behind them.

use std::net::IpAddr;

use interceptor_core::{
    ObjectKey,
    service::{Slice, SliceEndpoint, SlicePort},
};
use k8s_openapi::{
    api::discovery::v1::{Endpoint, EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{ConvertError, key, parts, service::is_tcp};
use crate::names::{MANAGED_BY_LABEL, SERVICE_NAME_LABEL, SHADOW_MANAGER};

/// Whether a slice lists interceptors that stand in for the Service's pods.
pub fn is_shadow(metadata: &ObjectMeta) -> bool {
    label(metadata, MANAGED_BY_LABEL).is_some_and(|manager| manager == SHADOW_MANAGER)
}

/// The slice, or `None` when it belongs to no Service, or has none of its pods.
pub fn slice(object: &EndpointSlice) -> Result<Option<Slice>, ConvertError> {
    let key = key(&object.metadata)?;
    // An interceptor that took others for pods would send requests to itself for ever.
    let service = label(&object.metadata, SERVICE_NAME_LABEL).filter(|_| !is_shadow(&object.metadata));
    let Some(service) = service.filter(|service| !service.is_empty()) else { return Ok(None) };
    let ports = object.ports.as_deref().unwrap_or_default();
    let ports = ports.iter().enumerate().filter(|(_, port)| is_tcp(port.protocol.as_deref()));
    let ports = ports.filter_map(|(index, port)| {
        let number = parts::port(&format!("ports[{index}].port"), port.port?);
        Some(number.map(|number| SlicePort { name: port.name.as_deref().unwrap_or_default().into(), port: number }))
    });
    let endpoints = object.endpoints.iter().enumerate();
    // Names instead of addresses are of no use for connecting to a pod.
    let endpoints = endpoints.filter(|_| object.address_type != "FQDN").map(|(index, it)| endpoint(index, it));
    Ok(Some(Slice {
        service: ObjectKey::new(key.namespace(), service.as_str()),
        ports: ports.collect::<Result<_, _>>()?,
        endpoints: endpoints.collect::<Result<_, _>>()?,
        key,
    }))
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a String> {
    metadata.labels.as_ref()?.get(name)
}

fn endpoint(index: usize, endpoint: &Endpoint) -> Result<SliceEndpoint, ConvertError> {
    let address = |(at, text): (usize, &String)| {
        text.parse::<IpAddr>().map(|address| address.to_canonical()).map_err(|_no_address| {
            let field = format!("endpoints[{index}].addresses[{at}]");
            ConvertError::new(field, parts::quoted(text), "an IP address")
        })
    };
    let conditions = endpoint.conditions.as_ref();
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref().is_none_or(|kind| kind == "Pod"));
    Ok(SliceEndpoint {
        addresses: endpoint.addresses.iter().enumerate().map(address).collect::<Result<_, _>>()?,
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or_default(),
        pod: pod.and_then(|target| target.name.as_deref()).map(Into::into),
        uid: pod.and_then(|target| target.uid.as_deref()).map(Into::into),
        node: endpoint.node_name.as_deref().map(Into::into),
    })
}
