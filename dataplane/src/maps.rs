//! The kernel's maps, typed.

use std::{fmt, io, net::SocketAddr};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
};
use interceptor_common::{AddrKey, Stats};
use interceptor_core::mapops::{Slot, Table};

use crate::{ledger::Maps, syscall};

pub(crate) const UPSTREAM_OF: &str = "UPSTREAM_OF";
pub(crate) const STATS: &str = "STATS";
const MISSED: &str = "MISSED";

/// Those maps of the loaded object that user space uses.
pub(crate) struct KernelMaps {
    address_map_id: Option<u32>,
    upstream_of: HashMap<MapData, AddrKey, u32>,
    stats: PerCpuArray<MapData, Stats>,
    missed: PerCpuArray<MapData, u64>,
}

/// The object is not the one that this crate was written for.
#[derive(Debug, thiserror::Error)]
#[error("the object's map {name} is not as expected")]
pub(crate) struct WrongMap {
    name: &'static str,
    source: Option<MapError>,
}

// === impl WrongMap ===

impl WrongMap {
    pub(crate) fn new(name: &'static str, source: Option<MapError>) -> Self {
        Self { name, source }
    }

    /// What it holds cannot be read.
    pub(crate) fn unread(name: &'static str, error: io::Error) -> Self {
        Self::new(name, Some(MapError::IoError(error)))
    }
}

/// Takes a map of the object, typed.
pub(crate) fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, WrongMap> {
    let map = ebpf.take_map(name).ok_or(WrongMap::new(name, None))?;
    map.try_into().map_err(|source| WrongMap::new(name, Some(source)))
}

// === impl KernelMaps ===

impl KernelMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, WrongMap> {
        let address_map_id = match ebpf.map(UPSTREAM_OF) {
            Some(Map::HashMap(data)) => data.info().ok().map(|info| info.id()),
            _ => None,
        };
        Ok(Self {
            address_map_id,
            upstream_of: take(ebpf, UPSTREAM_OF)?,
            stats: take(ebpf, STATS)?,
            missed: take(ebpf, MISSED)?,
        })
    }

    pub(crate) fn address_map_id(&self) -> Option<u32> {
        self.address_map_id
    }

    /// Connections that the programs could not tag, ever.
    pub(crate) fn missed(&self) -> io::Result<u64> {
        Ok(self.missed.get(&0, 0).map_err(os_error)?.iter().sum())
    }
}

impl fmt::Debug for KernelMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelMaps").finish_non_exhaustive()
    }
}

impl Maps for KernelMaps {
    type Counters = Stats;

    fn set(&mut self, addr: SocketAddr, slot: Slot) -> io::Result<()> {
        self.upstream_of.insert(AddrKey::new(addr), slot.0, 0).map_err(os_error)
    }

    fn remove(&mut self, addr: SocketAddr) -> io::Result<()> {
        gone(self.upstream_of.remove(&AddrKey::new(addr)))
    }

    fn read(&self) -> io::Result<Table> {
        let entries = self.upstream_of.iter();
        entries.map(|entry| entry.map(|(key, slot)| (key.socket_addr(), Slot(slot))).map_err(os_error)).collect()
    }

    fn stats(&self, slot: Slot) -> io::Result<Stats> {
        Ok(Stats::sum(self.stats.get(&slot.0, 0).map_err(os_error)?.iter()))
    }

    fn wait_for_programs(&self) -> io::Result<()> {
        syscall::wait_for_programs()
    }
}

/// What is not there need not be removed.
pub(crate) fn gone(result: Result<(), MapError>) -> io::Result<()> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        result => result.map_err(os_error).or_else(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(()),
            _ => Err(error),
        }),
    }
}

/// The kernel's own error, if that is what it was.
pub(crate) fn os_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}
