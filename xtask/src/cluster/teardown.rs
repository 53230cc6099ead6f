//! `cargo xtask cluster down`: ends a cluster whatever state it is in, and removes all of it. Finds what there is by name.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::cluster::{cgroups, netns, place::Place};

/// How long the kernel may take to end what was killed.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// What there is of a cluster.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Remains {
    /// Processes in its namespaces and cgroups.
    pub(crate) processes: usize,
    /// Network namespaces.
    pub(crate) namespaces: usize,
    /// Cgroups, those below others not counted.
    pub(crate) cgroups: usize,
    /// Whether it has a folder.
    pub(crate) folder: bool,
}

impl Remains {
    /// Looks.
    pub(crate) fn of(place: &Place) -> Self {
        Self {
            processes: processes(place).len(),
            namespaces: place.own_netns().len(),
            cgroups: cgroups::own(place).len(),
            folder: place.folder().exists(),
        }
    }

    /// Whether there is nothing.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Ends and removes; says what there was. To do it again does no harm.
pub(crate) fn down(place: &Place) -> Result<Remains> {
    let found = Remains::of(place);
    let until = Instant::now() + PATIENCE;
    loop {
        let alive = processes(place);
        if alive.is_empty() {
            break;
        }
        if Instant::now() > until {
            bail!("{} processes of the cluster do not end, the first is {}", alive.len(), alive[0]);
        }
        for pid in alive {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::park_timeout(PAUSE);
    }
    for cgroup in cgroups::own(place) {
        while !cgroups::remove(&cgroup) {
            if Instant::now() > until {
                bail!("cgroup {} stays in use", cgroup.display());
            }
            thread::park_timeout(PAUSE);
        }
    }
    for netns in place.own_netns() {
        netns::delete(&netns)?;
    }
    let folder = place.folder();
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(found)
}

/// Everything that runs in the cluster's namespaces or cgroups.
fn processes(place: &Place) -> Vec<i32> {
    let mut pids: Vec<i32> =
        place.own_netns().iter().flat_map(|netns| netns::processes(netns)).map(|one| one.pid).collect();
    pids.extend(cgroups::own(place).iter().flat_map(|cgroup| cgroups::pids(cgroup)));
    pids.sort_unstable();
    pids.dedup();
    pids
}
