//! What a node has to know of a Service whose clients reach the pods without a proxy. Made by the index for targets of
//! routes that ask for it, read by the node agent.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use imbl::OrdMap;

use crate::{
    Endpoints,
    route::Target,
    service::{Service, ServicePort, SliceEndpoint, Sources},
};

/// One port of one Service, as clients and the kernel see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// Where clients connect, but for node ports; sorted.
    pub frontends: Vec<SocketAddr>,
    /// Those of them that are for clients outside of the cluster.
    pub external: Vec<SocketAddr>,
    /// Whom those of its load balancer take.
    pub sources: Sources,
    /// The port on every node, if it has one.
    pub node_port: Option<u16>,
    /// Every pod that has the port, whatever its state, by its address and target port.
    pub pods: OrdMap<SocketAddr, Pod>,
}

/// A pod behind the Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pod {
    /// How far its life has come, by the slices.
    pub life: Life,
    /// Its name, if a slice tells it.
    pub name: Option<Arc<str>>,
    /// Its UID, by which its cgroup is found.
    pub uid: Option<Arc<str>>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
}

/// How far a pod's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Life {
    /// It may get ready and is not.
    Starting,
    /// It is ready.
    Ready,
    /// It won't get ready any more.
    Ending,
}

// === impl Direct ===

impl Direct {
    /// What `target` is for a node, given its Service's port and the pods that have it.
    pub(crate) fn new(
        target: &Target,
        service: Option<&Service>,
        port: Option<&ServicePort>,
        pods: OrdMap<SocketAddr, Pod>,
    ) -> Self {
        let known = service.filter(|service| service.key == target.service).zip(port);
        let (frontends, external) = known.map_or_else(Default::default, |(service, port)| {
            let at = |addresses: &[IpAddr]| addresses.iter().map(|ip| (*ip, port.port).into()).collect();
            (at(&service.addresses), at(&service.reach.external))
        });
        let sources = service.map(|service| service.reach.sources.clone()).unwrap_or_default();
        Self { frontends, external, sources, node_port: port.and_then(|port| port.node_port), pods }
    }

    /// Whether clients of this address of the Service may be outside of the cluster; `node` are the addresses of the node that they come
    /// to.
    pub fn is_for_outside(&self, address: SocketAddr, node: &[IpAddr]) -> bool {
        let at_node = || self.node_port == Some(address.port()) && node.contains(&address.ip());
        self.external.contains(&address) || at_node()
    }

    /// Whether a client may connect to this address of the Service at a node with these.
    pub fn takes(&self, (address, client): (SocketAddr, IpAddr), node: impl IntoIterator<Item = IpAddr>) -> bool {
        // Node ports are for everybody, also at an address that is a load balancer's.
        !self.frontends.contains(&address) || self.sources.allow(address.ip(), client, node)
    }

    /// Where the pods are reached that are an upstream's endpoints, beside those: of a Service with two families, endpoints are of one.
    pub fn of_the_other_family(&self, endpoints: &Endpoints) -> Vec<SocketAddr> {
        let is_v4 = |pod: Option<&(SocketAddr, Pod)>| pod.map(|(addr, _)| addr.is_ipv4());
        // Those of IPv4 come first.
        if is_v4(self.pods.get_min()) == is_v4(self.pods.get_max()) {
            return Vec::new();
        }
        let named: HashSet<_> = endpoints.values().flatten().collect();
        let is_one = |pod: &Pod| pod.life == Life::Ready || pod.name.as_ref().is_some_and(|name| named.contains(name));
        let others = self.pods.iter().filter(|(addr, pod)| is_one(pod) && !endpoints.contains_key(*addr));
        others.map(|(addr, _)| *addr).collect()
    }

    /// Whether a pod runs on this node, as far as slices tell.
    pub fn is_on(&self, node: &str, pod: SocketAddr) -> bool {
        self.pods.get(&pod).is_none_or(|known| known.is_on(node))
    }
}

// === impl Pod ===

impl Pod {
    /// Whether it runs on this node. One without a node's name is of a list that somebody wrote by hand.
    pub fn is_on(&self, node: &str) -> bool {
        self.node.as_deref().is_none_or(|of| of == node)
    }

    /// The pod that a slice lists.
    pub(crate) fn new(listed: &SliceEndpoint) -> Self {
        let SliceEndpoint { addresses: _, ready, terminating, pod, uid, node } = listed;
        let life = match (ready, terminating) {
            (_, true) => Life::Ending,
            (true, false) => Life::Ready,
            (false, false) => Life::Starting,
        };
        Self { life, name: pod.clone(), uid: uid.clone(), node: node.clone() }
    }
}
