//! In which network namespace an address is: each device that is the end of a cable tells the number of the namespace that
//! its other end is in, and that namespace's addresses can be asked for by number. So pods' namespaces are found without
//! their processes.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    io,
    net::IpAddr,
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
};

use crate::{addresses, devices::dump};

/// Where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the namespace of this number, as this one has it; in this one itself if it is negative.
    In(i32),
    /// In more than one.
    Several,
}

impl Place {
    /// The namespace that the calling thread is in.
    pub(super) const HERE: i32 = -1;
}

/// The addresses of this network namespace, and of those that its devices lead to.
pub(super) fn places() -> io::Result<HashMap<IpAddr, Place>> {
    let mut namespaces = BTreeSet::new();
    dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
        if let RouteNetlinkMessage::NewLink(link) = message {
            namespaces.extend(link.attributes.iter().filter_map(namespace));
        }
    })?;
    let mut places = HashMap::new();
    for (address, _) in addresses()? {
        places.insert(address, Place::In(Place::HERE));
    }
    for netns in namespaces {
        match addresses_of(netns) {
            Ok(addresses) => addresses.into_iter().for_each(|address| note(&mut places, address, netns)),
            // It has gone since, or it is that of somebody who does not let us look.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES | libc::EPERM)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(places)
}

fn namespace(attribute: &LinkAttribute) -> Option<i32> {
    match attribute {
        LinkAttribute::LinkNetNsId(netns) => Some(*netns).filter(|netns| *netns >= 0),
        _ => None,
    }
}

fn note(places: &mut HashMap<IpAddr, Place>, address: IpAddr, netns: i32) {
    match places.entry(address) {
        Entry::Vacant(entry) => _ = entry.insert(Place::In(netns)),
        Entry::Occupied(mut entry) if *entry.get() != Place::In(netns) => _ = entry.insert(Place::Several),
        Entry::Occupied(_) => {}
    }
}

fn addresses_of(netns: i32) -> io::Result<Vec<IpAddr>> {
    let mut asked = AddressMessage::default();
    asked.attributes.push(AddressAttribute::TargetNetNsId(netns));
    let mut addresses = Vec::new();
    dump(RouteNetlinkMessage::GetAddress(asked), |message| {
        let RouteNetlinkMessage::NewAddress(told) = message else { return };
        // Where it is not understood, which namespace is meant, the answer is of this one.
        if !told.attributes.contains(&AddressAttribute::TargetNetNsId(netns)) {
            return;
        }
        let local = told.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let any = told.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        addresses.extend(local.or(any).filter(|address| is_reachable(*address)));
    })?;
    Ok(addresses)
}

/// Each namespace has the others for itself.
fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_several_have_is_nobodys() {
        let (mut places, address) = (HashMap::new(), "10.0.0.1".parse().unwrap());
        note(&mut places, address, 1);
        note(&mut places, address, 1);
        assert_eq!(places[&address], Place::In(1));
        note(&mut places, address, 2);
        note(&mut places, address, 1);
        assert_eq!(places[&address], Place::Several);
    }
}
