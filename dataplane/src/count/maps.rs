//! The kernel's maps of the programs that count, typed.

use std::{
    fmt, io,
    mem::offset_of,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
};
use interceptor_common::{AddrKey, Notice, Origin, Run, Served, SlotUse, kubelet::ProbeHead};
use interceptor_core::mapops::{Slot, Table};

mod trie;

pub(super) use self::trie::Prefixes;
use self::trie::Trie;
use crate::{
    ledger::Maps,
    maps::{WrongMap, gone, os_error, take},
    slots::Known,
    syscall,
};

pub(super) const SLOT_OF: &str = "SLOT_OF";
pub(super) const SERVED: &str = "SERVED";
pub(super) const RESTS: &str = "RESTS";
const ORIGINS: &str = "ORIGINS";
const PROBES: &str = "PROBES";
const VERSION: &str = "VERSION";
const MISSED: &str = "MISSED";
const NOTICES: &str = "NOTICES";
const UNTOLD: &str = "UNTOLD";
pub(super) const USES: &str = "USES";
const RUN: &str = "RUN";
pub(super) const JUMPS_RECEIVED: &str = "JUMPS_RECEIVED";
pub(super) const JUMPS_SENT: &str = "JUMPS_SENT";

/// Those that outlive the process where they can be pinned: all but what programs need for one segment.
pub(super) const PINNED: [&str; 15] = [
    SLOT_OF,
    SERVED,
    ORIGINS,
    PROBES,
    VERSION,
    MISSED,
    UNTOLD,
    RESTS,
    NOTICES,
    USES,
    RUN,
    "FLOWS",
    "STREAMS",
    JUMPS_RECEIVED,
    JUMPS_SENT,
];

/// Those maps of the loaded object that user space uses.
pub(super) struct CountMaps {
    slot_of: HashMap<MapData, AddrKey, u32>,
    served: PerCpuArray<MapData, Served>,
    origins: Trie<Origin>,
    probes: Trie<ProbeHead>,
    version: Array<MapData, u32>,
    missed: PerCpuArray<MapData, u64>,
    rests: Array<MapData, u32>,
    notices: RingBuf<MapData>,
    untold: PerCpuArray<MapData, u64>,
    uses: Array<MapData, SlotUse>,
    run: Array<MapData, Run>,
}

// === impl CountMaps ===

