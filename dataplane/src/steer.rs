//! Steering in the kernel: loads the programs, puts them on the cgroups above pods, and keeps their maps in step.
//!
//! ```text
//! Steer::open ─► load, take over what is pinned ─► Steer::sync (Services), Steer::interceptors ─► Steer::attach
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{Ebpf, EbpfError, programs::ProgramError};
use interceptor_core::frontends::{Table, Write};

pub use interceptor_common::steer::SteerStats;

use crate::{
    frontends,
    loading::{loader, monotonic, read_object},
    maps::WrongMap,
    object,
    open::words,
    pins::{self, Folder, Pinned},
    pods::Found,
    probe::{self, ProbeError},
    syscall,
};

mod attached;
mod maps;

use self::{
    attached::{Links, Programs},
    maps::SteerMaps,
};

/// Below where bpffs is mounted; the number changes with the maps' layout, which programs of two versions must not share.
const PINS: &str = "rouse/steer-1";

/// The steering of this node.
pub struct Steer {
    maps: SteerMaps,
    programs: Programs,
    /// By the cgroup's id.
    attached: BTreeMap<u64, Links>,
    pins: Folder,
    /// Those maps that are pinned.
    maps_at_pins: Vec<Pinned>,
    ebpf: Ebpf,
}

/// What steering leads to at a Service's addresses: this port of interceptors.
pub type Ports = Table<NonZeroU16>;

/// Connections cannot be steered, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SteerError(String);

