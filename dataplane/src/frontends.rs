//! The maps by which programs know Services, which those that hold and those that steer have of their own: where clients
//! connect, what is said of the Service there, and the agent's last sign of life.

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData},
};
use interceptor_common::{
    AddrKey,
    hold::{HEARTBEAT_NS, ServiceSlot},
};
use interceptor_core::frontends::{Room, Table, Write, plan};

use crate::maps::{WrongMap, gone, os_error, take};

/// How much the maps have room for: half of what they hold, so that what is new can be added before what is old goes.
pub const ROOM: Room = Room { frontends: 65_536, services: 65_536 };

/// All maps of an object that this is about.
pub(crate) const NAMES: [&str; 3] = [FRONTENDS, SERVICES, ALIVE];

const FRONTENDS: &str = "FRONTENDS";
const SERVICES: &str = "SERVICES";
const ALIVE: &str = "ALIVE";

/// What is said of a Service, as its slot has it.
pub(crate) trait Say: Copy + PartialEq {
    fn slot(self) -> ServiceSlot;

    /// `None` if nothing is said.
    fn read(slot: ServiceSlot) -> Option<Self>;
}

/// The maps, and what they were left with.
pub(crate) struct Frontends<S> {
    leads: HashMap<MapData, AddrKey, u32>,
    services: Array<MapData, ServiceSlot>,
    alive: Array<MapData, u64>,
    installed: Table<S>,
    /// What they were to hold when the last sync failed halfway.
    behind: Option<Table<S>>,
}

// === impl Frontends ===

impl<S: Say> Frontends<S> {
    /// Takes them, with what a process before has left in them.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, WrongMap> {
        let mut maps = Self {
            leads: take(ebpf, FRONTENDS)?,
            services: take(ebpf, SERVICES)?,
            alive: take(ebpf, ALIVE)?,
            installed: Table::default(),
            behind: None,
        };
        maps.installed = maps.read(&Table::default()).map_err(|error| WrongMap::unread(FRONTENDS, error))?;
        Ok(maps)
    }

    /// Gives the sign of life without which the programs leave everything alone.
    pub(crate) fn beat(&mut self, at: Duration) -> io::Result<()> {
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.alive.set(0, at, 0).map_err(os_error)
    }

    /// What the maps hold, if somebody has given a sign of life that still counts: nobody has mended what is older.
    pub(crate) fn alive(&self, now: Duration) -> io::Result<Option<&Table<S>>> {
        let last = Duration::from_nanos(self.alive.get(&0, 0).map_err(os_error)?);
        let is_alive = now.saturating_sub(last) <= Duration::from_nanos(HEARTBEAT_NS);
        Ok(is_alive.then_some(&self.installed))
    }

    /// Makes the maps hold `desired`: how many writes that took.
    pub(crate) fn sync(&mut self, desired: &Table<S>) -> io::Result<usize> {
        let written = self.approach(desired);
        self.behind = written.is_err().then(|| desired.clone());
        written
    }

    /// Reads back what the maps hold and mends what differs from what the last sync wanted, also if that failed halfway: how many entries
    /// did.
    pub(crate) fn repair(&mut self) -> io::Result<usize> {
        let known = std::mem::take(&mut self.installed);
        match self.read(&known) {
            Ok(found) => {
                self.installed = found;
                let desired = self.behind.take().unwrap_or(known);
                self.sync(&desired)
            }
            Err(error) => {
                self.installed = known;
                Err(error)
            }
        }
    }

    /// Writes what is missing, and notes what was written.
    fn approach(&mut self, desired: &Table<S>) -> io::Result<usize> {
        let writes = plan(desired, &self.installed);
        for write in &writes {
            self.write(*write)?;
            self.installed.note(*write);
        }
        Ok(writes.len())
    }

    /// One write, of which nothing is noted.
    pub(crate) fn write(&mut self, write: Write<S>) -> io::Result<()> {
        match write {
            Write::Say(service, said) => self.services.set(service, said.slot(), 0).map_err(os_error),
            Write::Off(service) => self.services.set(service, ServiceSlot::default(), 0).map_err(os_error),
            Write::Lead(addr, service) => self.leads.insert(AddrKey::new(addr), service, 0).map_err(os_error),
            Write::Forget(addr) => gone(self.leads.remove(&AddrKey::new(addr))),
        }
    }

    /// What the maps hold. Of the slots of Services only those are looked at that `known` names, or an address leads to: of
    /// the others nothing comes.
    fn read(&self, known: &Table<S>) -> io::Result<Table<S>> {
        let frontends = self.leads.iter().map(|entry| entry.map(|(key, service)| (key.socket_addr(), service)));
        let frontends: BTreeMap<SocketAddr, u32> = frontends.collect::<Result<_, _>>().map_err(os_error)?;
        let mut services = BTreeMap::new();
        for service in known.services.keys().chain(frontends.values()) {
            let slot = self.services.get(service, 0).map_err(os_error)?;
            if let Some(said) = S::read(slot) {
                services.insert(*service, said);
            }
        }
        Ok(Table { services, frontends })
    }
}
