//! The steering of this node: one task that keeps the programs, where clients are told of another destination when they
//! connect, in step with the Services that are an interceptor's to take while they are cold.
//!
//! ```text
//! snapshot ─► Wanted ─► maps (addresses → ports)       interceptors ─► maps (addresses, cgroups that are left out)
//! cgroups of pods, programs of others there ─► which Services, and where the programs are attached
//! ```

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dataplane::{
    ROOM, addresses, monotonic,
    pods::{self, Found},
    steer::{Listed, Steer, above_pods},
};
use interceptor_core::{ObjectKey, UpstreamId};
use parking_lot::Mutex;
use runtime::snapshot::Reader;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

mod metrics;
mod wanted;

pub(crate) use self::metrics::SteerMetrics;
use self::wanted::Wanted;
use super::{
    hold::left_out,
    pins::{Part, Pins},
    unread::{self, UNREAD},
};
use crate::control::discover::FollowedPod;

/// The programs leave everything alone 30 s after the last sign of life.
const BEAT: Duration = Duration::from_secs(5);

/// How often the maps are read back and mended, and cgroups and programs of others looked at.
const REPAIR: Duration = Duration::from_secs(30);

/// Most cgroups that the programs are attached to: a kubelet has one.
const CGROUPS: usize = 16;

/// Which connections to cold Services are steered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steering {
    /// Those that are left to interceptors; all where somebody else's program may translate addresses at connect, so that no
    /// first packet to a Service is ever sent.
    #[default]
    Auto,
    /// All of direct routes.
    All,
    /// None.
    Off,
}

/// What `/state` tells of the steering.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report(Arc<Mutex<Known>>);

/// What is known of the steering.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Why nothing is steered, if so.
    pub(crate) off: Option<String>,
    /// Whether every cold Service of a direct route is steered, and not only those that are left to interceptors.
    pub(crate) all: bool,
    /// Programs of others that see what pods connect to.
    pub(crate) others: usize,
    /// Cgroups that the programs are attached to.
    pub(crate) cgroups: Vec<PathBuf>,
    /// Those that refuse them, and why.
    pub(crate) refused: Vec<(String, String)>,
    /// Services that are steered now.
    pub(crate) services: BTreeSet<UpstreamId>,
    /// Services that the maps have no room for, and why.
    pub(crate) left_out: Vec<(ObjectKey, String)>,
    /// The interceptors that they are steered to.
    pub(crate) interceptors: Listed,
}

/// The task.
#[derive(Debug)]
pub(crate) struct Task {
    steer: Result<Steer, String>,
    pins: Pins,
    steering: Steering,
    root: PathBuf,
    reader: Reader,
    interceptors: watch::Receiver<Vec<FollowedPod>>,
    wanted: Wanted,
    node: Vec<IpAddr>,
    /// Where the programs belong when there is something to steer.
    above: Vec<PathBuf>,
    report: Report,
    metrics: SteerMetrics,
}

// === impl Report ===

impl Report {
    pub(crate) fn load(&self) -> Known {
        self.0.lock().clone()
    }
}

// === impl Task ===

impl Task {
    /// With loaded programs, or why there are none, and below which folder pods' cgroups are. Nothing is attached before it
    /// runs, but for what is pinned.
    pub(crate) fn new(
        (steer, pins): (Result<(Steer, PathBuf), String>, Pins),
        steering: Steering,
        reader: Reader,
        interceptors: watch::Receiver<Vec<FollowedPod>>,
        metrics: SteerMetrics,
    ) -> Self {
        let report = Report::default();
        report.0.lock().off = steer.as_ref().err().cloned();
        let (steer, root) = match steer {
            Ok((steer, root)) => (Ok(steer), root),
            Err(why) => (Err(why), PathBuf::new()),
        };
        Self {
            steer,
            pins,
            steering,
            root,
            reader,
            interceptors,
            wanted: Wanted::default(),
            node: Vec::new(),
            above: Vec::new(),
            report,
            metrics,
        }
    }

