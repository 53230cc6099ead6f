//! The network devices of the node, and what tells that they have changed.

use std::{collections::BTreeMap, io, net::IpAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr as Peer, protocols::NETLINK_ROUTE};
use nix::ifaddrs::getifaddrs;
use tokio::io::unix::AsyncFd;

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`.
const GROUPS: [u32; 3] = [1, 5, 9];

/// Kinds of devices that stand upon others that lead outward.
const OUTWARD: [InfoKind; 5] = [InfoKind::Bond, InfoKind::IpVlan, InfoKind::MacVlan, InfoKind::Team, InfoKind::Vlan];

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name, which may change.
    pub name: String,
    /// Whether it is one end of a virtual cable, as lead to pods.
    pub is_veth: bool,
    /// Whether it may lead out of the node: an Ethernet device of the machine's, or one that stands upon others, but no bridge.
    pub is_outward: bool,
    /// The device that it is a port of, such as a bridge.
    pub master: Option<u32>,
}

/// Devices by index.
pub type Devices = BTreeMap<u32, Device>;

/// Tells that devices or addresses have changed.
pub struct Changes(AsyncFd<Socket>);

/// Those of the devices by which clients from outside come: with an address of the node, or a port of a bridge that has one. `node` are
/// the node's addresses with the names of their devices.
pub fn uplinks<'a>(devices: &'a Devices, node: &'a [(IpAddr, String)]) -> impl Iterator<Item = (u32, &'a Device)> {
    let has_address = |device: &Device| node.iter().any(|(_, name)| *name == device.name);
    let all = devices.iter().filter(|(_, device)| device.is_outward);
    let own = all.filter(move |(_, device)| {
        has_address(device) || device.master.and_then(|master| devices.get(&master)).is_some_and(has_address)
    });
    own.map(|(index, device)| (*index, device))
}

/// All devices that are up, in the network namespace that the calling thread is in.
pub fn devices() -> io::Result<Devices> {
    let mut devices = Devices::new();
    dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
        if let RouteNetlinkMessage::NewLink(link) = message {
            devices.extend(device(&link));
        }
    })?;
    Ok(devices)
}

/// Asks the kernel for all of something, and takes each message of its answer.
pub(crate) fn dump(request: RouteNetlinkMessage, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&Peer::new(0, 0))?;
    // Or the kernel leaves out what it does not know, and answers something else. Kernels before 4.20 always do.
    _ = socket.set_netlink_get_strict_chk(true);
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        if take(&answer, &mut each)? {
            return Ok(());
        }
    }
}

/// The node's own addresses that clients can reach, each once, with the name of its device.
pub fn addresses() -> io::Result<Vec<(IpAddr, String)>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))?;
        Some((ip, interface.interface_name))
    });
    let is_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    };
    let mut addresses: Vec<_> = addresses.filter(|(ip, _)| !is_local(ip)).collect();
    addresses.sort_unstable();
    addresses.dedup_by_key(|(ip, _)| *ip);
    Ok(addresses)
}

/// Takes one datagram of the answer in; whether it was the last.
fn take(mut answer: &[u8], each: &mut impl FnMut(RouteNetlinkMessage)) -> io::Result<bool> {
    while !answer.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(message) => each(message),
            _ => {}
        }
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
        answer = answer.get(length..).unwrap_or_default();
    }
    Ok(false)
}

fn device(link: &LinkMessage) -> Option<(u32, Device)> {
    let up = link.header.flags.contains(LinkFlags::Up);
    let is_ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    let mut device = Device { name: String::new(), is_veth: false, is_outward: is_ethernet, master: None };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Controller(master) => device.master = Some(*master),
            LinkAttribute::LinkInfo(infos) => {
                let kinds =
                    || infos.iter().filter_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
                device.is_veth = kinds().any(|kind| *kind == InfoKind::Veth);
                // What has no kind is the machine's own.
                device.is_outward &= kinds().all(|kind| OUTWARD.contains(kind));
            }
            _ => {}
        }
    }
    (up && !device.name.is_empty()).then_some((link.header.index, device))
}

// === impl Changes ===

impl Changes {
    /// Follows the network namespace that the calling thread is in.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O.
    pub fn follow() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        #[expect(deprecated, reason = "its successor is unsafe; the socket owns its descriptor and never changes it")]
        let socket = AsyncFd::new(socket)?;
        Ok(Self(socket))
    }

    /// Ends once something has changed, or may have: what is lost when there is too much of it counts as a change.
    /// Cancel safe.
    pub async fn changed(&mut self) -> io::Result<()> {
        let Self(socket) = self;
        let mut ready = socket.readable_mut().await?;
        let mut buffer = bytes_of_one();
        loop {
            match ready.try_io(|socket| socket.get_ref().recv(&mut &mut buffer[..], 0)) {
                // Whatever it says, the devices are looked at anew.
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => return Ok(()),
            }
        }
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

/// Room for the beginning of a message; the rest of it is not wanted.
fn bytes_of_one() -> [u8; 512] {
    [0; 512]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_there_and_is_no_cable() {
        let devices = devices().unwrap();
        assert!(devices.values().any(|device| device.name == "lo" && !device.is_veth));
    }

    #[test]
    fn addresses_that_nobody_else_can_reach_are_not_told() {
        assert!(addresses().unwrap().iter().all(|(ip, _)| !ip.is_loopback()));
    }
}
