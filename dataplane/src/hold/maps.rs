//! The hold programs' maps, typed.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
};
use interceptor_common::{
    AddrKey,
    hold::{self as abi, HoldStats, ServiceSlot},
};
use interceptor_core::{
    frontends::{Heat, Table, Write},
    holding::Flow,
};

use super::syn::Syn;
use crate::maps::WrongMap;

/// What a program saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// `CLOCK_MONOTONIC`.
    pub at: Duration,
    /// The device's index.
    pub device: u32,
    /// What it was.
    pub what: What,
}

/// What a program saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A first packet that is now held.
    Syn(Syn),
    /// A pod that was tried has refused, and the client was not told.
    Refused(Flow),
    /// A pod that was tried has answered.
    Taken(Flow),
}

pub(super) struct HoldMaps {
    frontends: HashMap<MapData, AddrKey, u32>,
    services: Array<MapData, ServiceSlot>,
    tried: HashMap<MapData, abi::Flow, u32>,
    seen: RingBuf<MapData>,
    alive: Array<MapData, u64>,
    stats: PerCpuArray<MapData, HoldStats>,
}

/// All maps of the object that are shared with it.
pub(super) const NAMES: [&str; 6] = ["FRONTENDS", "SERVICES", "TRIED", "SEEN", "ALIVE", "STATS"];

// === impl HoldMaps ===

impl HoldMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, WrongMap> {
        fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, WrongMap> {
            let map = ebpf.take_map(name).ok_or(WrongMap::new(name, None))?;
            map.try_into().map_err(|source| WrongMap::new(name, Some(source)))
        }
        Ok(Self {
            frontends: take(ebpf, "FRONTENDS")?,
            services: take(ebpf, "SERVICES")?,
            tried: take(ebpf, "TRIED")?,
            seen: take(ebpf, "SEEN")?,
            alive: take(ebpf, "ALIVE")?,
            stats: take(ebpf, "STATS")?,
        })
    }

    pub(super) fn seen(&self) -> &impl AsFd {
        &self.seen
    }

    /// The next record that can be read.
    pub(super) fn next(&mut self) -> Option<Sighting> {
        loop {
            let record = self.seen.next()?;
            if let Some(sighting) = Sighting::read(&record) {
                return Some(sighting);
            }
        }
    }

    pub(super) fn beat(&mut self, at: Duration) -> io::Result<()> {
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.alive.set(0, at, 0).map_err(os_error)
    }

    pub(super) fn write(&mut self, write: Write) -> io::Result<()> {
        match write {
            Write::Heat(service, heat) => self.heat(service, number(heat)),
            Write::Off(service) => self.heat(service, abi::Heat::OFF),
            Write::Lead(addr, service) => self.frontends.insert(AddrKey::new(addr), service, 0).map_err(os_error),
            Write::Forget(addr) => gone(self.frontends.remove(&AddrKey::new(addr))),
        }
    }

    fn heat(&mut self, service: u32, heat: u32) -> io::Result<()> {
        self.services.set(service, ServiceSlot { heat, reserved: 0 }, 0).map_err(os_error)
    }

    /// What the maps hold. Of the slots of Services only those are looked at that `known` names, or an address leads to: of
    /// the others nothing comes.
    pub(super) fn read(&self, known: &Table) -> io::Result<Table> {
        let frontends = self.frontends.iter().map(|entry| entry.map(|(key, service)| (key.socket_addr(), service)));
        let frontends: std::collections::BTreeMap<SocketAddr, u32> =
            frontends.collect::<Result<_, _>>().map_err(os_error)?;
        let mut services = std::collections::BTreeMap::new();
        for service in known.services.keys().chain(frontends.values()) {
            let slot = self.services.get(service, 0).map_err(os_error)?;
            if let Some(heat) = heat(slot.heat) {
                services.insert(*service, heat);
            }
        }
        Ok(Table { services, frontends })
    }

    pub(super) fn tried(&mut self, flow: &Flow) -> io::Result<()> {
        self.tried.insert(key(flow), 0, 0).map_err(os_error)
    }

    pub(super) fn untried(&mut self, flow: &Flow) -> io::Result<()> {
        gone(self.tried.remove(&key(flow)))
    }

    /// Forgets all connections that were tried.
    pub(super) fn nobody_tried(&mut self) -> io::Result<()> {
        let flows: Vec<_> = self.tried.keys().collect::<Result<_, _>>().map_err(os_error)?;
        flows.iter().try_for_each(|flow| gone(self.tried.remove(flow)))
    }

    pub(super) fn stats(&self) -> io::Result<HoldStats> {
        let shares = self.stats.get(&0, 0).map_err(os_error)?;
        Ok(shares.iter().fold(HoldStats::default(), |sum, share| {
            let HoldStats { held, untold, swallowed, taken } = *share;
            HoldStats {
                held: sum.held.wrapping_add(held),
                untold: sum.untold.wrapping_add(untold),
                swallowed: sum.swallowed.wrapping_add(swallowed),
                taken: sum.taken.wrapping_add(taken),
            }
        }))
    }
}

// === impl Sighting ===

impl Sighting {
    /// Reads a record of the ring buffer, field by field, as [`abi::Seen`] lays it out.
    fn read(record: &[u8]) -> Option<Self> {
        use std::mem::offset_of;
        let word = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
        let at = u64::from_ne_bytes(record.get(..8)?.try_into().ok()?);
        let length = usize::try_from(word(offset_of!(abi::Seen, length))?).ok()?;
        let packet = offset_of!(abi::Seen, packet);
        let flow = || {
            let key = |at: usize| {
                let addr_be = [word(at)?, word(at + 4)?, word(at + 8)?, word(at + 12)?];
                let port_be = u16::from_ne_bytes(record.get(at + 16..at + 18)?.try_into().ok()?);
                Some(AddrKey::v6(addr_be, port_be).socket_addr())
            };
            let at = offset_of!(abi::Seen, flow);
            Some(Flow { client: key(at)?, service: key(at + size_of::<AddrKey>())? })
        };
        let what = match word(offset_of!(abi::Seen, what))? {
            abi::What::SYN => What::Syn(Syn::read(record.get(packet..packet + length)?)?),
            abi::What::REFUSED => What::Refused(flow()?),
            abi::What::TAKEN => What::Taken(flow()?),
            _ => return None,
        };
        Some(Self { at: Duration::from_nanos(at), device: word(offset_of!(abi::Seen, device))?, what })
    }
}

fn key(flow: &Flow) -> abi::Flow {
    abi::Flow { client: AddrKey::new(flow.client), service: AddrKey::new(flow.service) }
}

fn number(heat: Heat) -> u32 {
    match heat {
        Heat::Cold => abi::Heat::COLD,
        Heat::Warm => abi::Heat::WARM,
    }
}

fn heat(number: u32) -> Option<Heat> {
    match number {
        abi::Heat::COLD => Some(Heat::Cold),
        abi::Heat::WARM => Some(Heat::Warm),
        _ => None,
    }
}

/// What is not there need not be removed.
fn gone(result: Result<(), MapError>) -> io::Result<()> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        result => result.map_err(os_error).or_else(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(()),
            _ => Err(error),
        }),
    }
}

/// The kernel's own error, if that is what it was.
pub(super) fn os_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}
