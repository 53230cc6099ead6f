//! Whether the API server answers: each loss and each recovery is told once, however many watches there are and however
//! often they try. Written by the watches, read by the metrics.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{super::Kind, metrics::WatchMetrics};

/// A server that has just started denies or does not know what it grants a moment later, and one that is busy says so.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Why a watch does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// The server can't be reached.
    Unreachable,
    /// The server does not know the kind.
    Missing,
    /// The server does not know us, or does not let us.
    Forbidden,
    /// The server has forgotten where we stopped: everything is listed again.
    Expired,
    /// The server can't stream a list.
    NoStreaming,
    /// The server says that it can't answer now.
    Failed,
}

/// All watches.
#[derive(Debug)]
pub(super) struct Links {
    watches: Mutex<Vec<State>>,
    metrics: WatchMetrics,
}

/// One watch.
#[derive(Clone, Debug)]
pub(super) struct Link {
    all: Arc<Links>,
    index: usize,
}

#[derive(Debug)]
struct State {
    kind: Kind,
    was_up: bool,
    down: Option<Down>,
}

#[derive(Debug)]
struct Down {
    reason: Reason,
    since: Instant,
    told: bool,
}

// === impl Reason ===

impl Reason {
    pub(super) fn of(error: &watcher::Error) -> Self {
        use watcher::Error as E;
        match error {
            E::InitialListFailed(error) | E::WatchFailed(error) => Self::of_client(error),
            E::WatchStartFailed(error) => match Self::of_client(error) {
                // What a server says that does not know `sendInitialEvents`, or not as it is meant.
                Self::Failed if code(error).is_some_and(|code| matches!(code, 400 | 422)) => Self::NoStreaming,
                reason => reason,
            },
            E::WatchError(status) if status.code == 410 => Self::Expired,
            E::WatchError(_) | E::NoResourceVersion => Self::Failed,
        }
    }

    fn of_client(error: &kube::Error) -> Self {
        match (error, code(error)) {
            (_, Some(401 | 403)) => Self::Forbidden,
            (_, Some(404)) => Self::Missing,
            (_, Some(410)) => Self::Expired,
            // After a restore from a backup the server may be older than what it told us before.
            (kube::Error::Api(status), Some(504)) if status.message.contains("Too large resource version") => {
                Self::Expired
            }
            (kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_), _) => Self::Unreachable,
            _ => Self::Failed,
        }
    }

    /// For metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Missing => "missing",
            Self::Forbidden => "forbidden",
            Self::Expired => "expired",
            Self::NoStreaming => "no_streaming",
            Self::Failed => "failed",
        }
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

// === impl Links ===

impl Links {
    pub(super) fn new(kinds: impl Iterator<Item = Kind>, metrics: WatchMetrics) -> Self {
        let state = |kind| State { kind, was_up: false, down: None };
        Self { watches: Mutex::new(kinds.map(state).collect()), metrics }
    }
}

// === impl Link ===

impl Link {
    pub(super) fn new(all: &Arc<Links>, index: usize) -> Self {
        Self { all: Arc::clone(all), index }
    }

    /// The server answered a request of this watch.
    pub(super) fn up(&self) {
        let mut watches = self.all.watches.lock();
        let state = &mut watches[self.index];
        let kind = state.kind;
        state.was_up = true;
        let down = state.down.take();
        // Of a kind with several watches all have to be well.
        let all = watches.iter().filter(|state| state.kind == kind).all(|state| state.down.is_none());
        self.all.metrics.connected(kind, all);
        let Some(Down { reason, since, told: true }) = down else { return };
        match reason {
            Reason::Unreachable | Reason::Failed => {
                let others = watches.iter().any(|state| state.down.as_ref().is_some_and(Down::is_outage));
                if !others {
                    let seconds = since.elapsed().as_secs();
                    tracing::info!(seconds, "the Kubernetes API server answers again");
                }
            }
            Reason::Missing => tracing::info!(%kind, "the Kubernetes API server knows the kind now"),
            Reason::Forbidden => tracing::info!(%kind, "the Kubernetes API server lets us read the kind now"),
            Reason::Expired | Reason::NoStreaming => {}
        }
    }

