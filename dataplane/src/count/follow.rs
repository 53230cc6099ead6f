//! Pods' cgroups as they come and go, with the programs that are on them.

use std::{
    collections::{BTreeMap, HashSet},
    fs, mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aya::Ebpf;

use super::{
    Count, CountError,
    attached::{self, Attached, Links, Programs},
    nanos,
};
use crate::{
    SyncError, cgroup,
    loading::monotonic,
    open::words,
    pins::{self, Pinned},
    pods::{self, Found},
    syscall::Hook,
};

/// What a look at the cgroups has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Pods whose cgroups the programs were attached to.
    pub attached: usize,
    /// Pods that have gone.
    pub gone: usize,
    /// Pods of this node whose cgroup is not there (yet, or any more).
    pub missing: usize,
    /// Folders in which pods may come.
    pub parents: Vec<PathBuf>,
}

// === impl Count ===

impl Count {
    /// Looks which cgroups there are, and attaches to those of our pods that it has not attached to.
    pub fn follow(&mut self) -> Result<Followed, CountError> {
        let Found { pods, parents, truncated } =
            pods::scan(&self.root).map_err(|source| CountError::Tree { path: self.root.clone(), source })?;
        if truncated {
            tracing::warn!(root = %self.root.display(), "there are more cgroups than are looked at: some pods may not be counted");
        }
        let mut followed = Followed { parents, ..Followed::default() };
        let now = monotonic();
        for (uid, attached) in self.attached.extract_if(.., |_, attached| !attached.is_there()) {
            self.leaving.add(uid, attached, now);
            followed.gone += 1;
        }
        // Sockets of pods that a process before has attached to may bear any slot that drains.
        self.other = false;
        if !mem::replace(&mut self.followed, true) {
            self.take_over(&pods, now);
        }
        for (uid, upstreams) in &self.wanted {
            if self.attached.contains_key(uid) {
                continue;
            }
            let Some(path) = pods.get(uid) else {
                followed.missing += 1;
                continue;
            };
            let pins = self.pins.path().map(|folder| attached::pins(folder, uid));
            let before = self.leaving.take(uid, path);
            match attach(&mut self.programs, &mut self.ebpf, (path, pins), before) {
                Ok(mut attached) => {
                    attached.slots.extend(upstreams.iter().filter_map(|id| self.ledger.slot(*id)));
                    attached.upstreams.clone_from(upstreams);
                    tracing::info!(uid = &**uid, cgroup = %path.display(), "counts for a pod");
                    self.refused.remove(uid);
                    self.attached.insert(Arc::clone(uid), attached);
                    followed.attached += 1;
                }
                Err(error) => refuse(&mut self.refused, (uid, path), &words(&*error)),
            }
        }
        self.pins.be_alone();
        let Self { leaving, ledger, maps, .. } = self;
        leaving.let_go(now, |slot| ledger.counts(maps, slot));
        Ok(followed)
    }

    /// Keeps what a process before has pinned until it is known whose it is. Sockets there may bear any slot that drains, and those of pods that
    /// have gone any slot at all.
    fn take_over(&mut self, pods: &BTreeMap<Arc<str>, PathBuf>, now: Duration) {
        let Some(folder) = self.pins.path() else { return };
        for uid in attached::pinned(folder) {
            let path = pods.get(&uid).cloned().unwrap_or_default();
            let links = Links::Pinned(attached::pins(folder, &uid).map(Pinned::at));
            let used = self.ledger.used().filter(|_| path.as_os_str().is_empty());
            let slots = self.ledger.draining().chain(used).collect();
            self.leaving.add(uid, Attached { path, upstreams: HashSet::new(), slots, links }, now);
        }
    }

    /// Looks whether the programs are still where they were put, and whatever is pinned at its pin. What somebody else has taken
    /// away is put back: the number of pods that had lost a program. To be called every few seconds.
    pub fn put_back(&mut self) -> usize {
        self.pins.again();
        // One that cannot be asked about is not known to have lost any.
        let is_lost = |at: &Attached| at.is_there() && self.programs.are_on(&at.path).is_ok_and(|are_on| !are_on);
        let lost: Vec<_> = self.attached.extract_if(.., |_, attached| is_lost(attached)).collect();
        let count = lost.len();
        for (uid, Attached { path, upstreams, slots, links }) in lost {
            tracing::warn!(uid = &*uid, cgroup = %path.display(), "somebody has taken the programs off a pod that is counted");
            links.take_off();
            let pins = self.pins.path().map(|folder| attached::pins(folder, &uid));
            match attach(&mut self.programs, &mut self.ebpf, (&path, pins), None) {
                Ok(Attached { links, .. }) => {
                    self.attached.insert(uid, Attached { path, upstreams, slots, links });
                }
                Err(error) => refuse(&mut self.refused, (&uid, &path), &words(&*error)),
            }
        }
        self.pin_again();
        count
    }

    fn pin_again(&self) {
        if self.pins.path().is_none() {
            return;
        }
        let links = self.attached.values().chain(self.leaving.attached()).map(|attached| attached.links.pin_again());
        pins::tell(links.chain([pins::again(&self.maps_at_pins)]).sum());
    }

    /// What is open for slots that nobody's sockets can bear any more will not be told to end.
    pub(super) fn settle(&mut self) -> Result<(), SyncError> {
        // The programs may still be on pods that could not be looked at.
        if !self.followed || !self.refused.is_empty() {
            return Ok(());
        }
        for attached in self.attached.values_mut() {
            attached.slots.retain(|slot| self.ledger.counts(&self.maps, *slot));
        }
        let attached = self.attached.values().flat_map(|attached| attached.slots.iter().copied());
        let borne: HashSet<_> = attached.chain(self.leaving.slots()).collect();
        let settled = self.ledger.settle(&mut self.maps, nanos(monotonic()), |slot| borne.contains(&slot));
        let settled = settled.map_err(SyncError::Counters)?;
        if settled > 0 {
            tracing::info!(slots = settled, "pods have gone without a word of what was open on them: it has ended");
        }
        Ok(())
    }
}

fn refuse(refused: &mut BTreeMap<Arc<str>, String>, (uid, path): (&Arc<str>, &Path), why: &str) {
    if refused.insert(Arc::clone(uid), why.to_owned()).as_deref() != Some(why) {
        tracing::warn!(uid = &**uid, cgroup = %path.display(), why, "cannot count for a pod");
    }
}

/// Attaches to a pod's cgroup, or goes on with the programs that are on it.
fn attach(
    programs: &mut Programs,
    ebpf: &mut Ebpf,
    (path, pins): (&Path, Option<[PathBuf; 3]>),
    before: Option<Attached>,
) -> Result<Attached, Box<dyn std::error::Error>> {
    let before = match before {
        Some(attached) if pins.is_none() => return Ok(attached),
        before => before.map(|attached| attached.slots).unwrap_or_default(),
    };
    cgroup::nobody_gives_way(path, &[Hook::Sent, Hook::Received, Hook::SockOps])?;
    let dir = fs::File::open(path)?;
    let links = programs.attach(ebpf, &dir, pins)?;
    Ok(Attached { path: path.to_owned(), upstreams: HashSet::new(), slots: before, links })
}
