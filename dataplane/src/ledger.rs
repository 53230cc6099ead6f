//! Keeps the kernel's address map in step with the snapshot: which upstream has which slot, what the map should hold, and
//! what it holds as far as we know. Decides with `interceptor_core::mapops`; touches the kernel through [`Maps`] alone.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::SocketAddr,
    sync::Arc,
};

use aya::programs::ProgramError;
use imbl::ordmap::DiffItem;
use interceptor_common::{Counters, Stats};
use interceptor_core::{
    Upstream, UpstreamId,
    mapops::{self, Full, MapOp, Room, Shared, Slot, Table},
    route::Target,
};

use crate::{
    LeftOut, RepairReport, SyncReport,
    slots::{Known, Slots, tag},
};

/// How many addresses and slots there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pod addresses; the kernel's map has room for twice as many, so that there is always room to add before removing.
    pub addresses: u32,
    /// Slots, the self-test's included.
    pub slots: u32,
}

/// A call to the kernel that failed for other reasons than want of room.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// An address could not be added or removed. The others were, and the next sync tries it again.
    #[error("the kernel's map of pod addresses: {addr}")]
    Address {
        /// Which address.
        addr: SocketAddr,
        /// The kernel's words.
        source: io::Error,
    },
    /// The map could not be read back.
    #[error("the kernel's map of pod addresses cannot be read")]
    Read(#[source] io::Error),
    /// The kernel does not tell whether the program is still attached.
    #[error("the programs attached to the cgroup cannot be listed")]
    Query(#[source] io::Error),
    /// The program had been taken off its cgroup and cannot be put back.
    #[error("the program was taken off its cgroup and cannot be put back")]
    Attach(#[source] Box<ProgramError>),
    /// Counters could not be read.
    #[error("the kernel's counters cannot be read")]
    Counters(#[source] io::Error),
}

/// The kernel's maps as the ledger uses them.
pub(crate) trait Maps {
    /// What a slot counts.
    type Counters: Counters;

    fn set(&mut self, addr: SocketAddr, slot: Slot) -> io::Result<()>;
    /// Removing what is not there is no error.
    fn remove(&mut self, addr: SocketAddr) -> io::Result<()>;
    fn read(&self) -> io::Result<Table>;
    fn stats(&self, slot: Slot) -> io::Result<Self::Counters>;
    /// Returns after every program has ended that was running when it was called.
    fn wait_for_programs(&self) -> io::Result<()>;
    /// Notes whose a slot is, for a process that comes after this one; nothing where none can.
    fn note(&mut self, _: Slot, _: Option<(u64, &Self::Counters)>) -> io::Result<()> {
        Ok(())
    }
}

/// How many operations were carried out.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    added: usize,
    replaced: usize,
    removed: usize,
}

/// What should be and what is.
#[derive(Debug)]
pub(crate) struct Ledger<C> {
    limits: Limits,
    slots: Slots<C>,
    /// Those upstreams of the last sync that matter, by id.
    seen: Vec<Arc<Upstream>>,
    desired: Table,
    installed: Table,
    /// Whether everything that was tried last was done.
    settled: bool,
    shared: Vec<Shared>,
    left_out: Vec<LeftOut>,
    /// What was noted of slots, by the target's tag.
    noted: BTreeMap<Slot, u64>,
    /// Whether slots of a process before may still be asked for.
    inherits: bool,
}

// === impl Limits ===

impl Limits {
    /// Addresses for all pods that a large cluster's routes may lead to. What is not used costs 32 bytes.
    const ADDRESSES: u32 = 131_072;
    /// Addresses of one node's pods.
    const ADDRESSES_OF_NODE: u32 = 32_768;
    /// Counters exist once per CPU; all together they are to take no more than this.
    const COUNTER_BYTES: usize = 16 << 20;
    /// Slots for ten thousand warm upstreams and those that drain.
    const SLOTS: usize = 16_384;
    const MIN_SLOTS: usize = 1024;

    /// What a machine with so many CPUs gets.
    pub fn for_cpus(cpus: usize) -> Self {
        Self { addresses: Self::ADDRESSES, ..Self::of::<Stats>(cpus) }
    }

    /// The same where a slot counts more.
    pub(crate) fn of<C>(cpus: usize) -> Self {
        let slots = (Self::COUNTER_BYTES / (size_of::<C>() * cpus.max(1))).clamp(Self::MIN_SLOTS, Self::SLOTS);
        Self { addresses: Self::ADDRESSES_OF_NODE, slots: u32::try_from(slots).unwrap_or(u32::MAX) }
    }
}

// === impl Ledger ===

impl<C: Counters> Ledger<C> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            slots: Slots::new(limits.slots),
            seen: Vec::new(),
            desired: Table::new(),
            installed: Table::new(),
            settled: true,
            shared: Vec::new(),
            left_out: Vec::new(),
            noted: BTreeMap::new(),
            inherits: false,
        }
    }

    /// Goes on where a process before has ended: with what the map holds, and with its slots.
    pub(crate) fn inherit(
        limits: Limits,
        maps: &impl Maps<Counters = C>,
        slots: Vec<Known<C>>,
    ) -> Result<Self, SyncError> {
        let noted = slots.iter().filter_map(|(slot, used, _)| Some((*slot, used.as_ref()?.0))).collect();
        let slots = Slots::inherit(limits.slots, slots);
        let installed = maps.read().map_err(SyncError::Read)?;
        Ok(Self { slots, installed, noted, inherits: true, ..Self::new(limits) })
    }

    /// Makes `maps` count for these upstreams.
    pub(crate) fn sync(
        &mut self,
        maps: &mut impl Maps<Counters = C>,
        upstreams: &mut dyn Iterator<Item = &Arc<Upstream>>,
    ) -> Result<SyncReport, SyncError> {
        let mut wanted: Vec<_> = upstreams.map(Arc::clone).collect();
        let inherits = std::mem::take(&mut self.inherits);
        if inherits {
            for upstream in &wanted {
                self.slots.resume(upstream.id, &upstream.target);
            }
            self.slots.disinherit();
            self.settled = false;
        }
        wanted.retain(|upstream| self.matters(upstream));
        wanted.sort_unstable_by_key(|upstream| upstream.id);
        let settled = self.settled && self.left_out.is_empty();
        if settled && self.seen.len() == wanted.len() && self.seen.iter().zip(&wanted).all(|(a, b)| same(a, b)) {
            return Ok(self.report(Done::default()));
        }
        if let Some(ops) = self.patch(&wanted) {
            self.seen = wanted;
            self.desire(&ops);
            let done = self.apply(maps, ops)?;
            return Ok(self.report(done));
        }
        self.seen = wanted;
        let mut done = self.pass(maps)?;
        let short = self.left_out.iter().any(|left| self.slots.of(left.upstream).is_none());
        if short && self.reap(maps)? > 0 {
            done.add(self.pass(maps)?);
        }
        Ok(self.report(done))
    }

    /// Mends the map and frees slots whose connections have ended.
    pub(crate) fn repair(&mut self, maps: &mut impl Maps<Counters = C>) -> Result<RepairReport, SyncError> {
        let actual = maps.read().map_err(SyncError::Read)?;
        let report = drift(&self.installed, &actual);
        if report.drifted() {
            self.installed = actual;
            let ops = mapops::plan(&self.desired, &self.installed);
            self.apply(maps, ops)?;
        }
        self.reap(maps)?;
        Ok(report)
    }

    /// Gives every upstream a slot that has counted nothing, because what the present ones say can't be trusted any
    /// more. Those whose connections ended unseen never drain; that costs room alone.
    pub(crate) fn start_anew(&mut self, maps: &mut impl Maps<Counters = C>) -> Result<(), SyncError> {
        self.slots.retire_for_good();
        self.pass(maps).map(drop)
    }

    /// The upstream's slot, if it has one.
    pub(crate) fn slot(&self, upstream: UpstreamId) -> Option<Slot> {
        self.slots.of(upstream)
    }

    /// The upstream that has a slot now.
    pub(crate) fn upstream(&self, slot: Slot) -> Option<UpstreamId> {
        self.slots.uses().find(|(_, used)| used.slot == slot).map(|(id, _)| id)
    }

    /// Every upstream that has a slot, with what was counted in this use of it, by id.
    pub(crate) fn counters(&self, maps: &impl Maps<Counters = C>) -> Vec<(UpstreamId, io::Result<C>)> {
        let mut counters: Vec<_> = self
            .slots
            .uses()
            .map(|(id, used)| (id, maps.stats(used.slot).map(|stats| stats.since(&used.base))))
            .collect();
        counters.sort_unstable_by_key(|(id, _)| *id);
        counters
    }

    /// Whether an upstream has something to do with the kernel: one that never had a pod has not.
    fn matters(&self, upstream: &Upstream) -> bool {
        !upstream.endpoints.is_empty() || self.slots.of(upstream.id).is_some()
    }

    /// What is to be done where nothing but endpoints of upstreams has changed since the last sync: as much as has changed.
    /// `None` where all upstreams have to be looked at: one has come or gone, or addresses are short, shared, or have moved from one
    /// to another.
    fn patch(&self, wanted: &[Arc<Upstream>]) -> Option<Vec<MapOp>> {
        let is_plain = self.settled && self.left_out.is_empty() && self.shared.is_empty();
        if !is_plain || self.seen.len() != wanted.len() {
            return None;
        }
        let (mut added, mut removed) = (BTreeMap::new(), Vec::new());
        for (old, new) in self.seen.iter().zip(wanted).filter(|(old, new)| !same(old, new)) {
            if (old.id, &old.target) != (new.id, &new.target) {
                return None;
            }
            let slot = self.slots.of(new.id)?;
            for change in old.endpoints.diff(&new.endpoints) {
                match change {
                    DiffItem::Remove(addr, _) => removed.push(MapOp::Remove(*addr)),
                    DiffItem::Add(addr, _) if self.desired.contains_key(addr) => return None,
                    DiffItem::Add(addr, _) if added.insert(*addr, slot).is_some() => return None,
                    // A name has changed, if anything has.
                    DiffItem::Add(..) | DiffItem::Update { .. } => {}
                }
            }
        }
        if self.desired.len() + added.len() > self.limits.addresses as usize + removed.len() {
            return None;
        }
        Some(added.into_iter().map(|(addr, slot)| MapOp::Set(addr, slot)).chain(removed).collect())
    }

    fn desire(&mut self, ops: &[MapOp]) {
        for op in ops {
            match op {
                MapOp::Set(addr, slot) => drop(self.desired.insert(*addr, *slot)),
                MapOp::Remove(addr) => drop(self.desired.remove(addr)),
            }
        }
    }

    fn pass(&mut self, maps: &mut impl Maps<Counters = C>) -> Result<Done, SyncError> {
        let seen = &self.seen;
        let target_of = |id| target_of(seen, id);
        self.slots.retire_all_but(target_of);
        for upstream in seen.iter().filter(|upstream| !upstream.endpoints.is_empty()) {
            self.slots.resume(upstream.id, &upstream.target);
        }
        let room = Room { addresses: self.limits.addresses as usize, new_slots: self.slots.available() };
        let claims = mapops::claim(seen.iter().map(AsRef::as_ref), |id| self.slots.of(id).is_some(), room);
        let slots = &mut self.slots;
        let with_slot = claims.owners.into_iter().map(|(addr, owner)| {
            let target = target_of(owner).expect("an owner is one of the upstreams that claimed");
            (addr, slots.give(owner, target).expect("claims keep to the number of slots available"))
        });
        self.desired = with_slot.collect();
        self.note(maps)?;
        self.shared = claims.shared;
        self.left_out = claims.left_out.into_iter().map(|(upstream, full)| self.no_room(upstream, full)).collect();
        let ops = mapops::plan(&self.desired, &self.installed);
        self.apply(maps, ops)
    }

    /// Notes whose slots are, before an address leads to one.
    fn note(&mut self, maps: &mut impl Maps<Counters = C>) -> Result<(), SyncError> {
        let used: BTreeMap<_, _> = self.slots.uses().map(|(_, used)| (used.slot, used)).collect();
        let gone: Vec<_> = self.noted.keys().filter(|slot| !used.contains_key(slot)).copied().collect();
        for slot in gone {
            maps.note(slot, None).map_err(SyncError::Counters)?;
            self.noted.remove(&slot);
        }
        for (slot, used) in used {
            let tag = tag(&used.target);
            if self.noted.get(&slot) != Some(&tag) {
                maps.note(slot, Some((tag, &used.base))).map_err(SyncError::Counters)?;
                self.noted.insert(slot, tag);
            }
        }
        Ok(())
    }

    fn no_room(&self, upstream: UpstreamId, full: Full) -> LeftOut {
        let why = match full {
            Full::Addresses => {
                format!("its addresses do not fit: all upstreams together may have {}", self.limits.addresses)
            }
            Full::Slots => {
                format!("no counters are free: {} upstreams may have them", self.limits.slots.saturating_sub(1))
            }
        };
        self.left_out(upstream, why)
    }

    fn left_out(&self, upstream: UpstreamId, why: String) -> LeftOut {
        let target = target_of(&self.seen, upstream).expect("only an upstream that was seen can be left out").clone();
        LeftOut { upstream, target, why }
    }

    /// Carries `ops` out and returns what was done. When the kernel has no room for an upstream's address, the upstream is
    /// taken out whole; any other failure is returned after the rest has been done.
    fn apply(&mut self, maps: &mut impl Maps<Counters = C>, ops: Vec<MapOp>) -> Result<Done, SyncError> {
        let mut done = Done::default();
        let mut refused: BTreeMap<Slot, io::Error> = BTreeMap::new();
        let mut failed = None;
        for op in ops {
            let Err(error) = self.carry_out(maps, op, &mut done) else { continue };
            match op {
                MapOp::Set(_, slot) if no_room(&error) => _ = refused.entry(slot).or_insert(error),
                MapOp::Set(addr, _) | MapOp::Remove(addr) => {
                    failed.get_or_insert(SyncError::Address { addr, source: error });
                }
            }
        }
        self.settled = failed.is_none() && refused.is_empty();
        for (slot, error) in refused {
            self.degrade(maps, slot, &error, &mut done);
        }
        failed.map_or(Ok(done), Err)
    }

    fn carry_out(&mut self, maps: &mut impl Maps<Counters = C>, op: MapOp, done: &mut Done) -> io::Result<()> {
        let Done { added, replaced, removed } = done;
        match op {
            MapOp::Set(addr, slot) => {
                maps.set(addr, slot)?;
                let before = self.installed.insert(addr, slot);
                *(if before.is_some() { replaced } else { added }) += 1;
            }
            MapOp::Remove(addr) => {
                maps.remove(addr)?;
                self.installed.remove(&addr);
                *removed += 1;
            }
        }
        Ok(())
    }

    fn degrade(&mut self, maps: &mut impl Maps<Counters = C>, slot: Slot, error: &io::Error, done: &mut Done) {
        self.desired.retain(|_, of| *of != slot);
        let addrs: Vec<_> = self.installed.iter().filter(|(_, of)| **of == slot).map(|(addr, _)| *addr).collect();
        for addr in addrs {
            // One that cannot be removed now stays in `installed`, and the next sync tries again.
            _ = self.carry_out(maps, MapOp::Remove(addr), done);
        }
        if let Some(upstream) = self.slots.uses().find(|(_, used)| used.slot == slot).map(|(id, _)| id) {
            let why = format!("the kernel has no room for its addresses: {error}");
            self.left_out.push(self.left_out(upstream, why));
        }
    }

    /// Frees drained slots and says how many. Without [`Maps::wait_for_programs`] none can be freed; that costs room alone.
    fn reap(&mut self, maps: &impl Maps<Counters = C>) -> Result<usize, SyncError> {
        let led_to: HashSet<_> = self.installed.values().copied().collect();
        let mut candidates = Vec::new();
        for slot in self.slots.candidates(&led_to) {
            // Waiting is worth it only where there is something to gain.
            if self.slots.is_drained(slot, &maps.stats(slot).map_err(SyncError::Counters)?) {
                candidates.push(slot);
            }
        }
        if candidates.is_empty() {
            return Ok(0);
        }
        if let Err(error) = maps.wait_for_programs() {
            tracing::warn!(%error, "slots of upstreams that have gone are kept: membarrier(2) failed");
            return Ok(0);
        }
        self.slots.reap(&candidates, |slot| maps.stats(slot)).map_err(SyncError::Counters)
    }

    fn report(&self, done: Done) -> SyncReport {
        let Done { added, replaced, removed } = done;
        SyncReport {
            added,
            replaced,
            removed,
            addresses: self.installed.len(),
            shared: self.shared.clone(),
            left_out: self.left_out.clone(),
        }
    }
}

// === impl Done ===

impl Done {
    fn add(&mut self, other: Self) {
        let Self { added, replaced, removed } = other;
        self.added += added;
        self.replaced += replaced;
        self.removed += removed;
    }
}

fn same(a: &Arc<Upstream>, b: &Arc<Upstream>) -> bool {
    Arc::ptr_eq(a, b) || (a.id == b.id && a.target == b.target && a.endpoints == b.endpoints)
}

/// The target of an upstream in `seen`, which is sorted by id.
fn target_of(seen: &[Arc<Upstream>], id: UpstreamId) -> Option<&Target> {
    seen.binary_search_by_key(&id, |upstream| upstream.id).ok().map(|at| &seen[at].target)
}

/// Whether the kernel refused for want of room: the map's own or memory.
fn no_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM))
}

fn drift(expected: &Table, actual: &Table) -> RepairReport {
    let mut report = RepairReport::default();
    for (addr, slot) in expected {
        match actual.get(addr) {
            None => report.missing += 1,
            Some(other) if other != slot => report.wrong += 1,
            Some(_) => {}
        }
    }
    report.foreign = actual.keys().filter(|addr| !expected.contains_key(addr)).count();
    report
}

mod settle;
#[cfg(test)]
mod tests;
