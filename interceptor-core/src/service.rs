//! Services and EndpointSlices, reduced to what routing needs. Written by `api`'s conversions, read by the index.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{ObjectKey, network::Network};

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Where clients reach it, besides its node ports: cluster IPs, external IPs and those of its load balancer. Sorted.
    pub addresses: Vec<IpAddr>,
    /// How clients come to it, and which of its endpoints they are to be sent to.
    pub reach: Reach,
}

/// How clients come to a Service, and which of its endpoints they are to be sent to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// `spec.externalName`, of a Service that is another's name.
    pub external_name: Option<Arc<str>>,
    /// Whether the first of its address families is IPv6, if it tells; pods have addresses of the other one, too.
    pub prefers_v6: Option<bool>,
    /// Those of its addresses that are for clients outside of the cluster: external IPs and those of its load balancer.
    pub external: Vec<IpAddr>,
    /// Whom those of its load balancer take.
    pub sources: Sources,
    /// How long a client stays with a pod after its last request, by `spec.sessionAffinity: ClientIP`.
    pub affinity: Option<Duration>,
}

/// Which clients a Service's load balancer is for, by `spec.loadBalancerSourceRanges`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The addresses that not everybody may connect to.
    pub addresses: Vec<IpAddr>,
    /// Who may. A family of which none is named is not restricted.
    pub networks: Vec<Network>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for the only port of a Service.
    pub name: Arc<str>,
    /// The Service's own port number.
    pub port: u16,
    /// `appProtocol`, as written.
    pub app_protocol: Option<Arc<str>>,
    /// The port on every node, if it has one.
    pub node_port: Option<u16>,
}

/// An EndpointSlice of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The slice's own namespace and name.
    pub key: ObjectKey,
    /// The Service it belongs to, by the label `kubernetes.io/service-name`.
    pub service: ObjectKey,
    /// Its ports; they join the Service's ports by name.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service port's name; empty for the only port.
    pub name: Arc<str>,
    /// The target port on these endpoints.
    pub port: u16,
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its addresses, none of them IPv4 in the form of IPv6; the first is used.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`, absent counting as true.
    pub ready: bool,
    /// `conditions.terminating`: it won't get ready any more.
    pub terminating: bool,
    /// `targetRef.name`.
    pub pod: Option<Arc<str>>,
    /// `targetRef.uid`.
    pub uid: Option<Arc<str>>,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
}

// === impl Sources ===

impl Sources {
    /// Whether a client may connect to this address, at a node with these; as kube-proxy decides it.
    pub fn allow(&self, address: IpAddr, client: IpAddr, node: impl IntoIterator<Item = IpAddr>) -> bool {
        if !self.addresses.contains(&address) {
            return true;
        }
        let mut of_family =
            self.networks.iter().filter(|network| network.addr.is_ipv4() == address.is_ipv4()).peekable();
        let is_open = of_family.peek().is_none();
        let is_in = |ip: IpAddr| of_family.clone().any(|network| network.contains(ip));
        // The node itself seems to come from the address where that is its own, too.
        is_open || is_in(client) || client == address && node.into_iter().any(is_in)
    }
}

// === impl SliceEndpoint ===

impl SliceEndpoint {
    /// Whether it can be reached, at whatever port.
    pub fn is_ready(&self) -> bool {
        self.ready && !self.addresses.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_load_balancers_address_takes_clients_of_its_networks_and_other_addresses_take_all() {
        let networks = ["198.51.100.0/24", "192.0.2.1"].map(|text| text.parse().unwrap()).to_vec();
        let sources = Sources { addresses: vec![ip("203.0.113.1"), ip("2001:db8::7")], networks };
        let allow = |address: &str, client: &str| sources.allow(ip(address), ip(client), [ip("192.0.2.1")]);
        assert!(allow("203.0.113.1", "198.51.100.9") && !allow("203.0.113.1", "198.51.101.9"));
        assert!(allow("203.0.113.2", "198.51.101.9"), "another address");
        assert!(allow("2001:db8::7", "2001:db8::9"), "no network of the family is named");
        assert!(allow("203.0.113.1", "203.0.113.1"), "the node, which may");
        assert!(!sources.allow(ip("203.0.113.1"), ip("203.0.113.1"), [ip("192.0.2.2")]), "a node that may not");
    }
}
