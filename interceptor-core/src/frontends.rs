//! Which addresses the kernel has to know to hold or to steer connections, to which Service each leads, and in which order to
//! get there: desired × present → writes. Pure; `dataplane` carries the writes out, and mends with the same function.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use crate::{Upstream, UpstreamId};

/// Whether pods take a Service's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Heat {
    /// None does, or the node's rules may not know yet that one does: first packets are held.
    Cold,
    /// They do: the node's rules lead there.
    Warm,
}

/// What the kernel's maps hold or should hold; `S` is what they say of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<S = Heat> {
    /// Services by their index, which is the upstream's id.
    pub services: BTreeMap<u32, S>,
    /// Where clients connect, and the index of the Service it leads to.
    pub frontends: BTreeMap<SocketAddr, u32>,
}

/// One write to a map. Each leaves the maps in a state in which no address leads to a Service of which nothing is said, and
/// none that stays is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write<S = Heat> {
    /// Says something of a Service.
    Say(u32, S),
    /// Makes an address lead to a Service.
    Lead(SocketAddr, u32),
    /// Takes an address out.
    Forget(SocketAddr),
    /// Says nothing of a Service any more.
    Off(u32),
}

/// How much the kernel has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Addresses in all.
    pub frontends: usize,
    /// The first index that is too high.
    pub services: u32,
}

/// Why the kernel does not know a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Full {
    /// Its addresses, all together, would exceed [`Room::frontends`].
    Frontends,
    /// Its index is not below [`Room::services`].
    Services,
}

/// What the maps should hold, and what of it is beyond them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims<S = Heat> {
    /// What they should hold.
    pub table: Table<S>,
    /// All upstreams that an address in the table stands for; the first is the one whose index the kernel knows. More than
    /// one when routes name the same port of a Service differently.
    pub upstreams: BTreeMap<SocketAddr, Vec<UpstreamId>>,
    /// Upstreams that did not fit, by id; none of their addresses is in the table.
    pub left_out: Vec<(UpstreamId, Full)>,
}

// === impl Table ===

impl<S: Copy> Table<S> {
    /// Takes a write in.
    pub fn note(&mut self, write: Write<S>) {
        match write {
            Write::Say(service, said) => drop(self.services.insert(service, said)),
            Write::Lead(addr, service) => drop(self.frontends.insert(addr, service)),
            Write::Forget(addr) => drop(self.frontends.remove(&addr)),
            Write::Off(service) => drop(self.services.remove(&service)),
        }
    }
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self { services: BTreeMap::new(), frontends: BTreeMap::new() }
    }
}

// === impl Claims ===

impl<S> Default for Claims<S> {
    fn default() -> Self {
        Self { table: Table::default(), upstreams: BTreeMap::new(), left_out: Vec::new() }
    }
}

/// What the maps should hold for `upstreams`, of which those without [`Upstream::direct`] are passed over, and what they say
/// of each. Lower ids come before higher when room is short. `node` are the node's own addresses, at which node ports are
/// reached.
pub fn claim<'a, S>(
    upstreams: impl IntoIterator<Item = &'a Upstream>,
    node: &[IpAddr],
    say: impl Fn(UpstreamId) -> S,
    room: Room,
) -> Claims<S> {
    let mut direct: Vec<_> =
        upstreams.into_iter().filter_map(|upstream| Some((upstream.id, upstream.direct.as_deref()?))).collect();
    direct.sort_unstable_by_key(|(id, _)| *id);
    let mut claims = Claims::default();
    for (id, direct) in direct {
        // A Service without an address of a family is not there for its clients at all.
        let has_family = |ip: &&IpAddr| direct.frontends.iter().any(|addr| addr.is_ipv4() == ip.is_ipv4());
        let at_node = |port| node.iter().filter(has_family).map(move |ip| (*ip, port).into());
        let node_ports = direct.node_port.into_iter().flat_map(at_node);
        let addresses: BTreeSet<_> = direct.frontends.iter().copied().chain(node_ports).map(canonical).collect();
        let new = addresses.iter().filter(|addr| !claims.upstreams.contains_key(*addr)).count();
        if id.0 >= room.services {
            claims.left_out.push((id, Full::Services));
            continue;
        }
        if claims.table.frontends.len() + new > room.frontends {
            claims.left_out.push((id, Full::Frontends));
            continue;
        }
        if new > 0 {
            claims.table.services.insert(id.0, say(id));
        }
        for addr in addresses {
            claims.table.frontends.entry(addr).or_insert(id.0);
            claims.upstreams.entry(addr).or_default().push(id);
        }
    }
    claims
}

