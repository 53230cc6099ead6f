//! Counting at level `node`: three programs on the cgroup of every pod of this node that a direct route leads to.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    hash::{BuildHasher as _, RandomState},
    io, mem,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aya::{
    Ebpf, EbpfError,
    programs::{CgroupSkb, ProgramError, TestRun as _, TestRunOptions},
    util::nr_cpus,
};
use imbl::{OrdMap, ordmap::DiffItem};
use interceptor_common::{Run, Subject};
use interceptor_core::{Upstream, UpstreamId, direct::Pod, mapops::Slot};

use crate::{
    Direction, LeftOut, Limits, RepairReport, SyncError, SyncReport,
    ledger::Ledger,
    loading::{loader, monotonic, read_object},
    object,
    pins::{self, Folder, Pinned},
    pods,
    probe::{self, ProbeError},
    wake::Arrivals,
};

mod attached;
mod follow;
mod leaving;
mod maps;
mod meter;
mod origins;

use self::{
    attached::{Attached, Programs},
    leaving::Leaving,
    maps::CountMaps,
};
pub use interceptor_common::Served;

pub use self::{
    follow::Followed,
    meter::{Load, Meter},
    origins::{Origins, Refused},
};

/// Below where bpffs is mounted; the number changes with the maps' layout, which programs of two versions must not share.
const PINS: &str = "rouse/count-1";

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct CountConfig {
    /// This node's name, as EndpointSlices have it: other nodes' pods are not ours to count.
    pub node: String,
    /// Where pods' cgroups are looked for; where cgroup v2 is mounted if it is not given.
    pub cgroup_root: Option<PathBuf>,
    /// Where bpffs is mounted, if what the kernel counts is to outlive this process.
    pub bpffs: Option<PathBuf>,
    /// How many addresses and slots; by the number of CPUs if it is not given.
    pub limits: Option<Limits>,
}

/// What the programs have told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A socket of a counted pod has begun to listen there; an unspecified address is any of the pod's.
    Listens {
        /// Where.
        addr: SocketAddr,
        /// When, `CLOCK_MONOTONIC`.
        at: Duration,
    },
    /// The pods of an upstream that was said to [rest](Count::rest) have something to do.
    Busy(UpstreamId),
}

/// Counts for the pods of this node. All of it ends with this process, unless it is pinned.
pub struct Count {
    node: String,
    root: PathBuf,
    ledger: Ledger<Served>,
    maps: CountMaps,
    programs: Programs,
    pods: BTreeMap<UpstreamId, Pods>,
    /// Pods that are ours to count, by UID, with the upstreams that list them.
    wanted: BTreeMap<Arc<str>, HashSet<UpstreamId>>,
    attached: BTreeMap<Arc<str>, Attached>,
    /// Those that are not ours any more, or have gone, and whose sockets may still end.
    leaving: Leaving,
    /// Pods whose cgroups refuse the programs, and why; tried again at each look.
    refused: BTreeMap<Arc<str>, String>,
    missed: u64,
    said: Vec<LeftOut>,
    run: Run,
    pins: Folder,
    /// Those maps that are pinned.
    maps_at_pins: Vec<Pinned>,
    /// Whether the pods that there are have been looked for.
    followed: bool,
    /// Whether others are wanted since then.
    other: bool,
    ebpf: Ebpf,
}

/// Pods of an upstream: all, and those of this node.
#[derive(Debug, Default)]
struct Pods {
    all: OrdMap<SocketAddr, Pod>,
    here: OrdMap<SocketAddr, Pod>,
}

