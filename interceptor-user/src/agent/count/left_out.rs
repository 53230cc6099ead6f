//! Whose connections are no demand, as this machine and the routes say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::addresses;
use interceptor_core::{
    Snapshot, UpstreamId,
    kubelet::UnnamedProbe,
    network::{Ignored, Network},
    route::DataPath,
};

use crate::control::namespaces::Addresses;

/// This machine's addresses.
pub(super) fn own() -> Vec<IpAddr> {
    let addresses = addresses().unwrap_or_default().into_iter().map(|(ip, _)| ip);
    addresses.chain([IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]).collect()
}

/// What routes leave out of their demand, by upstream.
pub(super) fn ignored(snapshot: &Snapshot, namespaces: &Addresses) -> Vec<(UpstreamId, Network)> {
    let routes = snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct);
    let mut ignored = Vec::new();
    for entry in routes.filter(|entry| !entry.route.ignored.is_empty()) {
        let Ignored { networks, namespaces: names } = &entry.route.ignored;
        let addresses = names.iter().filter_map(|name| namespaces.get(name)).flatten().copied().map(Network::one);
        ignored.extend(networks.iter().copied().chain(addresses).map(|network| (entry.upstream, network)));
    }
    ignored
}

/// Probes of upstreams' pods that do not show that they are the kubelet's.
pub(super) fn probes(snapshot: &Snapshot) -> Vec<(UpstreamId, UnnamedProbe)> {
    let routes = snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct);
    routes.flat_map(|entry| entry.route.unnamed_probes.iter().map(|probe| (entry.upstream, probe.clone()))).collect()
}
