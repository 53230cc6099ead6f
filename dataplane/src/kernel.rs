//! The data plane in the kernel, level `self`: loads the programs, attaches them to one cgroup and keeps them fed. All of
//! it ends with this process, for nothing is pinned.

use std::{os::fd::AsFd as _, path::Path, sync::Arc, time::Duration};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{CgroupAttachMode, ProgramError, SockOps, sock_ops::SockOpsLink},
    util::nr_cpus,
};
use interceptor_common::Stats;
use interceptor_core::{Upstream, UpstreamId};

use crate::{
    ConnectionCounters, Dataplane, LeftOut, Level, Logs, Mode, OpenError, RepairReport, SyncError, SyncReport,
    cgroup::{self, Cgroup, CgroupError},
    ledger::{Ledger, Limits},
    loading::{monotonic, read_object},
    logs,
    maps::{self, KernelMaps, WrongMap},
    object,
    probe::{self, ProbeError, Probed},
    selftest::{self, SelfTestError},
    syscall::{self, Hook},
};

const SILENT: &str = "count_connections";
/// The same, which logs too.
const TELLING: &str = "tell_connections";

/// Level `self`.
#[derive(Debug)]
pub struct Kernel {
    reason: String,
    ledger: Ledger<Stats>,
    maps: KernelMaps,
    logs: Option<Logs>,
    /// What was last said about upstreams that are left out, so that it is said once.
    said: Vec<LeftOut>,
    missed: u64,
    cgroup: Cgroup,
    /// Of the program, and its id.
    name: &'static str,
    program: u32,
    /// Dropping it detaches.
    link: Option<SockOpsLink>,
    ebpf: Ebpf,
}

