//! What happened on this machine, in order: written by the autoscaler, the kubelet and the supervisor, read by the view,
//! by `--once` and by the explanation of cold starts. All times are microseconds of the machine's own clock.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use interceptor_core::ObjectKey;
use parking_lot::Mutex;
use tokio::sync::watch;

/// How many entries are kept: some minutes of a lively demonstration.
const MAX_ENTRIES: usize = 1024;

/// The log; clones share it.
#[derive(Clone, Debug)]
pub struct Timeline {
    entries: Arc<Mutex<VecDeque<Entry>>>,
    count: Arc<watch::Sender<u64>>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Microseconds since 1970.
    pub at: u64,
    /// Its number; entries are numbered without gaps.
    pub number: u64,
    /// What.
    pub event: Event,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `StreamIsActive` said that this ScaledObject is wanted, while it had no replica.
    Signal {
        /// The ScaledObject.
        scaled: ObjectKey,
    },
    /// The number of replicas that a Deployment shall have was changed.
    Scaled {
        /// The Deployment.
        workload: ObjectKey,
        /// Replicas before.
        from: u32,
        /// Replicas after.
        to: u32,
        /// Who decided.
        by: Actor,
        /// On what grounds.
        why: String,
    },
    /// A pod's process was started.
    PodStarted(Pod),
    /// A pod's readiness probe succeeded, and its endpoint was published.
    PodReady(Pod),
    /// A pod's readiness probe fails again.
    PodUnready(Pod),
    /// A pod's process ended without being asked to.
    PodCrashed(Pod, String),
    /// A pod was withdrawn from its endpoints and asked to end.
    PodStopping(Pod),
    /// A pod's process is gone.
    PodGone(Pod),
    /// Something that is wrong, and with what.
    Problem {
        /// The object or process.
        object: String,
        /// What about it.
        message: String,
    },
}

/// A pod, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The Deployment.
    pub workload: ObjectKey,
    /// The pod's name.
    pub name: Arc<str>,
}

/// Who decides on a number of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Activity: between zero and one.
    Keda,
    /// Metrics: above one.
    Hpa,
    /// The manifest's `replicas`.
    Manifest,
}

/// Microseconds since 1970.
pub fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

// === impl Timeline ===

impl Default for Timeline {
    fn default() -> Self {
        Self { entries: Arc::default(), count: Arc::new(watch::Sender::new(0)) }
    }
}

impl Timeline {
    /// Adds what happened just now. The oldest entry goes when the log is full.
    pub fn add(&self, event: Event) {
        let mut entries = self.entries.lock();
        let number = entries.back().map_or(0, |last| last.number + 1);
        if entries.len() == MAX_ENTRIES {
            entries.pop_front();
        }
        entries.push_back(Entry { at: unix_micros(), number, event });
        drop(entries);
        self.count.send_replace(number + 1);
    }

    /// The entries from number `from` on, as far as they are still kept.
    pub fn since(&self, from: u64) -> Vec<Entry> {
        self.entries.lock().iter().filter(|entry| entry.number >= from).cloned().collect()
    }

    /// Changes whenever an entry was added; holds the next entry's number.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }
}

// === impl Event ===

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal { scaled } => write!(f, "{scaled}: the scaler says it is wanted"),
            Self::Scaled { workload, from, to, by, why } => write!(f, "{workload}: {by} {from} → {to} replicas, {why}"),
            Self::PodStarted(pod) => write!(f, "{}: pod {} started", pod.workload, pod.name),
            Self::PodReady(pod) => write!(f, "{}: pod {} is ready", pod.workload, pod.name),
            Self::PodUnready(pod) => write!(f, "{}: pod {} is no longer ready", pod.workload, pod.name),
            Self::PodCrashed(pod, how) => write!(f, "{}: pod {} {how}", pod.workload, pod.name),
            Self::PodStopping(pod) => write!(f, "{}: pod {} is asked to end", pod.workload, pod.name),
            Self::PodGone(pod) => write!(f, "{}: pod {} has ended", pod.workload, pod.name),
            Self::Problem { object, message } => write!(f, "{object}: {message}"),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keda => "KEDA",
            Self::Hpa => "HPA",
            Self::Manifest => "manifest",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_keeps_counting() {
        let timeline = Timeline::default();
        for n in 0..2000 {
            timeline.add(Event::Problem { object: n.to_string(), message: String::new() });
        }
        assert_eq!(timeline.since(0).len(), MAX_ENTRIES);
        assert_eq!(timeline.since(1999)[0].event, Event::Problem { object: "1999".into(), message: String::new() });
        assert_eq!(*timeline.changes().borrow(), 2000);
    }
}