/// The writes that lead from `present` to `desired`: what is said of Services before the addresses that lead to them, what
/// is added before what is taken out.
pub fn plan<S: Copy + PartialEq>(desired: &Table<S>, present: &Table<S>) -> Vec<Write<S>> {
    let said = desired.services.iter().filter(|(service, said)| present.services.get(service) != Some(said));
    let leads = desired.frontends.iter().filter(|(addr, service)| present.frontends.get(addr) != Some(service));
    let forgotten = present.frontends.keys().filter(|addr| !desired.frontends.contains_key(addr));
    let off = present.services.keys().filter(|service| !desired.services.contains_key(service));
    said.map(|(service, said)| Write::Say(*service, *said))
        .chain(leads.map(|(addr, service)| Write::Lead(*addr, *service)))
        .chain(forgotten.map(|addr| Write::Forget(*addr)))
        .chain(off.map(|service| Write::Off(*service)))
        .collect()
}

/// As the kernel's keys have it: an IPv4-mapped address is the IPv4 address.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::{collection::btree_map, prelude::*, sample::select};

    use super::*;
    use crate::{
        Endpoints, ObjectKey,
        direct::Direct,
        route::{PortRef, Target},
        upstream::{Encryption, Protocol, Resolution},
    };

    const ROOM: Room = Room { frontends: 100, services: 10 };

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, n], 80))
    }

    fn upstream(id: u32, addresses: &[u8], node_port: Option<u16>) -> Upstream {
        let frontends = addresses.iter().map(|n| addr(*n)).collect();
        Upstream {
            id: UpstreamId(id),
            target: Target { service: ObjectKey::new("ns", "web"), port: PortRef::Number(80) },
            resolution: Resolution::Found,
            protocol: Protocol::Http1,
            encryption: Encryption::AsReceived,
            affinity: None,
            endpoints: Endpoints::new(),
            early: [].into(),
            pending: Endpoints::new(),
            probe: None,
            direct: Some(Arc::new(Direct { frontends, node_port, ..Direct::default() })),
        }
    }

    fn cold(upstreams: &[Upstream], node: &[IpAddr], room: Room) -> Claims {
        claim(upstreams, node, |_| Heat::Cold, room)
    }

    #[test]
    fn a_node_port_is_held_at_every_address_of_the_node_of_a_family_of_the_services() {
        let node: [IpAddr; 3] = [[192, 0, 2, 1].into(), [10, 0, 0, 1].into(), "fd00::1".parse().unwrap()];
        let claims = cold(&[upstream(3, &[1], Some(30_080))], &node, ROOM);
        let expected: BTreeMap<SocketAddr, u32> =
            [(addr(1), 3), ((node[0], 30_080).into(), 3), ((node[1], 30_080).into(), 3)].into();
        assert_eq!(claims.table.frontends, expected);
        assert_eq!(claims.table.services, [(3, Heat::Cold)].into());
    }

    #[test]
    fn an_address_of_two_upstreams_leads_to_the_first_and_stands_for_both() {
        let claims = cold(&[upstream(2, &[1], None), upstream(1, &[1], None)], &[], ROOM);
        assert_eq!(claims.table.frontends, [(addr(1), 1)].into());
        assert_eq!(claims.upstreams[&addr(1)], [UpstreamId(1), UpstreamId(2)]);
        assert_eq!(claims.table.services.len(), 1, "nothing leads to the other");
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole_and_leaves_the_others_alone() {
        let room = Room { frontends: 2, services: 10 };
        let all =
            [upstream(1, &[1], None), upstream(2, &[2, 3], None), upstream(3, &[4], None), upstream(10, &[5], None)];
        let claims = cold(&all, &[], room);
        assert_eq!(claims.table.frontends, [(addr(1), 1), (addr(4), 3)].into());
        assert_eq!(claims.left_out, [(UpstreamId(2), Full::Frontends), (UpstreamId(10), Full::Services)]);
    }

    #[test]
    fn an_upstream_that_no_route_reaches_directly_is_none_of_the_kernels_business() {
        let proxied = Upstream { direct: None, ..upstream(1, &[1], None) };
        assert_eq!(cold(&[proxied], &[], ROOM), Claims::default());
    }

    fn table() -> impl Strategy<Value = Table> {
        let heat = select(vec![Heat::Cold, Heat::Warm]);
        (btree_map(0..6_u32, heat, 0..6), btree_map(0..12_u8, 0..6_u32, 0..12)).prop_map(|(services, leads)| {
            let leads = leads.into_iter().filter(|(_, service)| services.contains_key(service));
            Table { frontends: leads.map(|(n, service)| (addr(n), service)).collect(), services }
        })
    }

    proptest! {
        #[test]
        fn writes_lead_to_what_is_desired_and_every_step_on_the_way_is_sound(desired in table(), present in table()) {
            let mut table = present.clone();
            for write in plan(&desired, &present) {
                table.note(write);
                for (addr, service) in &table.frontends {
                    prop_assert!(table.services.contains_key(service), "{addr} leads to nothing after {write:?}");
                }
                for (addr, service) in &present.frontends {
                    if desired.frontends.get(addr) == Some(service) {
                        prop_assert_eq!(table.frontends.get(addr), Some(service), "{} was lost for a while", addr);
                    }
                }
            }
            prop_assert_eq!(&table, &desired);
            prop_assert!(plan(&desired, &table).is_empty());
        }
    }
}