/// Why pods can't be counted on this node, by step.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// This process may not, or the kernel can't.
    #[error("{0}")]
    Probe(String),
    /// There are no cgroups to look at.
    #[error("the pods' cgroups {path} cannot be looked at")]
    Tree {
        /// Where they were looked for.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
    /// The programs are not accepted.
    #[error("cannot load the programs that count")]
    Object(#[source] Box<EbpfError>),
    /// One program is not accepted.
    #[error("cannot load program {name}{lacks}")]
    Load {
        /// Which.
        name: &'static str,
        /// What may be the reason.
        lacks: &'static str,
        /// The verifier's words.
        source: Box<ProgramError>,
    },
    /// The object is not the one that this was written for.
    #[error("{0}")]
    Map(String),
}

// === impl Count ===

impl Count {
    /// Probes and loads. Nothing is attached yet.
    pub fn open(config: CountConfig) -> Result<Self, CountError> {
        let CountConfig { node, cgroup_root, bpffs, limits } = config;
        let object = object::COUNT.ok_or_else(|| CountError::Probe(ProbeError::NoObject.to_string()))?;
        let probed = probe::probe().map_err(|error| CountError::Probe(error.to_string()))?;
        let failed = |source| CountError::Tree { path: cgroup_root.clone().unwrap_or_default(), source };
        let root = pods::root(cgroup_root.as_deref()).map_err(failed)?;
        let limits = limits.unwrap_or_else(|| Limits::of::<Served>(nr_cpus().unwrap_or(1)));
        let pins = Folder::open(bpffs.as_deref(), PINS);
        let mut ebpf = create(object, limits, pins.path()).map_err(CountError::Object)?;
        let maps_at_pins = pins.hold(maps::PINNED.into_iter());
        let mut maps = CountMaps::take(&mut ebpf).map_err(|error| CountError::Map(error.to_string()))?;
        let unread = |error: io::Error| CountError::Map(format!("what was counted before cannot be read: {error}"));
        let limits = Limits { slots: maps.slots(), ..limits };
        let known = maps.known().map_err(unread)?;
        let ledger = Ledger::inherit(limits, &maps, known).map_err(|error| CountError::Map(error.to_string()))?;
        let run = maps.run(Run { began_ns: nanos(monotonic()), nonce: RandomState::new().hash_one(()) });
        let run = run.map_err(unread)?;
        let programs = Programs::load(&mut ebpf, probed)?;
        Ok(Self {
            node,
            root,
            ledger,
            maps,
            programs,
            pods: BTreeMap::new(),
            wanted: BTreeMap::new(),
            attached: BTreeMap::new(),
            leaving: Leaving::default(),
            refused: BTreeMap::new(),
            missed: 0,
            said: Vec::new(),
            run,
            followed: false,
            other: true,
            pins,
            maps_at_pins,
            ebpf,
        })
    }

    /// Takes away what a process before has left pinned.
    pub fn remove(bpffs: Option<&Path>) -> io::Result<()> {
        bpffs.map_or(Ok(()), |bpffs| pins::remove(bpffs, PINS))
    }

    /// Why what is counted will end with this process, if so.
    pub fn not_pinned(&self) -> Option<&str> {
        self.pins.why_not()
    }

    /// Names what is counted, and tells for how long: where it is pinned, a process goes on with what the one before it has
    /// counted, and so with its name.
    pub fn run(&self) -> (String, Duration) {
        let Run { began_ns, nonce } = self.run;
        (format!("{began_ns:x}-{nonce:x}"), monotonic().saturating_sub(Duration::from_nanos(began_ns)))
    }

    /// Below which folder pods' cgroups are looked for.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pods that are counted.
    pub fn pods(&self) -> impl Iterator<Item = &str> {
        self.attached.keys().map(AsRef::as_ref)
    }

    /// Pods that should be counted and are not, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &str)> {
        self.refused.iter().map(|(uid, why)| (uid.as_ref(), why.as_str()))
    }

    /// Connections that the kernel had no memory for, ever.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Tells when [`told`](Self::told) has something to tell.
    pub fn arrivals(&self) -> io::Result<Arrivals> {
        Arrivals::of([self.maps.notices()])
    }

    /// What the programs have told next.
    pub fn told(&mut self) -> Option<Told> {
        loop {
            let notice = self.maps.next()?;
            match notice.subject {
                Subject::LISTENS => {
                    let at = Duration::from_nanos(notice.at_ns);
                    return Some(Told::Listens { addr: notice.addr.socket_addr(), at });
                }
                Subject::BUSY => {
                    // One that has gone since has nothing to do.
                    if let Some(upstream) = self.ledger.upstream(Slot(notice.slot)) {
                        return Some(Told::Busy(upstream));
                    }
                }
                _ => {}
            }
        }
    }

    /// Asks to be told, once, when pods of an upstream have something to do. What began before this was called is not told.
    pub fn rest(&mut self, upstream: UpstreamId) -> io::Result<()> {
        self.ledger.slot(upstream).map_or(Ok(()), |slot| self.maps.rest(slot))
    }

    /// What the programs could not tell because there was no room, ever.
    pub fn untold(&self) -> u64 {
        self.maps.untold().unwrap_or_default()
    }

    /// Whether the program that sees segments of a direction lets one pass, as it has to with any: for tests.
    pub fn passes(&mut self, direction: Direction, packet: &[u8]) -> io::Result<bool> {
        let name = match direction {
            Direction::In => attached::RECEIVED,
            Direction::Out => attached::SENT,
        };
        let program = self.ebpf.program(name).ok_or_else(|| io::Error::other("the object has no such program"))?;
        let program: &CgroupSkb = program.try_into().map_err(io::Error::other)?;
        let options = TestRunOptions { data_in: Some(packet), repeat: 1, ..Default::default() };
        Ok(program.test_run(options).map_err(io::Error::other)?.return_value == 1)
    }

    /// Why requests of HTTP/2 are not counted, if so: without `CAP_PERFMON` the verifier follows what a processor might do after a
    /// wrong guess, and finds the programs for it too much; and kernels before 5.17 have no loop that they could use.
    pub fn without_http2(&self) -> Option<&str> {
        self.programs.without_streams()
    }

    /// The kernel's ids of the programs, as `bpftool prog` shows them, by name.
    pub fn program_ids(&self) -> Vec<(&'static str, u32)> {
        self.programs.ids()
    }

    /// Whether other pods are wanted than when [`follow`](Self::follow) looked for them.
    pub fn wants_others(&self) -> bool {
        self.other
    }

    /// Whether an upstream's requests are counted, or would be if it had a pod here.
    pub fn counts(&self, upstream: UpstreamId) -> bool {
        self.ledger.slot(upstream).is_some()
    }

    /// Counts for the direct ones of these upstreams and no others.
    pub fn sync(&mut self, upstreams: &mut dyn Iterator<Item = &Arc<Upstream>>) -> Result<SyncReport, SyncError> {
        let mut wanted: BTreeMap<Arc<str>, HashSet<UpstreamId>> = BTreeMap::new();
        let mut ours = Vec::new();
        let mut before = mem::take(&mut self.pods);
        for upstream in upstreams {
            let Some(direct) = &upstream.direct else { continue };
            let mut pods = before.remove(&upstream.id).unwrap_or_default();
            pods.update(&direct.pods, &self.node);
            for uid in pods.here.values().filter_map(|pod| pod.uid.as_ref()) {
                wanted.entry(Arc::clone(uid)).or_default().insert(upstream.id);
            }
            let endpoints = pods.here.keys().map(|addr| (*addr, None)).collect();
            ours.push(Arc::new(Upstream { endpoints, ..Upstream::clone(upstream) }));
            self.pods.insert(upstream.id, pods);
        }
        let listed: HashSet<_> = ours.iter().map(|upstream| upstream.id).collect();
        // A pod that no slice lists any more may still be answering; it is counted until its cgroup goes.
        let gone = self.attached.extract_if(.., |uid, attached| {
            if let Some(upstreams) = wanted.get(uid) {
                attached.upstreams.clone_from(upstreams);
            }
            !attached.upstreams.iter().any(|id| listed.contains(id))
        });
        let now = monotonic();
        gone.for_each(|(uid, attached)| self.leaving.add(uid, attached, now));
        self.other |= self.wanted != wanted;
        self.wanted = wanted;
        self.refused.retain(|uid, _| self.wanted.contains_key(uid));
        let report = self.ledger.sync(&mut self.maps, &mut ours.iter());
        for attached in self.attached.values_mut() {
            attached.slots.extend(attached.upstreams.iter().filter_map(|id| self.ledger.slot(*id)));
        }
        let report = report?;
        if report.added + report.replaced > 0 {
            self.maps.next_version().map_err(SyncError::Read)?;
        }
        if report.left_out != self.said {
            for LeftOut { upstream: _, target, why } in report.left_out.iter().take(10) {
                tracing::warn!(service = %target.service, port = %target.port, why, "the kernel does not count this route's pods");
            }
            self.said.clone_from(&report.left_out);
        }
        Ok(report)
    }

    /// Reads back what the kernel has and mends it. To be called every few seconds.
    pub fn repair(&mut self) -> Result<RepairReport, SyncError> {
        let report = self.ledger.repair(&mut self.maps)?;
        if report.drifted() {
            self.maps.next_version().map_err(SyncError::Read)?;
        }
        let missed = self.maps.missed().map_err(SyncError::Counters)?;
        if missed > self.missed {
            tracing::warn!(connections = missed - self.missed, "the kernel had no memory to count these connections");
            self.missed = missed;
        }
        self.settle()?;
        Ok(report)
    }

    /// Whose connections are left out, and which addresses are this machine's own.
    pub fn set_origins(&mut self, origins: &Origins) -> io::Result<Refused> {
        let Self { ledger, pods, maps, .. } = self;
        let here = |upstream| pods.get(&upstream).into_iter().flat_map(|pods| pods.here.keys().copied());
        let probes = maps.set_probes(&origins.heads(here))?;
        let slot_of = |upstream| ledger.slot(upstream).map(|slot| slot.0);
        Ok(Refused { origins: maps.set_origins(&origins.entries(slot_of))?, probes })
    }

    /// The counters of every upstream that ever had a pod here, and when they were read, `CLOCK_MONOTONIC` in nanoseconds.
    pub fn counters(&self) -> (u64, Vec<(UpstreamId, Served)>) {
        let now = nanos(monotonic());
        let read = self.ledger.counters(&self.maps).into_iter();
        let counters = read.filter_map(|(id, served)| match served {
            Ok(served) => Some((id, served)),
            Err(error) => {
                tracing::warn!(upstream = id.0, %error, "the kernel's counters cannot be read");
                None
            }
        });
        (now, counters.collect())
    }
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Count")
            .field("root", &self.root)
            .field("attached", &self.attached.len())
            .finish_non_exhaustive()
    }
}

// === impl Pods ===

impl Pods {
    /// Takes in what has changed.
    fn update(&mut self, all: &OrdMap<SocketAddr, Pod>, node: &str) {
        for change in self.all.diff(all) {
            match change {
                DiffItem::Add(addr, pod) | DiffItem::Update { new: (addr, pod), .. } if pod.is_on(node) => {
                    self.here.insert(*addr, pod.clone());
                }
                DiffItem::Add(addr, _) | DiffItem::Remove(addr, _) | DiffItem::Update { new: (addr, _), .. } => {
                    self.here.remove(addr);
                }
            }
        }
        self.all.clone_from(all);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn create(object: &[u8], limits: Limits, pins: Option<&Path>) -> Result<Ebpf, Box<EbpfError>> {
    read_object(|| {
        loader(maps::PINNED.into_iter(), pins)
            .map_max_entries(maps::SLOT_OF, limits.addresses.saturating_mul(2).max(2))
            .map_max_entries(maps::SERVED, limits.slots.max(1))
            .map_max_entries(maps::RESTS, limits.slots.max(1))
            .map_max_entries(maps::USES, limits.slots.max(1))
            .load(object)
            .map_err(Box::new)
    })
}

/// An address of a network as [`Network`] has it.
pub(crate) fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}
