//! When a kind that the API server refuses counts as one that is not to be had: what depends on it is taken down then. Pure;
//! owned by the task that watches the kind.

use std::time::Duration;

use kube::runtime::watcher;
use tokio::time::Instant;

use super::LAST_WAIT;
use crate::world::Kind;

/// A server that has just started does not know, or denies, what it grants a moment later.
const GRACE: Duration = Duration::from_secs(5);

/// What has been read once is believed gone after so long only.
const GRACE_ONCE_READ: Duration = Duration::from_mins(1);

/// Refusals so far apart do not belong together: what was granted in between may have had nothing to tell.
const APART: Duration = LAST_WAIT.saturating_mul(2);

/// What a watch was refused.
#[derive(Debug)]
pub(super) struct Absence {
    kind: Kind,
    read: bool,
    /// The first and the last refusal of those that nothing else came between.
    refused: Option<(Instant, Instant)>,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// What is known stays.
    Trouble,
    /// The same, but a watch that resumes can't tell any more: only a list can.
    ListAnew,
    /// The kind is not to be had.
    Absent,
}

// === impl Absence ===

impl Absence {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, read: false, refused: None }
    }

    /// All objects were listed.
    pub(super) fn listed(&mut self) {
        self.read = true;
        self.refused = None;
    }

    /// Something came.
    pub(super) fn heard(&mut self) {
        self.refused = None;
    }

    /// The watch failed. A kind is absent only after a list that fails, so that the next thing to come is a list.
    pub(super) fn failed(&mut self, error: &watcher::Error, now: Instant) -> Verdict {
        let (code, listing) = match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status)) => (status.code, true),
            watcher::Error::WatchStartFailed(kube::Error::Api(status)) => (status.code, false),
            _ => (0, false),
        };
        if !is_refusal(self.kind, code) {
            self.refused = None;
            return Verdict::Trouble;
        }
        let before = self.refused.filter(|(_, last)| now.duration_since(*last) < APART);
        let since = before.map_or(now, |(since, _)| since);
        self.refused = Some((since, now));
        let grace = if self.read { GRACE_ONCE_READ } else { GRACE };
        match (now.duration_since(since) >= grace, listing) {
            (false, _) => Verdict::Trouble,
            (true, false) => Verdict::ListAnew,
            (true, true) => Verdict::Absent,
        }
    }
}

/// Whether an answer says that the kind is not to be had, as opposed to an API server in trouble. Services are always there,
/// and nothing true could be said of routes without them.
fn is_refusal(kind: Kind, code: u16) -> bool {
    match kind {
        Kind::Services | Kind::Namespaces => false,
        Kind::Routes | Kind::HttpScaledObjects | Kind::ScaledObjects => code == 404,
        // Without the right to read them, as an older chart has it, there are no shadow slices.
        Kind::Deployments | Kind::StatefulSets | Kind::Slices | Kind::Interceptors => matches!(code, 403 | 404),
    }
}