/// Why, by step.
#[derive(Debug, thiserror::Error)]
enum Unavailable {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("cannot load the programs that steer")]
    Object(#[source] Box<EbpfError>),
    #[error(transparent)]
    Map(#[from] WrongMap),
    #[error("cannot load program {name}")]
    Load { name: &'static str, source: Box<ProgramError> },
}

/// The interceptors that connections are steered to, and those that are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Those that take connections.
    pub addresses: Vec<IpAddr>,
    /// How many more there are.
    pub left_out: usize,
}

// === impl Steer ===

impl Steer {
    /// Loads the programs and attaches none. Where bpffs is given, maps and links are pinned there and outlive this process, and
    /// those of one before are taken over: its links have these programs from now on. No sign of life is given.
    pub fn open(bpffs: Option<&Path>) -> Result<Self, SteerError> {
        Self::start(bpffs).map_err(|error| SteerError(words(&error)))
    }

    /// Takes away what an agent before has left pinned.
    pub fn remove(bpffs: Option<&Path>) -> io::Result<()> {
        bpffs.map_or(Ok(()), |bpffs| pins::remove(bpffs, PINS))
    }

    /// Why what is steered will end with this process, if so.
    pub fn not_pinned(&self) -> Option<&str> {
        self.pins.why_not()
    }

    fn start(bpffs: Option<&Path>) -> Result<Self, Unavailable> {
        let object = object::STEER.ok_or(ProbeError::NoObject)?;
        probe::probe()?;
        let pins = Folder::open(bpffs, PINS);
        let mut ebpf = read_object(|| loader(names(), pins.path()).load(object))
            .map_err(|error| Unavailable::Object(Box::new(error)))?;
        let maps_at_pins = pins.hold(names());
        let maps = SteerMaps::take(&mut ebpf)?;
        let programs =
            Programs::load(&mut ebpf).map_err(|(name, error)| Unavailable::Load { name, source: Box::new(error) })?;
        let mut steer = Self { maps, programs, attached: BTreeMap::new(), pins, maps_at_pins, ebpf };
        if let Some(pins) = steer.pins.path() {
            steer.attached = attached::taken_over(&steer.ebpf, pins);
        }
        Ok(steer)
    }

    /// Gives the sign of life without which the programs leave everything alone.
    pub fn beat(&mut self) -> io::Result<()> {
        self.beat_as_of(monotonic())
    }

    /// The same, at another time: for tests.
    pub fn beat_as_of(&mut self, at: Duration) -> io::Result<()> {
        self.maps.frontends.beat(at)
    }

    /// Addresses that are steered as the maps have it; `None` if no sign of life of an agent's counts any more.
    pub fn steered(&self) -> io::Result<Option<BTreeSet<SocketAddr>>> {
        let left = self.maps.frontends.alive(monotonic())?;
        Ok(left.map(|table| table.frontends.keys().copied().collect()))
    }

    /// Makes the maps lead to these ports of interceptors at these addresses, and at no others.
    pub fn sync(&mut self, desired: &Ports) -> io::Result<usize> {
        self.maps.frontends.sync(desired)
    }

    /// Spreads connections over these interceptors, of which as many are taken as there is room for.
    pub fn interceptors(&mut self, addresses: &BTreeSet<IpAddr>) -> io::Result<Listed> {
        self.maps.interceptors(addresses)
    }

    /// Leaves alone what processes in these cgroups connect to: how many there was no room for.
    pub fn leave_out(&mut self, cgroups: &[PathBuf]) -> io::Result<usize> {
        // One that has gone has nobody in it.
        self.maps.leave_out(&cgroups.iter().filter_map(|path| id(path).ok()).collect())
    }

    /// Reads back what the maps hold and mends what differs from what was last put into them: how many entries did.
    pub fn repair(&mut self) -> io::Result<usize> {
        self.pin_again();
        Ok(self.maps.frontends.repair()? + self.maps.repair()?)
    }

    /// Whatever somebody has taken the pins of is still there, for this process holds it.
    fn pin_again(&mut self) {
        self.pins.again();
        if self.pins.path().is_some() {
            let links = self.attached.values().map(Links::pin_again);
            pins::tell(links.chain([pins::again(&self.maps_at_pins)]).sum());
        }
    }

    /// Puts the programs on these cgroups and takes them off all others; those that refuse them, and why.
    pub fn attach(&mut self, cgroups: &[PathBuf]) -> Vec<(PathBuf, String)> {
        let mut refused = Vec::new();
        let mut wanted = BTreeMap::new();
        for path in cgroups {
            match id(path) {
                Ok(id) => _ = wanted.insert(id, path),
                Err(error) => refused.push((path.clone(), error.to_string())),
            }
        }
        for (_, links) in self.attached.extract_if(.., |id, _| !wanted.contains_key(id)) {
            links.detach();
        }
        for (id, path) in wanted {
            if self.attached.contains_key(&id) {
                continue;
            }
            match Links::new(&mut self.ebpf, path, self.pins.path().map(|pins| attached::pins(pins, id))) {
                Ok(links) => _ = self.attached.insert(id, links),
                Err(error) => refused.push((path.clone(), words(&error))),
            }
        }
        self.pins.be_alone();
        refused
    }

    /// On how many cgroups the programs are.
    pub fn attached(&self) -> usize {
        self.attached.len()
    }

    /// How many programs of others run when a process in a cgroup connects: one that translates Services' addresses does it
    /// there.
    pub fn others(&self, cgroup: &Path) -> io::Result<usize> {
        let ids = syscall::connect_programs_of(fs::File::open(cgroup)?.as_fd())?;
        Ok(ids.iter().filter(|id| !self.programs.ids().contains(id)).count())
    }

    /// Takes one address out of the map and puts another in, as somebody else might: for tests.
    pub fn tamper(&mut self, gone: SocketAddr, foreign: SocketAddr) -> io::Result<()> {
        self.maps.frontends.write(Write::Lead(foreign, 0))?;
        self.maps.frontends.write(Write::Forget(gone))
    }

    /// What the programs did, ever.
    pub fn stats(&self) -> io::Result<SteerStats> {
        self.maps.stats()
    }
}

impl std::fmt::Debug for Steer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steer").field("attached", &self.attached.len()).finish_non_exhaustive()
    }
}

/// Where programs see what all pods connect to: the cgroup above pods that the kubelet has made, or the root of all that was
/// looked at. Of several kubelets on a machine it is the one whose pod this process is, or all if it is none's.
pub fn above_pods(root: &Path, found: &Found) -> Vec<PathBuf> {
    let mut kubelets = found.kubelets();
    if kubelets.is_empty() {
        return vec![root.to_owned()];
    }
    if kubelets.len() > 1
        && let Some(own) = found.pod_of(std::process::id())
    {
        kubelets.retain(|kubelet| own.starts_with(kubelet));
    }
    kubelets
}

fn names() -> impl Iterator<Item = &'static str> {
    frontends::NAMES.into_iter().chain(maps::NAMES)
}

/// A cgroup's id, which no other has before the next start of the machine.
fn id(cgroup: &Path) -> io::Result<u64> {
    Ok(fs::metadata(cgroup)?.ino())
}