impl CountMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, WrongMap> {
        Ok(Self {
            slot_of: take(ebpf, SLOT_OF)?,
            served: take(ebpf, SERVED)?,
            origins: Trie::take(ebpf, ORIGINS)?,
            probes: Trie::take(ebpf, PROBES)?,
            version: take(ebpf, VERSION)?,
            missed: take(ebpf, MISSED)?,
            rests: take(ebpf, RESTS)?,
            notices: take(ebpf, NOTICES)?,
            untold: take(ebpf, UNTOLD)?,
            uses: take(ebpf, USES)?,
            run: take(ebpf, RUN)?,
        })
    }

    /// How many slots there are: pinned maps stay as large as they were made.
    pub(super) fn slots(&self) -> u32 {
        self.uses.len()
    }

    /// Of each slot whose it was and what it has counted, but for those that never counted.
    pub(super) fn known(&self) -> io::Result<Vec<Known<Served>>> {
        let mut known = Vec::new();
        for slot in 1..self.slots() {
            let SlotUse { target, base } = self.uses.get(&slot, 0).map_err(os_error)?;
            let counted = self.stats(Slot(slot))?;
            if target != 0 || counted != Served::default() {
                known.push((Slot(slot), (target != 0).then_some((target, base)), counted));
            }
        }
        Ok(known)
    }

    /// Since when is counted: since now, unless a process before has begun.
    pub(super) fn run(&mut self, new: Run) -> io::Result<Run> {
        let before = self.run.get(&0, 0).map_err(os_error)?;
        if before.began_ns != 0 {
            return Ok(before);
        }
        self.run.set(0, new, 0).map_err(os_error)?;
        Ok(new)
    }

    /// Tells the programs that addresses have been added or lead elsewhere, so that they look again whose connections are.
    pub(super) fn next_version(&mut self) -> io::Result<()> {
        let version = self.version.get(&0, 0).map_err(os_error)?;
        self.version.set(0, version.wrapping_add(1), 0).map_err(os_error)
    }

    /// Connections that the programs could not tag, ever.
    pub(super) fn missed(&self) -> io::Result<u64> {
        Ok(self.missed.get(&0, 0).map_err(os_error)?.iter().sum())
    }

    /// Notices that had no room, ever.
    pub(super) fn untold(&self) -> io::Result<u64> {
        Ok(self.untold.get(&0, 0).map_err(os_error)?.iter().sum())
    }

    /// Asks to be told when a slot has something to do.
    pub(super) fn rest(&mut self, slot: Slot) -> io::Result<()> {
        self.rests.set(slot.0, 1, 0).map_err(os_error)
    }

    pub(super) fn notices(&self) -> BorrowedFd<'_> {
        self.notices.as_fd()
    }

    /// The next notice that can be read.
    pub(super) fn next(&mut self) -> Option<Notice> {
        loop {
            let record = self.notices.next()?;
            if let Some(notice) = read(&record) {
                return Some(notice);
            }
        }
    }

    /// Makes the map of origins hold this. Says how many did not fit.
    pub(super) fn set_origins(&mut self, desired: &Prefixes<Origin>) -> io::Result<usize> {
        self.origins.set(desired)
    }

    /// The same for the map of probes.
    pub(super) fn set_probes(&mut self, desired: &Prefixes<ProbeHead>) -> io::Result<usize> {
        self.probes.set(desired)
    }
}

impl fmt::Debug for CountMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CountMaps").finish_non_exhaustive()
    }
}

impl Maps for CountMaps {
    type Counters = Served;

    fn set(&mut self, addr: SocketAddr, slot: Slot) -> io::Result<()> {
        self.slot_of.insert(AddrKey::new(addr), slot.0, 0).map_err(os_error)
    }

    fn remove(&mut self, addr: SocketAddr) -> io::Result<()> {
        gone(self.slot_of.remove(&AddrKey::new(addr)))
    }

    fn read(&self) -> io::Result<Table> {
        let entries = self.slot_of.iter();
        entries.map(|entry| entry.map(|(key, slot)| (key.socket_addr(), Slot(slot))).map_err(os_error)).collect()
    }

    fn stats(&self, slot: Slot) -> io::Result<Served> {
        Ok(Served::sum(self.served.get(&slot.0, 0).map_err(os_error)?.iter()))
    }

    fn wait_for_programs(&self) -> io::Result<()> {
        syscall::wait_for_programs()
    }

    fn note(&mut self, slot: Slot, used: Option<(u64, &Served)>) -> io::Result<()> {
        let used = used.map_or_else(SlotUse::default, |(target, base)| SlotUse { target, base: *base });
        self.uses.set(slot.0, used, 0).map_err(os_error)
    }
}

/// Reads a record of the ring buffer, field by field.
fn read(record: &[u8]) -> Option<Notice> {
    let word = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let addr = offset_of!(Notice, addr);
    let addr_be = [word(addr)?, word(addr + 4)?, word(addr + 8)?, word(addr + 12)?];
    let port_be = u16::from_ne_bytes(record.get(addr + 16..addr + 18)?.try_into().ok()?);
    Some(Notice {
        at_ns: u64::from_ne_bytes(record.get(..8)?.try_into().ok()?),
        subject: word(offset_of!(Notice, subject))?,
        slot: word(offset_of!(Notice, slot))?,
        addr: AddrKey::v6(addr_be, port_be),
        reserved: 0,
    })
}
