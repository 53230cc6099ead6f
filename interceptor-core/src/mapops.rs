//! Which pod addresses the kernel's map should hold, and in which order to get there: desired × installed → operations.
//! Pure; `dataplane` carries the operations out and repairs with the same function.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
};

use crate::{Upstream, UpstreamId};

/// A place among the kernel's counters. One upstream's for as long as it exists; not its id, because ids are used again
/// while connections of their former owners are still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// What the map holds or should hold.
pub type Table = BTreeMap<SocketAddr, Slot>;

/// One step on the map. Each leaves it in a state that counts no connection for the wrong upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// Adds the address, or replaces its slot.
    Set(SocketAddr, Slot),
    /// Takes the address out.
    Remove(SocketAddr),
}

/// How much the kernel has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Addresses in all.
    pub addresses: usize,
    /// Upstreams that may get a slot besides those that have one.
    pub new_slots: usize,
}

/// An address that two upstreams list. Its connections are counted for the owner alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shared {
    /// The address.
    pub addr: SocketAddr,
    /// For whom it is counted: the one whose target comes first by namespace, Service and port.
    pub owner: UpstreamId,
    /// For whom it is not.
    pub other: UpstreamId,
}

/// Why an upstream is not counted in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Full {
    /// Its addresses, all together, would exceed [`Room::addresses`].
    Addresses,
    /// There is no slot left.
    Slots,
}

/// Who owns which address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Each address that is to be in the map, with its owner.
    pub owners: BTreeMap<SocketAddr, UpstreamId>,
    /// Addresses that more than one upstream lists, sorted.
    pub shared: Vec<Shared>,
    /// Upstreams that did not fit, sorted; none of their addresses is in `owners`, for half a count would mislead.
    pub left_out: Vec<(UpstreamId, Full)>,
}

/// Decides who owns which address. The outcome does not depend on the order of `upstreams`. Those for which `has_slot`
/// come before the others when room is short, then lower ids before higher, so that what is counted stays counted.
pub fn claim<'a>(
    upstreams: impl IntoIterator<Item = &'a Upstream>,
    has_slot: impl Fn(UpstreamId) -> bool,
    room: Room,
) -> Claims {
    let upstreams: Vec<_> = upstreams.into_iter().collect();
    let mut listed: Vec<(SocketAddr, usize)> = Vec::with_capacity(upstreams.len());
    for (at, upstream) in upstreams.iter().enumerate() {
        listed.extend(upstream.endpoints.keys().map(|addr| (*addr, at)));
    }
    listed.sort_unstable();
    listed.dedup();
    // Sorting by address brings the rivals together; targets are compared among those alone.
    let rank = |at: usize| (&upstreams[at].target, upstreams[at].id);
    let mut shared = Vec::new();
    let mut won = vec![0; upstreams.len()];
    let mut winners = Vec::with_capacity(listed.len());
    for rivals in listed.chunk_by(|(a, _), (b, _)| a == b) {
        let Some(&(addr, owner)) = rivals.iter().min_by_key(|(_, at)| rank(*at)) else { continue };
        won[owner] += 1;
        winners.push((addr, owner));
        let others = rivals.iter().map(|(_, at)| *at).filter(|at| *at != owner);
        shared.extend(others.map(|at| Shared { addr, owner: upstreams[owner].id, other: upstreams[at].id }));
    }
    shared.sort_unstable();
    let needs = upstreams.iter().zip(won).map(|(upstream, count)| (upstream.id, count)).filter(|(_, count)| *count > 0);
    let left_out = leave_out(needs.collect(), has_slot, room);
    let out: HashSet<_> = left_out.iter().map(|(id, _)| *id).collect();
    let owners = winners.into_iter().map(|(addr, at)| (addr, upstreams[at].id)).filter(|(_, id)| !out.contains(id));
    Claims { owners: owners.collect(), shared, left_out }
}

