//! A Service, reduced to its TCP ports.

use interceptor_core::service::{Service, ServicePort};
use k8s_openapi::api::core::v1::Service as Object;

use super::{ConvertError, key, parts};

/// Name and TCP ports of `object`.
pub fn service(object: &Object) -> Result<Service, ConvertError> {
    let ports = object.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let tcp = ports.iter().enumerate().filter(|(_, port)| is_tcp(port.protocol.as_deref()));
    let ports = tcp.map(|(index, port)| {
        Ok(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            port: parts::port(&format!("spec.ports[{index}].port"), port.port)?,
            app_protocol: port.app_protocol.as_deref().map(Into::into),
        })
    });
    Ok(Service { key: key(&object.metadata)?, ports: ports.collect::<Result<_, _>>()? })
}

/// Whether a port's protocol is TCP, which it is unless told.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}
