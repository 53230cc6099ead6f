//! The hold programs' maps, typed.

use std::{io, os::fd::AsFd, time::Duration};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf},
};
use interceptor_common::{
    AddrKey,
    hold::{self as abi, HoldStats, ServiceSlot},
};
use interceptor_core::{frontends::Heat, holding::Flow};

use super::syn::Syn;
use crate::{
    frontends::{self, Frontends, Say},
    maps::{WrongMap, gone, os_error, take},
};

/// What a program saw, or a rule of the node's packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// `CLOCK_MONOTONIC`.
    pub at: Duration,
    /// Whose connection it is.
    pub origin: Origin,
    /// What it was.
    pub what: What,
}

/// Where a client is, and so where its packets are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Behind the device of this index.
    Device(u32),
    /// In the node's own network.
    Node,
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
    pub(super) frontends: Frontends<Heat>,
    tried: HashMap<MapData, abi::Flow, u32>,
    withdrawn: HashMap<MapData, abi::Flow, u32>,
    seen: RingBuf<MapData>,
    stats: PerCpuArray<MapData, HoldStats>,
}

/// All maps of the object that are shared with it, besides those by which it knows Services.
const NAMES: [&str; 4] = ["TRIED", "WITHDRAWN", "SEEN", "STATS"];

/// All maps that are shared with the object.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    frontends::NAMES.into_iter().chain(NAMES)
}

// === impl HoldMaps ===

impl HoldMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, WrongMap> {
        Ok(Self {
            frontends: Frontends::take(ebpf)?,
            tried: take(ebpf, "TRIED")?,
            withdrawn: take(ebpf, "WITHDRAWN")?,
            seen: take(ebpf, "SEEN")?,
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

    pub(super) fn tried(&mut self, flow: &Flow) -> io::Result<()> {
        self.tried.insert(key(flow), 0, 0).map_err(os_error)
    }

    /// Forgets that a connection was tried; whether it was, and not answered yet.
    pub(super) fn untried(&mut self, flow: &Flow) -> io::Result<bool> {
        match self.tried.remove(&key(flow)) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => match os_error(error) {
                error if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                error => Err(error),
            },
        }
    }

    /// No answer to it goes on until [`let_go`](Self::let_go).
    pub(super) fn withdraw(&mut self, flow: &Flow) -> io::Result<()> {
        self.withdrawn.insert(key(flow), 0, 0).map_err(os_error)
    }

    pub(super) fn let_go(&mut self, flow: &Flow) -> io::Result<()> {
        gone(self.withdrawn.remove(&key(flow)))
    }

    /// Forgets all connections that were tried, and what was being done with them.
    pub(super) fn nobody_tried(&mut self) -> io::Result<()> {
        for map in [&mut self.tried, &mut self.withdrawn] {
            let flows: Vec<_> = map.keys().collect::<Result<_, _>>().map_err(os_error)?;
            flows.iter().try_for_each(|flow| gone(map.remove(flow)))?;
        }
        Ok(())
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
        let origin = Origin::Device(word(offset_of!(abi::Seen, device))?);
        Some(Self { at: Duration::from_nanos(at), origin, what })
    }
}

// === impl Heat ===

impl Say for Heat {
    fn slot(self) -> ServiceSlot {
        let heat = match self {
            Self::Cold => abi::Heat::COLD,
            Self::Warm => abi::Heat::WARM,
        };
        ServiceSlot { heat, port: 0 }
    }

    fn read(slot: ServiceSlot) -> Option<Self> {
        match slot.heat {
            abi::Heat::COLD => Some(Self::Cold),
            abi::Heat::WARM => Some(Self::Warm),
            _ => None,
        }
    }
}

fn key(flow: &Flow) -> abi::Flow {
    abi::Flow { client: AddrKey::new(flow.client), service: AddrKey::new(flow.service) }
}