    /// Something of this watch came; `listing` is the beginning of a new list.
    pub(super) fn heard(&self, listing: bool) {
        let kind = self.all.watches.lock()[self.index].kind;
        if listing {
            self.all.metrics.restarted(kind);
        } else {
            self.all.metrics.heard(kind);
        }
    }

    /// This watch failed.
    pub(super) fn down(&self, reason: Reason, error: &watcher::Error) {
        let mut watches = self.all.watches.lock();
        let kind = watches[self.index].kind;
        self.all.metrics.failed(kind, reason);
        if matches!(reason, Reason::Expired | Reason::NoStreaming) {
            tracing::debug!(%kind, error = %Causes(error), "objects are listed again");
            return;
        }
        self.all.metrics.connected(kind, false);
        let outage = watches.iter().any(|state| state.down.as_ref().is_some_and(|down| down.is_outage() && down.told));
        let state = &mut watches[self.index];
        let known = state.was_up;
        let down = state.down.get_or_insert(Down { reason, since: Instant::now(), told: false });
        if down.told && down.reason == reason {
            tracing::debug!(%kind, error = %Causes(error), "the Kubernetes API server is asked again soon");
            return;
        }
        let is_outage = matches!(reason, Reason::Unreachable | Reason::Failed);
        let may_pass = reason == Reason::Failed || (down.is_outage() && !is_outage && known);
        if may_pass && down.since.elapsed() < GRACE {
            tracing::debug!(%kind, error = %Causes(error), "the Kubernetes API server is asked again soon");
            return;
        }
        *down = Down { reason, since: down.since, told: true };
        tell(reason, kind, outage, error);
    }
}

fn tell(reason: Reason, kind: Kind, outage: bool, error: &watcher::Error) {
    let error = Causes(error);
    match reason {
        Reason::Unreachable | Reason::Failed if outage => {
            tracing::debug!(%kind, %error, "the Kubernetes API server is asked again soon");
        }
        Reason::Unreachable | Reason::Failed => {
            tracing::warn!(%error, "the Kubernetes API server does not answer: what is known stays, and it is asked again");
        }
        Reason::Missing => tracing::warn!(
            %kind,
            api_version = kind.api_version(),
            "the Kubernetes API server does not know the kind: install the CRDs; it is asked again"
        ),
        Reason::Forbidden => tracing::warn!(
            %kind,
            %error,
            "the Kubernetes API server does not let us list and watch the kind: check the rules of RBAC; it is asked again"
        ),
        Reason::Expired | Reason::NoStreaming => {}
    }
}

// === impl Down ===

impl Down {
    fn is_outage(&self) -> bool {
        matches!(self.reason, Reason::Unreachable | Reason::Failed)
    }
}

/// What went wrong, in one line: the server's own words if it had any, or else the error with its causes, each once.
struct Causes<'a>(&'a watcher::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use watcher::Error as E;
        let inner: &(dyn Error + 'static) = match self.0 {
            E::InitialListFailed(error) | E::WatchStartFailed(error) | E::WatchFailed(error) => error,
            E::WatchError(status) => return write!(f, "{} ({})", status.message, status.code),
            E::NoResourceVersion => self.0,
        };
        if let Some(kube::Error::Api(status)) = inner.downcast_ref() {
            return write!(f, "{} ({})", status.message, status.code);
        }
        let mut last = inner.to_string();
        f.write_str(&last)?;
        for cause in std::iter::successors(inner.source(), |&cause| cause.source()) {
            let text = cause.to_string();
            // kube's errors repeat their source.
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
        }
        Ok(())
    }
}
