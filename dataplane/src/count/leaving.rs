//! Programs that stay on where nobody wants them any more, because sockets there may still end: those of a pod whose route has gone, until
//! the slots that they bear have drained; those of a pod that has gone, while the kernel tries to send what its processes have left.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use interceptor_core::mapops::Slot;

use super::attached::Attached;

/// For how long sockets may outlive their pod. Linux sends what a process has left eight times (`tcp_orphan_retries`), later each time:
/// 102 s from its shortest time-out on, nine minutes from one of a second.
const ORPHANS: Duration = Duration::from_mins(10);

/// Most pods of which this is kept. Of more, the one that has been for longest is let go: what ends there is not told.
const MOST: usize = 1024;

/// By the pods' UIDs.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    pods: BTreeMap<Arc<str>, Left>,
}

#[derive(Debug)]
struct Left {
    attached: Attached,
    since: Duration,
    /// Since when the cgroup is not there.
    gone: Option<Duration>,
}

// === impl Leaving ===

impl Leaving {
    /// Keeps a pod's programs, from `now` on.
    pub(super) fn add(&mut self, uid: Arc<str>, attached: Attached, now: Duration) {
        let gone = (!attached.is_there()).then_some(now);
        let left = Left { attached, since: now, gone };
        if let Some(before) = self.pods.insert(uid, left) {
            before.attached.detach();
        }
        if self.pods.len() > MOST {
            let longest = self.pods.iter().min_by_key(|(_, left)| left.since).map(|(uid, _)| Arc::clone(uid));
            if let Some(left) = longest.and_then(|uid| self.pods.remove(&uid)) {
                left.attached.detach();
            }
        }
    }

    /// A pod is wanted that is at `path`: its programs, if they are there. A cgroup that has gone and come again has none.
    pub(super) fn take(&mut self, uid: &str, path: &Path) -> Option<Attached> {
        let Left { attached, since: _, gone } = self.pods.remove(uid)?;
        if gone.is_none() && attached.path == path {
            return Some(attached);
        }
        attached.detach();
        None
    }

    /// Takes programs off where nothing can end any more that is counted: where no socket can be left, or none that bears a slot that still
    /// `counts`.
    pub(super) fn let_go(&mut self, now: Duration, counts: impl Fn(Slot) -> bool) {
        let over = |_: &Arc<str>, left: &mut Left| {
            if left.gone.is_none() && !left.attached.is_there() {
                left.gone = Some(now);
            }
            match left.gone {
                Some(since) => now.saturating_sub(since) >= ORPHANS,
                None => !left.attached.slots.iter().any(|slot| counts(*slot)),
            }
        };
        for (uid, left) in self.pods.extract_if(.., over) {
            tracing::debug!(uid = &*uid, "counts no more for a pod");
            left.attached.detach();
        }
    }

    /// What is kept.
    pub(super) fn attached(&self) -> impl Iterator<Item = &Attached> {
        self.pods.values().map(|left| &left.attached)
    }

    /// The slots that their sockets may bear.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.pods.values().flat_map(|left| left.attached.slots.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::{super::attached::Links, *};
    use crate::pins::Pinned;

    fn pod(path: &Path, pins: &Path, slot: u32) -> Attached {
        let pins = super::super::attached::pins(pins, "u");
        for pin in &pins {
            std::fs::write(pin, "").unwrap();
        }
        let slots = BTreeSet::from([Slot(slot)]);
        Attached { path: path.to_owned(), upstreams: HashSet::new(), slots, links: Links::Pinned(pins.map(Pinned::at)) }
    }

    fn is_attached(pins: &Path) -> bool {
        std::fs::read_dir(pins).unwrap().count() == 3
    }

    const NOW: Duration = Duration::from_secs(7);

    #[test]
    fn a_pod_whose_route_has_gone_is_let_go_when_its_slots_have_drained() {
        let (cgroup, pins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut leaving = Leaving::default();
        leaving.add("u".into(), pod(cgroup.path(), pins.path(), 3), NOW);
        leaving.let_go(NOW + 2 * ORPHANS, |slot| slot == Slot(3));
        assert!(is_attached(pins.path()));
        assert_eq!(leaving.slots().collect::<Vec<_>>(), [Slot(3)]);
        leaving.let_go(NOW + 2 * ORPHANS, |_| false);
        assert!(!is_attached(pins.path()));
        assert_eq!(leaving.slots().count(), 0);
    }

    #[test]
    fn a_pod_that_has_gone_keeps_its_programs_while_the_kernel_may_send_for_it() {
        let pins = tempfile::tempdir().unwrap();
        let mut leaving = Leaving::default();
        leaving.add("u".into(), pod(Path::new("/nonexistent"), pins.path(), 3), NOW);
        leaving.let_go(NOW, |_| false);
        leaving.let_go(NOW + ORPHANS / 2, |_| false);
        assert!(is_attached(pins.path()));
        leaving.let_go(NOW + ORPHANS, |_| true);
        assert!(!is_attached(pins.path()));
    }

    #[test]
    fn a_pod_that_is_wanted_again_goes_on_unless_its_cgroup_is_another() {
        let (cgroup, pins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut leaving = Leaving::default();
        leaving.add("u".into(), pod(cgroup.path(), pins.path(), 3), NOW);
        assert!(leaving.take("u", cgroup.path()).is_some());
        assert!(is_attached(pins.path()));
        leaving.add("u".into(), pod(Path::new("/nonexistent"), pins.path(), 3), NOW);
        leaving.let_go(NOW, |_| true);
        assert!(leaving.take("u", Path::new("/nonexistent")).is_none());
        assert!(!is_attached(pins.path()));
    }

    #[test]
    fn of_too_many_the_one_that_has_been_for_longest_is_let_go() {
        let (oldest, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut leaving = Leaving::default();
        leaving.add("oldest".into(), pod(oldest.path(), oldest.path(), 3), NOW);
        for other in 0..MOST {
            leaving.add(other.to_string().into(), pod(others.path(), others.path(), 4), NOW + ORPHANS);
        }
        assert!(!is_attached(oldest.path()));
        assert!(is_attached(others.path()));
    }
}
