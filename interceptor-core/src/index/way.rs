//! Whether requests to a target go to the pods that slices list, or to what the Service's name is found to be.

use crate::{Upstream, route::PortRef, service::Service};

/// How requests go to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the pods that slices list.
    Pods,
    /// To what the Service's name is found to be, at this port; `None` while the Service is cold.
    Name { port: Option<u16> },
}

/// Which way it is. `is_warm` says that the Service has ready endpoints, whatever their ports, or can't tell that it has not.
///
/// Everything goes by name that does not go to pods: names of something elsewhere, all where the setting says so, and a port
/// that no slice has, as with the add-on, whose readiness does not look at ports.
pub(super) fn way(upstream: &Upstream, service: Option<&Service>, through_services: bool, is_warm: bool) -> Way {
    let listed = service.and_then(|service| service.ports.iter().find(|port| upstream.target.port.names(port)));
    let port = match (listed, &upstream.target.port) {
        (Some(listed), _) => listed.port,
        (None, PortRef::Number(port)) => *port,
        (None, PortRef::Name(_)) => return Way::Pods,
    };
    let is_external = service.is_some_and(|service| service.reach.external_name.is_some());
    let has_pods = !upstream.endpoints.is_empty();
    if is_external || through_services && has_pods || is_warm && !has_pods {
        return Way::Name { port: Some(port) };
    }
    if through_services { Way::Name { port: None } } else { Way::Pods }
}