/// The operations that lead from `installed` to `desired`: what is added or replaced first, then what is removed, so that
/// at no time an address that stays is missing.
pub fn plan(desired: &Table, installed: &Table) -> Vec<MapOp> {
    let (mut sets, mut removes) = (Vec::new(), Vec::new());
    let (mut want, mut have) = (desired.iter().peekable(), installed.iter().peekable());
    loop {
        let order = match (want.peek(), have.peek()) {
            (Some((wanted, _)), Some((had, _))) => wanted.cmp(had),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => break,
        };
        let (wanted, had) = (want.next_if(|_| order.is_le()), have.next_if(|_| order.is_ge()));
        match (wanted, had) {
            (Some((_, wanted)), Some((_, had))) if wanted == had => {}
            (Some((addr, slot)), _) => sets.push(MapOp::Set(*addr, *slot)),
            (None, Some((addr, _))) => removes.push(MapOp::Remove(*addr)),
            (None, None) => {}
        }
    }
    sets.append(&mut removes);
    sets
}

/// Which upstreams, with the number of addresses each has won, do not fit.
fn leave_out(
    mut needs: Vec<(UpstreamId, usize)>,
    has_slot: impl Fn(UpstreamId) -> bool,
    room: Room,
) -> Vec<(UpstreamId, Full)> {
    let Room { mut addresses, mut new_slots } = room;
    needs.sort_unstable_by_key(|(id, _)| (!has_slot(*id), *id));
    let mut left_out = Vec::new();
    for (id, count) in needs {
        let new = !has_slot(id);
        if count > addresses {
            left_out.push((id, Full::Addresses));
        } else if new && new_slots == 0 {
            left_out.push((id, Full::Slots));
        } else {
            addresses -= count;
            new_slots -= usize::from(new);
        }
    }
    left_out.sort_unstable();
    left_out
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        Endpoints, ObjectKey,
        route::{PortRef, Target},
        upstream::{Encryption, Protocol, Resolution},
    };

    const AMPLE: Room = Room { addresses: 1000, new_slots: 1000 };

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 80))
    }

    fn upstream(id: u32, service: &str, addrs: impl IntoIterator<Item = u8>) -> Upstream {
        Upstream {
            id: UpstreamId(id),
            target: Target { service: ObjectKey::new("ns", service), port: PortRef::Number(80) },
            resolution: Resolution::Found,
            protocol: Protocol::Http1,
            encryption: Encryption::AsReceived,
            affinity: None,
            endpoints: addrs.into_iter().map(|n| (addr(n), None)).collect(),
            early: [].into(),
            pending: Endpoints::new(),
            probe: None,
            direct: None,
        }
    }

    fn apply(table: &mut Table, op: MapOp) {
        match op {
            MapOp::Set(addr, slot) => table.insert(addr, slot),
            MapOp::Remove(addr) => table.remove(&addr),
        };
    }

    #[test]
    fn an_address_of_two_upstreams_goes_to_the_first_target_and_is_reported() {
        let a = upstream(7, "a", [1, 2]);
        let b = upstream(3, "b", [2, 3]);
        let claims = claim([&b, &a], |_| false, AMPLE);
        let owners: Vec<_> = claims.owners.into_iter().collect();
        assert_eq!(owners, [(addr(1), UpstreamId(7)), (addr(2), UpstreamId(7)), (addr(3), UpstreamId(3))]);
        assert_eq!(claims.shared, [Shared { addr: addr(2), owner: UpstreamId(7), other: UpstreamId(3) }]);
        assert_eq!(claims.left_out, []);
    }

    #[test]
    fn the_upstream_that_does_not_fit_is_left_out_whole_and_smaller_ones_still_fit() {
        let ups = [upstream(1, "a", [1, 2]), upstream(2, "b", [3, 4]), upstream(3, "c", [5])];
        let claims = claim(&ups, |_| false, Room { addresses: 3, ..AMPLE });
        assert_eq!(claims.left_out, [(UpstreamId(2), Full::Addresses)]);
        assert_eq!(claims.owners.keys().copied().collect::<Vec<_>>(), [addr(1), addr(2), addr(5)]);
    }

    #[test]
    fn what_is_counted_stays_counted_when_room_is_short() {
        let ups = [upstream(1, "a", [1]), upstream(2, "b", [2])];
        let claims = claim(&ups, |id| id == UpstreamId(2), Room { addresses: 1, ..AMPLE });
        assert_eq!(claims.left_out, [(UpstreamId(1), Full::Addresses)]);
        let claims = claim(&ups, |id| id == UpstreamId(2), Room { addresses: 9, new_slots: 0 });
        assert_eq!(claims.left_out, [(UpstreamId(1), Full::Slots)]);
    }

    #[test]
    fn an_upstream_without_addresses_needs_no_room() {
        let claims = claim(&[upstream(1, "a", [])], |_| false, Room { addresses: 0, new_slots: 0 });
        assert_eq!(claims, Claims::default());
    }

    #[test]
    fn additions_come_before_removals() {
        let desired = Table::from([(addr(1), Slot(1)), (addr(2), Slot(1))]);
        let installed = Table::from([(addr(2), Slot(9)), (addr(3), Slot(1))]);
        let expected = [MapOp::Set(addr(1), Slot(1)), MapOp::Set(addr(2), Slot(1)), MapOp::Remove(addr(3))];
        assert_eq!(plan(&desired, &installed), expected);
    }

    fn tables() -> impl Strategy<Value = Table> {
        vec((0_u8..12, 0_u32..4), 0..12)
            .prop_map(|entries| entries.into_iter().map(|(a, s)| (addr(a), Slot(s))).collect())
    }

    fn upstreams() -> impl Strategy<Value = Vec<Upstream>> {
        vec((0_u8..6, vec(0_u8..16, 0..5)), 0..8).prop_map(|specs| {
            let named = specs.into_iter().enumerate();
            named.map(|(id, (name, addrs))| upstream(u32::try_from(id).unwrap(), &format!("s{name}"), addrs)).collect()
        })
    }

    proptest! {
        #[test]
        fn a_plan_arrives_and_then_has_nothing_to_do(desired in tables(), installed in tables()) {
            let mut table = installed.clone();
            for op in plan(&desired, &installed) {
                apply(&mut table, op);
            }
            prop_assert_eq!(&table, &desired);
            prop_assert!(plan(&desired, &table).is_empty());
        }

        #[test]
        fn at_every_step_an_address_has_its_old_or_its_new_slot(desired in tables(), installed in tables()) {
            let mut table = installed.clone();
            for op in plan(&desired, &installed) {
                apply(&mut table, op);
                for (addr, slot) in &table {
                    prop_assert!(desired.get(addr) == Some(slot) || installed.get(addr) == Some(slot));
                }
                for addr in desired.keys().filter(|addr| installed.contains_key(addr)) {
                    prop_assert!(table.contains_key(addr), "an address that stays was missing for a moment");
                }
                prop_assert!(table.len() <= desired.len() + installed.len());
            }
        }

        #[test]
        fn claims_ignore_order(ups in upstreams(), addresses in 0_usize..20, new_slots in 0_usize..8, kept in 0_u32..8) {
            let room = Room { addresses, new_slots };
            let has_slot = |id: UpstreamId| id.0 < kept;
            let forward = claim(&ups, has_slot, room);
            prop_assert_eq!(&forward, &claim(ups.iter().rev(), has_slot, room));
        }

        #[test]
        fn claims_keep_to_the_room_and_leave_no_one_out_without_need(
            ups in upstreams(), addresses in 0_usize..20, new_slots in 0_usize..8, kept in 0_u32..8,
        ) {
            let room = Room { addresses, new_slots };
            let claims = claim(&ups, |id| id.0 < kept, room);
            prop_assert!(claims.owners.len() <= addresses);
            let owners: HashSet<_> = claims.owners.values().copied().collect();
            prop_assert!(owners.iter().filter(|id| id.0 >= kept).count() <= new_slots);
            let ample = claim(&ups, |id| id.0 < kept, AMPLE);
            prop_assert_eq!(&claims.shared, &ample.shared);
            let out: HashSet<_> = claims.left_out.iter().map(|(id, _)| *id).collect();
            for (addr, owner) in &ample.owners {
                let expected = (!out.contains(owner)).then_some(owner);
                prop_assert_eq!(claims.owners.get(addr), expected, "all of an upstream's addresses or none");
            }
            for (id, why) in &claims.left_out {
                let needs = ample.owners.values().filter(|owner| *owner == id).count();
                match why {
                    Full::Addresses => prop_assert!(claims.owners.len() + needs > addresses),
                    Full::Slots => prop_assert!(id.0 >= kept),
                }
            }
        }
    }
}
