//! The node as a client of its own Services: whether its connections are held, and where connections seem to come from.

use std::net::{IpAddr, SocketAddr};

use dataplane::{Devices, Hold, Origin, is_hairpin, source_toward};
use interceptor_core::holding::Flow;

/// Begins to hold connections of the node itself, or sees to it that nothing of an agent before does; why they are not held.
pub(super) fn begin(hold: &mut Hold, wanted: bool) -> Result<(), String> {
    let why = if wanted {
        match hold.hold_node() {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "connections of the node itself are not held");
                error.to_string()
            }
        }
    } else {
        "not asked for (ROUSE_NODE_CLIENTS)".to_owned()
    };
    if let Err(error) = hold.leave_node() {
        tracing::warn!(%error, "what an agent before has left for connections of the node itself stays for 30 s");
    }
    Err(why)
}

/// Which address a pod is to see of a client instead of its own, if any. What the pod answers to the client `passes_by` the node if
/// the client is outside and the pod on another one. `node` are the node's addresses, with their devices.
pub(super) fn source(
    (flow, origin): (&Flow, Origin),
    pod: SocketAddr,
    passes_by: bool,
    (devices, node): (&Devices, &[(IpAddr, String)]),
) -> Option<IpAddr> {
    match origin {
        Origin::Device(device) if is_hairpin(flow, pod.ip()) => gateway(devices, node, device, pod.ip()),
        Origin::Device(_) if passes_by => source_toward(pod).ok(),
        Origin::Device(_) => None,
        Origin::Node => masquerade(flow.client.ip(), pod),
    }
}

/// Which address a pod is to see of a client in the node's own network, if not the client's own: answers to that might not
/// come back the way that leads to the pod.
fn masquerade(client: IpAddr, pod: SocketAddr) -> Option<IpAddr> {
    source_toward(pod).ok().filter(|source| *source != client)
}

/// The node's address on the bridge that a device is a port of, or any other of the family: what a pod sees of a connection
/// to itself, as it does when kube-proxy masquerades it.
fn gateway(devices: &Devices, node: &[(IpAddr, String)], device: u32, like: IpAddr) -> Option<IpAddr> {
    let bridge = devices.get(&device).and_then(|device| device.master).and_then(|master| devices.get(&master));
    let fits = |ip: &IpAddr| ip.is_ipv4() == like.is_ipv4();
    let of_bridge = node.iter().find(|(ip, name)| fits(ip) && bridge.is_some_and(|bridge| bridge.name == *name));
    of_bridge.or_else(|| node.iter().find(|(ip, _)| fits(ip))).map(|(ip, _)| *ip)
}