/// Why the kernel cannot be used, by step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unavailable {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot load the programs")]
    Object(#[from] Box<EbpfError>),
    #[error(transparent)]
    Map(#[from] WrongMap),
    #[error("cannot load program {name}")]
    Load { name: &'static str, source: Box<ProgramError> },
    #[error("cannot attach the program to {path}")]
    Attach { path: String, source: Box<ProgramError> },
    #[error("cannot read the programs' log")]
    Logs(#[from] Box<aya_log::Error>),
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
}

// === impl Kernel ===

impl Kernel {
    /// Opens this level and no other, with its own limits: for tests and tools.
    pub fn open(cgroup: Option<&Path>, limits: Limits) -> Result<Self, OpenError> {
        Self::start(cgroup, Some(limits)).map_err(|error| OpenError::new(Mode::SelfLevel, &error))
    }

    /// The kernel's id of the map of pod addresses, as `bpftool map` shows it.
    pub fn address_map_id(&self) -> Option<u32> {
        self.maps.address_map_id()
    }

    /// Probes, loads, attaches and tests; whichever step fails first is the reason.
    pub(crate) fn start(cgroup: Option<&Path>, limits: Option<Limits>) -> Result<Self, Unavailable> {
        let object = object::OWN.ok_or(ProbeError::NoObject)?;
        let Probed { perfmon } = probe::probe()?;
        let cgroup = Cgroup::find(cgroup)?;
        let limits = limits.unwrap_or_else(|| Limits::for_cpus(nr_cpus().unwrap_or(1)));
        let log_level = logs::level(perfmon);
        let name = if log_level == 0 { SILENT } else { TELLING };
        let mut ebpf = create(object, limits, log_level)?;
        let mut maps = KernelMaps::take(&mut ebpf)?;
        let logs = Logs::take(&mut ebpf).map_err(Box::new)?;
        let program = load(&mut ebpf, name).map_err(|error| Unavailable::Load { name, source: Box::new(error) })?;
        let failed = |error| Unavailable::Attach { path: cgroup.path().display().to_string(), source: Box::new(error) };
        let link = attach(&mut ebpf, name, &cgroup).map_err(failed)?;
        selftest::run(&mut maps)?;
        let others = cgroup.others();
        if others > 0 {
            let cgroup = cgroup.path().display();
            tracing::warn!(%cgroup, others, "other processes share the cgroup: their connections to pods are counted too");
        }
        Ok(Self {
            reason: format!("attached to {}", cgroup.path().display()),
            ledger: Ledger::new(limits),
            maps,
            logs: Some(logs),
            said: Vec::new(),
            missed: 0,
            cgroup,
            name,
            program,
            link: Some(link),
            ebpf,
        })
    }

    /// Takes the program off its cgroup, as somebody else might: for tests of [`Dataplane::repair`].
    pub fn detach(&mut self) {
        self.link = None;
    }

    /// Attaches the program again if somebody has taken it off. What it has missed by then nobody knows, so every upstream
    /// starts anew.
    fn stay_attached(&mut self) -> Result<bool, SyncError> {
        let attached = syscall::attached(self.cgroup.dir().as_fd(), Hook::SockOps).map_err(SyncError::Query)?;
        if attached.ids.contains(&self.program) {
            return Ok(false);
        }
        let attached = attach(&mut self.ebpf, self.name, &self.cgroup);
        let attached = attached.map_err(|error| SyncError::Attach(Box::new(error)))?;
        self.link = Some(attached);
        self.ledger.start_anew(&mut self.maps)?;
        tracing::warn!(cgroup = %self.cgroup.path().display(), "the program was taken off its cgroup and put back");
        Ok(true)
    }

    fn after_sync(&mut self, report: &SyncReport) {
        if report.left_out != self.said {
            let new = report.left_out.iter().filter(|left| !self.said.contains(left));
            for LeftOut { upstream: _, target, why } in new.take(10) {
                tracing::warn!(service = %target.service, port = %target.port, why, "the kernel does not count this upstream");
            }
            self.said.clone_from(&report.left_out);
        }
        self.flush();
    }

    fn flush(&mut self) {
        if let Some(logs) = &mut self.logs {
            logs.flush();
        }
    }
}

impl Dataplane for Kernel {
    fn level(&self) -> Level {
        Level::SelfLevel
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn sync(&mut self, upstreams: &mut dyn Iterator<Item = &Arc<Upstream>>) -> Result<SyncReport, SyncError> {
        let report = self.ledger.sync(&mut self.maps, upstreams)?;
        self.after_sync(&report);
        Ok(report)
    }

    fn repair(&mut self) -> Result<RepairReport, SyncError> {
        let detached = self.stay_attached()?;
        let report = RepairReport { detached, ..self.ledger.repair(&mut self.maps)? };
        let RepairReport { missing, foreign, wrong, detached: _ } = report;
        if missing + foreign + wrong > 0 {
            tracing::warn!(missing, foreign, wrong, "the kernel's map of pod addresses had drifted and was mended");
        }
        let missed = self.maps.missed().map_err(SyncError::Counters)?;
        if missed > self.missed {
            tracing::warn!(connections = missed - self.missed, "the kernel could not count these connections");
            self.missed = missed;
        }
        self.flush();
        Ok(report)
    }

    fn counters(&self) -> Vec<(UpstreamId, ConnectionCounters)> {
        let now = monotonic();
        let read = self.ledger.counters(&self.maps).into_iter();
        read.filter_map(|(id, stats)| match stats {
            Ok(stats) => Some((id, counters(&stats, now))),
            Err(error) => {
                tracing::warn!(upstream = id.0, %error, "the kernel's counters cannot be read");
                None
            }
        })
        .collect()
    }

    fn take_logs(&mut self) -> Option<Logs> {
        self.logs.take()
    }
}

/// Creates the maps and prepares the programs.
fn create(object: &[u8], limits: Limits, log_level: u8) -> Result<Ebpf, Box<EbpfError>> {
    let create = || {
        EbpfLoader::new()
            .btf(None)
            .map_max_entries(maps::UPSTREAM_OF, limits.addresses.saturating_mul(2).max(2))
            .map_max_entries(maps::STATS, limits.slots.max(1))
            .override_global("AYA_LOG_LEVEL", &log_level, true)
            .load(object)
            .map_err(Box::new)
    };
    read_object(create)
}

fn sockops<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SockOps, ProgramError> {
    let unknown = || ProgramError::InvalidName { name: name.to_owned() };
    ebpf.program_mut(name).ok_or_else(unknown)?.try_into()
}

/// Loads the program and returns its id.
fn load(ebpf: &mut Ebpf, name: &str) -> Result<u32, ProgramError> {
    let program = sockops(ebpf, name)?;
    program.load()?;
    Ok(program.info()?.id())
}

/// Links always allow several programs on a cgroup; the flag for it is refused together with them.
fn attach(ebpf: &mut Ebpf, name: &str, cgroup: &Cgroup) -> Result<SockOpsLink, ProgramError> {
    cgroup::nobody_gives_way(cgroup.path(), &[Hook::SockOps]).map_err(ProgramError::IOError)?;
    let program = sockops(ebpf, name)?;
    let id = program.attach(cgroup.dir(), CgroupAttachMode::Single)?;
    program.take_link(id)
}

fn counters(stats: &Stats, now: Duration) -> ConnectionCounters {
    let Stats { attempted: _, opened, closed, failed, srtt_us, last_ns } = *stats;
    let last_activity = (last_ns > 0).then(|| now.saturating_sub(Duration::from_nanos(last_ns)));
    // CPUs are read one after the other, so a close may be seen whose opening was not.
    ConnectionCounters { opened, closed: closed.min(opened), failed, srtt_us, last_activity }
}
