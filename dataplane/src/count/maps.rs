//! The kernel's maps of the programs that count, typed.

use std::{collections::BTreeMap, fmt, io, net::SocketAddr};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, MapData, MapError, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use interceptor_common::{AddrKey, Origin, Served};
use interceptor_core::mapops::{Slot, Table};

use crate::{
    ledger::Maps,
    maps::{WrongMap, os_error},
    syscall,
};

pub(super) const SLOT_OF: &str = "SLOT_OF";
pub(super) const SERVED: &str = "SERVED";
const ORIGINS: &str = "ORIGINS";
const VERSION: &str = "VERSION";
const MISSED: &str = "MISSED";

/// What is in the map of origins: each key with its bits, and what it means.
pub(super) type OriginTable = BTreeMap<(u32, [u8; 4], [u8; 16]), u32>;

/// Those maps of the loaded object that user space uses.
pub(super) struct CountMaps {
    slot_of: HashMap<MapData, AddrKey, u32>,
    served: PerCpuArray<MapData, Served>,
    origins: LpmTrie<MapData, Origin, u32>,
    version: Array<MapData, u32>,
    missed: PerCpuArray<MapData, u64>,
    installed: OriginTable,
}

// === impl CountMaps ===

impl CountMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, WrongMap> {
        let mut take = |name| ebpf.take_map(name).ok_or(WrongMap::new(name, None));
        let wrong = |name| move |source| WrongMap::new(name, Some(source));
        Ok(Self {
            slot_of: take(SLOT_OF)?.try_into().map_err(wrong(SLOT_OF))?,
            served: take(SERVED)?.try_into().map_err(wrong(SERVED))?,
            origins: take(ORIGINS)?.try_into().map_err(wrong(ORIGINS))?,
            version: take(VERSION)?.try_into().map_err(wrong(VERSION))?,
            missed: take(MISSED)?.try_into().map_err(wrong(MISSED))?,
            installed: OriginTable::new(),
        })
    }

    /// Tells the programs that addresses have been added, so that they look again at connections that were none of ours.
    pub(super) fn next_version(&mut self) -> io::Result<()> {
        let version = self.version.get(&0, 0).map_err(os_error)?;
        self.version.set(0, version.wrapping_add(1), 0).map_err(os_error)
    }

    /// Connections that the programs could not tag, ever.
    pub(super) fn missed(&self) -> io::Result<u64> {
        Ok(self.missed.get(&0, 0).map_err(os_error)?.iter().sum())
    }

    /// Makes the map of origins hold this, adding before removing. Says how many did not fit.
    pub(super) fn set_origins(&mut self, desired: &OriginTable) -> io::Result<usize> {
        let key = |(bits, slot, addr): &(u32, [u8; 4], [u8; 16])| Key::new(*bits, Origin { slot: *slot, addr: *addr });
        let mut refused = 0;
        for (entry, meaning) in desired {
            if self.installed.get(entry) == Some(meaning) {
                continue;
            }
            match self.origins.insert(&key(entry), meaning, 0).map_err(os_error) {
                Ok(()) => _ = self.installed.insert(*entry, *meaning),
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::E2BIG | libc::ENOMEM)) => {
                    refused += 1;
                }
                Err(error) => return Err(error),
            }
        }
        let gone: Vec<_> = self.installed.keys().filter(|entry| !desired.contains_key(*entry)).copied().collect();
        for entry in gone {
            match self.origins.remove(&key(&entry)).map_err(os_error) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => _ = self.installed.remove(&entry),
            }
        }
        Ok(refused)
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
        match self.slot_of.remove(&AddrKey::new(addr)) {
            Err(MapError::KeyNotFound) => Ok(()),
            result => result.map_err(os_error).or_else(|error| match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(()),
                _ => Err(error),
            }),
        }
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
}
