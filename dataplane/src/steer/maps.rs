//! The steering programs' maps, typed.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray},
};
use interceptor_common::{
    AddrKey,
    hold::{Heat, ServiceSlot},
    steer::{Choice, FAMILIES, INTERCEPTORS, SteerStats, family},
};

use super::Listed;
use crate::{
    frontends::{Frontends, Say},
    maps::{WrongMap, gone, os_error, take},
    syscall,
};

/// Most cgroups of interceptors that are known: half of what there is room for.
const OUT_MOST: usize = 512;

/// All maps of the object that are shared with it, besides those by which it knows Services.
pub(super) const NAMES: [&str; 5] = ["INTERCEPTORS", "CHOICES", "OUT", "STEERED", "STATS"];

/// Addresses of each family.
type Lists = [Vec<[u32; 4]>; FAMILIES as usize];

pub(super) struct SteerMaps {
    pub(super) frontends: Frontends<NonZeroU16>,
    interceptors: Array<MapData, [u32; 4]>,
    choices: Array<MapData, u32>,
    out: HashMap<MapData, u64, u32>,
    stats: PerCpuArray<MapData, SteerStats>,
    /// What was last put into them: by family, and ids.
    listed: Lists,
    left_out: BTreeSet<u64>,
}

// === impl SteerMaps ===

impl SteerMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, WrongMap> {
        let mut maps = Self {
            frontends: Frontends::take(ebpf)?,
            interceptors: take(ebpf, "INTERCEPTORS")?,
            choices: take(ebpf, "CHOICES")?,
            out: take(ebpf, "OUT")?,
            stats: take(ebpf, "STATS")?,
            listed: Default::default(),
            left_out: BTreeSet::new(),
        };
        // Pinned maps hold what a process before has put into them.
        let found = maps.found().map_err(|error| WrongMap::unread("INTERCEPTORS", error))?;
        (maps.listed, maps.left_out) = found;
        Ok(maps)
    }

    /// Lists these, at most so many of each family as there is room for.
    pub(super) fn interceptors(&mut self, addresses: &BTreeSet<IpAddr>) -> io::Result<Listed> {
        let mut desired: Lists = Default::default();
        let mut listed = Listed::default();
        for address in addresses {
            let key = AddrKey::new(SocketAddr::new(*address, 0));
            let of_family = &mut desired[family(&key) as usize];
            if of_family.len() < INTERCEPTORS as usize {
                of_family.push(key.addr_be);
                listed.addresses.push(*address);
            } else {
                listed.left_out += 1;
            }
        }
        if desired != self.listed {
            self.list(desired)?;
        }
        Ok(listed)
    }

    /// Programs may still be reading the half that was left the last time; they have ended before it is written.
    fn list(&mut self, desired: Lists) -> io::Result<()> {
        // Without the call they may be told of an interceptor that has gone, as before it was known.
        _ = syscall::wait_for_programs();
        for (family, addresses) in (0..).zip(&desired) {
            let now = Choice::from_word(self.choices.get(&family, 0).map_err(os_error)?);
            let next = Choice { second: !now.second, count: u32::try_from(addresses.len()).unwrap_or(INTERCEPTORS) };
            for (at, address) in (next.base(family)..).zip(addresses) {
                self.interceptors.set(at, *address, 0).map_err(os_error)?;
            }
            self.choices.set(family, next.word(), 0).map_err(os_error)?;
        }
        self.listed = desired;
        Ok(())
    }

    /// Makes these the cgroups whose connections are left alone: how many there was no room for.
    pub(super) fn leave_out(&mut self, ids: &BTreeSet<u64>) -> io::Result<usize> {
        let desired: BTreeSet<_> = ids.iter().copied().take(OUT_MOST).collect();
        for id in desired.difference(&self.left_out) {
            self.out.insert(id, 0, 0).map_err(os_error)?;
        }
        for id in self.left_out.difference(&desired) {
            gone(self.out.remove(id))?;
        }
        self.left_out = desired;
        Ok(ids.len() - self.left_out.len())
    }

    /// Mends what differs from what was last put in: how many lists and cgroups did.
    pub(super) fn repair(&mut self) -> io::Result<usize> {
        let (listed, left_out) = self.found()?;
        let lists = listed.iter().zip(&self.listed).filter(|(found, desired)| found != desired).count();
        let differ = left_out.symmetric_difference(&self.left_out).count();
        if lists > 0 {
            self.list(self.listed.clone())?;
        }
        if differ > 0 {
            let desired = std::mem::replace(&mut self.left_out, left_out);
            self.leave_out(&desired)?;
        }
        Ok(lists + differ)
    }

    /// What the maps hold.
    fn found(&self) -> io::Result<(Lists, BTreeSet<u64>)> {
        let mut listed: Lists = Default::default();
        for (family, found) in (0..).zip(&mut listed) {
            let choice = Choice::from_word(self.choices.get(&family, 0).map_err(os_error)?);
            let indices = (choice.base(family)..).take(choice.count.min(INTERCEPTORS) as usize);
            let addresses = indices.map(|at| self.interceptors.get(&at, 0));
            *found = addresses.collect::<Result<_, MapError>>().map_err(os_error)?;
        }
        let ids = self.out.keys().collect::<Result<_, _>>().map_err(os_error)?;
        Ok((listed, ids))
    }

    pub(super) fn stats(&self) -> io::Result<SteerStats> {
        let shares = self.stats.get(&0, 0).map_err(os_error)?;
        Ok(shares.iter().fold(SteerStats::default(), |sum, share| {
            let SteerStats { steered, seen_through, nobody } = *share;
            SteerStats {
                steered: sum.steered.wrapping_add(steered),
                seen_through: sum.seen_through.wrapping_add(seen_through),
                nobody: sum.nobody.wrapping_add(nobody),
            }
        }))
    }
}

// === impl NonZeroU16 ===

/// Only cold Services are known.
impl Say for NonZeroU16 {
    fn slot(self) -> ServiceSlot {
        ServiceSlot { heat: Heat::COLD, port: self.get().into() }
    }

    fn read(slot: ServiceSlot) -> Option<Self> {
        let port = u16::try_from(slot.port).ok().and_then(Self::new)?;
        (slot.heat == Heat::COLD).then_some(port)
    }
}