    pub(crate) fn report(&self) -> Report {
        self.report.clone()
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self, mut complete: watch::Receiver<bool>) -> io::Result<()> {
        if self.steer.is_err() {
            return std::future::pending().await;
        }
        // Until then the programs go on as an agent before has left them, for as long as its last sign of life lasts: a Service
        // that is missing now may only not have been read.
        self.report.0.lock().off = Some(UNREAD.to_owned());
        unread::wait(&mut complete, "steered", |complete| *complete).await;
        self.look();
        self.go_on();
        let mut again = self.sync();
        self.report.0.lock().off = None;
        self.metrics.active(true);
        let (mut beats, mut repairs) = (interval(BEAT), interval(REPAIR));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        repairs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let settled = async {
                match again {
                    Some(at) => sleep(at.saturating_sub(monotonic())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.reader.published() => {}
                Ok(()) = self.interceptors.changed() => self.look(),
                () = settled => {}
                _ = beats.tick() => {
                    self.beat();
                    continue;
                }
                _ = repairs.tick() => {
                    self.repair();
                    self.look();
                }
            }
            again = self.sync();
        }
    }

    /// Begins where an agent before has ended: what it had left alone need not be steered until it has settled.
    fn go_on(&mut self) {
        let Ok(steer) = &self.steer else { return };
        match steer.steered() {
            Ok(steered) => self.wanted = Wanted::after(steered),
            Err(error) => tracing::warn!(%error, "what an agent has left in the steering's maps cannot be read"),
        }
    }

    /// Looks at what is not told of when it changes, and at the interceptors.
    fn look(&mut self) {
        let Ok(steer) = &mut self.steer else { return };
        self.node = addresses().unwrap_or_default().into_iter().map(|(ip, _)| ip).collect();
        let found = pods::scan(&self.root).unwrap_or_else(|error| {
            tracing::warn!(%error, root = %self.root.display(), "pods' cgroups cannot be looked at");
            Found::default()
        });
        self.above = above_pods(&self.root, &found);
        self.above.truncate(CGROUPS);
        let others = self.above.iter().map(|cgroup| {
            steer.others(cgroup).unwrap_or_else(|error| {
                tracing::warn!(%error, cgroup = %cgroup.display(), "programs of others cannot be looked at");
                0
            })
        });
        let others = others.sum();
        let all = match self.steering {
            Steering::All => true,
            Steering::Auto => others > 0,
            Steering::Off => false,
        };
        {
            let mut known = self.report.0.lock();
            if known.all != all || known.others != others {
                tracing::info!(all, others, "which connections to cold Services are steered");
            }
            (known.all, known.others) = (all, others);
        }
        self.list(&found);
    }

    /// Brings the lists of interceptors in step: those that take connections, and those of this node, which are not to come
    /// back to themselves.
    fn list(&mut self, found: &Found) {
        let Ok(steer) = &mut self.steer else { return };
        let pods = self.interceptors.borrow_and_update().clone();
        let cgroups: Vec<_> = pods.iter().filter_map(|pod| found.pods.get(pod.uid.as_ref()?)).cloned().collect();
        // First those that must not be steered.
        match steer.leave_out(&cgroups) {
            Ok(0) => {}
            Ok(cgroups) => {
                tracing::warn!(cgroups, "what some interceptors connect to is steered like others' connections");
            }
            Err(error) => tracing::warn!(%error, "the kernel does not know which cgroups are interceptors'"),
        }
        let ready = pods.iter().filter(|pod| pod.is_ready).map(|pod| pod.address.to_canonical()).collect();
        match steer.interceptors(&ready) {
            Ok(listed) => {
                self.metrics.interceptors(listed.addresses.len(), listed.left_out);
                self.report.0.lock().interceptors = listed;
            }
            Err(error) => tracing::warn!(%error, "the kernel's list of interceptors is not in step"),
        }
    }

    /// Brings the maps in step with the last snapshot, and the programs to where there is something to steer; when to do so
    /// again though nothing is published.
    fn sync(&mut self) -> Option<Duration> {
        let Ok(steer) = &mut self.steer else { return None };
        let snapshot = self.reader.load();
        let (all, has_interceptors) = {
            let known = self.report.0.lock();
            (known.all, !known.interceptors.addresses.is_empty())
        };
        let again = self.wanted.update(&snapshot, all, (&self.node, ROOM), monotonic());
        let claims = self.wanted.claims();
        if let Err(error) = steer.sync(&claims.table) {
            tracing::warn!(%error, "the steering's maps are not in step with the Services");
        }
        // Whoever connects pays for the programs.
        let needed = has_interceptors && !claims.table.frontends.is_empty();
        let refused = steer.attach(if needed { &self.above } else { &[] });
        let refused: Vec<_> = refused.into_iter().map(|(path, why)| (path.display().to_string(), why)).collect();
        self.metrics.attached(steer.attached(), refused.len());
        self.metrics.services(claims.table.services.len(), claims.left_out.len());
        let left_out = left_out(&snapshot, claims);
        let mut known = self.report.0.lock();
        for (cgroup, why) in refused.iter().filter(|refused| !known.refused.contains(refused)) {
            tracing::warn!(cgroup, why, "what pods connect to cannot be steered");
        }
        for (service, why) in left_out.iter().filter(|left| !known.left_out.contains(left)) {
            tracing::warn!(%service, why, "connections to this Service are not steered");
        }
        let is_refused = |path: &PathBuf| refused.iter().any(|(refused, _)| path.display().to_string() == *refused);
        let on = if needed { &self.above[..] } else { &[] };
        known.cgroups = on.iter().filter(|path| !is_refused(path)).cloned().collect();
        known.services = claims.upstreams.values().flatten().copied().collect();
        (known.refused, known.left_out) = (refused, left_out);
        again
    }

    fn beat(&mut self) {
        let Ok(steer) = &mut self.steer else { return };
        if let Err(error) = steer.beat() {
            tracing::warn!(%error, "the steering's programs are given no sign of life");
        }
        if let Ok(stats) = steer.stats() {
            self.metrics.kernel(&stats);
        }
    }

    fn repair(&mut self) {
        let Ok(steer) = &mut self.steer else { return };
        let drifted = steer.repair();
        self.pins.tell(Part::Steer, steer.not_pinned());
        match drifted {
            Ok(0) => {}
            Ok(entries) => {
                self.metrics.drifted(entries);
                tracing::warn!(entries, "the steering's maps had drifted and were mended");
            }
            Err(error) => tracing::warn!(%error, "the steering's maps could not be checked"),
        }
    }
}

/// Loads the programs unless they are not wanted, and tells below which folder pods' cgroups are. What an agent before has
/// left pinned is taken away where they are not.
pub(crate) fn open(
    steering: Steering,
    bpffs: Option<&Path>,
    cgroup_root: Option<&Path>,
) -> Result<(Steer, PathBuf), String> {
    let why = match steering {
        Steering::Off => "switched off".to_owned(),
        Steering::Auto | Steering::All => {
            let root = pods::root(cgroup_root).map_err(|error| format!("pods' cgroups cannot be looked at: {error}"));
            match root.and_then(|root| Ok((Steer::open(bpffs).map_err(|error| error.to_string())?, root))) {
                Ok(opened) => return Ok(opened),
                Err(why) => {
                    tracing::warn!(why, "connections are not steered to interceptors on this node");
                    why
                }
            }
        }
    };
    if let Err(error) = Steer::remove(bpffs) {
        tracing::warn!(%error, "what an agent has left to steer cannot be removed");
    }
    Err(why)
}
