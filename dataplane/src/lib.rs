//! The user side of the kernel: probe, load, attach, maps in step, counters.
//!
//! ```text
//! open ─► probe (capabilities, bpf(2), BTF) ─► cgroup ─► load ─► attach ─► self-test ─► Kernel
//!              any of them fails ─► one log line ─► None
//!
//! snapshot ─► Dataplane::sync ─► Ledger ─ claim, plan ─► kernel's map: pod address → slot
//!             Dataplane::repair ─► the same, from what the map really holds
//! kernel's counters ─► Dataplane::counters ─ minus what a slot had counted before ─► (upstream, counters)
//! kernel's log ─► Logs ─► tracing
//! ```
#![deny(unsafe_code)]

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use interceptor_core::{Upstream, UpstreamId, mapops::Shared, route::Target};

mod cgroup;
mod conntrack;
pub mod count;
mod devices;
mod frontends;
mod hold;
mod kernel;
mod ledger;
mod loading;
mod logs;
mod maps;
mod memory;
mod nfnetlink;
mod none;
mod object;
mod open;
mod pins;
pub mod pods;
mod probe;
mod queue;
mod selftest;
mod slots;
pub mod steer;
mod syscall;
mod wake;

pub use self::{
    conntrack::{Conntrack, ConntrackError, Translation},
    devices::{Changes, Device, Devices, addresses, devices, uplinks},
    frontends::ROOM,
    hold::{
        Attachment, Direction, Hold, HoldError, Hooks, Origin, SendError, Sighting, Syn, What, is_hairpin,
        source_toward,
    },
    kernel::Kernel,
    ledger::{Limits, SyncError},
    loading::monotonic,
    logs::Logs,
    memory::ask_for_huge_pages,
    object::EMBEDDED,
    open::{OpenError, open},
    queue::{Queue, QueueError, Queues, Unread},
    wake::{Alarm, Arrivals},
};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Which level to try.
    pub mode: Mode,
    /// Whether to fail when the level that was asked for cannot be had.
    pub required: bool,
    /// The cgroup whose sockets are counted; this process's own if it is not given.
    pub cgroup: Option<PathBuf>,
}

/// Which level to try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The highest that can be had.
    #[default]
    Auto,
    /// Without the kernel.
    None,
    /// On this process's own sockets.
    SelfLevel,
}

/// Which level was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Without the kernel.
    None,
    /// On this process's own sockets.
    SelfLevel,
}

/// What the kernel counted for one upstream since it was first given an address. Each number only grows; an upstream that
/// went and came back starts at zero. Connections in flight are `opened - closed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounters {
    /// Connections to its pods that were established.
    pub opened: u64,
    /// Those that have ended; never more than `opened`.
    pub closed: u64,
    /// Connections that ended before they were established: refused, unreachable, timed out, given up.
    pub failed: u64,
    /// Smoothed round-trip time in microseconds; zero before the first sample. Where room was short and another upstream's
    /// counters were taken over, it begins where that one's ended.
    pub srtt_us: u64,
    /// How long ago one of its connections did something; `None` before the first.
    pub last_activity: Option<Duration>,
}

/// What a sync did and could not do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Addresses that were added to the map.
    pub added: usize,
    /// Addresses that now count for another upstream.
    pub replaced: usize,
    /// Addresses that were removed.
    pub removed: usize,
    /// Addresses in the map.
    pub addresses: usize,
    /// Addresses that more than one upstream lists.
    pub shared: Vec<Shared>,
    /// Upstreams that the kernel doesn't count, and why.
    pub left_out: Vec<LeftOut>,
}

/// An upstream that the kernel doesn't count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Which.
    pub upstream: UpstreamId,
    /// Its Service and port, for people.
    pub target: Target,
    /// Why, for people.
    pub why: String,
}

/// What a repair found: differences between the map and what the last sync had left in it. All are mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Addresses that had vanished.
    pub missing: usize,
    /// Addresses that nobody of ours had added.
    pub foreign: usize,
    /// Addresses that counted for a wrong upstream.
    pub wrong: usize,
    /// The program had been taken off its cgroup; every upstream's counters start at zero again.
    pub detached: bool,
}

/// What the control thread asks of the kernel, or of nothing.
pub trait Dataplane: Send + fmt::Debug {
    /// Which level this is.
    fn level(&self) -> Level;
    /// Why it is no higher, or what it is attached to.
    fn reason(&self) -> &str;
    /// Makes the kernel count for these upstreams and no others. Costs little when nothing that matters has changed.
    fn sync(&mut self, upstreams: &mut dyn Iterator<Item = &Arc<Upstream>>) -> Result<SyncReport, SyncError>;
    /// Reads back what the kernel has and mends it. To be called every few seconds.
    fn repair(&mut self) -> Result<RepairReport, SyncError>;
    /// The counters of every upstream of the last sync that ever had an address, in the order of their ids.
    fn counters(&self) -> Vec<(UpstreamId, ConnectionCounters)>;
    /// What the programs log, for a task of its own to forward. Once; otherwise sync and repair forward it.
    fn take_logs(&mut self) -> Option<Logs>;
}

// === impl Mode ===

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "self" => Ok(Self::SelfLevel),
            other => Err(format!("{other:?}: expected auto, none or self")),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::SelfLevel => "self",
        })
    }
}

// === impl Level ===

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::SelfLevel => "self",
        })
    }
}

// === impl ConnectionCounters ===

impl ConnectionCounters {
    /// Connections that are open now.
    pub const fn in_flight(&self) -> u64 {
        self.opened.saturating_sub(self.closed)
    }
}

// === impl RepairReport ===

impl RepairReport {
    /// Whether there was anything to mend.
    pub const fn drifted(&self) -> bool {
        self.detached || self.missing + self.foreign + self.wrong > 0
    }
}
