//! Ready sooner than the kubelet says: while requests are held for a Service without a ready endpoint, its starting pods
//! are asked by their own readiness probe, and count as ready at once when they answer.
//!
//! ```text
//! snapshot (pending endpoints, probe) ─┐
//! who is waited for ───────────────────┴► Prober ─► rounds (a task a Service: ask every 1–25 ms)
//! workers: a pod refused ──────────────► Prober ◄── answered ┘
//!                                           └─► Verdict ─► discovery ─► snapshot ─► held requests go on
//! ```
//!
//! Nothing is asked for what nobody waits for. A verdict ends when a slice confirms it or the pod goes, which the index
//! sees to; when a connection to the pod is refused; and when the kubelet takes longer than it can take.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use interceptor_core::{ObjectKey, Snapshot, probe::Probe};
use parking_lot::Mutex;
use runtime::{
    snapshot::{Reader, Waited},
    task,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

mod ask;
mod metrics;
mod round;

#[cfg(test)]
mod tests;

pub(crate) use self::metrics::ProbeMetrics;
use self::round::Round;

/// Probes under way at once, over all Services: each takes a descriptor.
const MAX_PROBES: usize = 256;

/// Pods whose verdict is remembered, or whose failure; more than are ever woken at once. When it is full, no more are
/// taken as ready by their probe until some are confirmed.
const MAX_REMEMBERED: usize = 4096;

/// Refusals that wait to be looked at. When it is full, more are dropped: the pods they name refuse again.
const REFUSALS: usize = 64;

/// How long a pod is left alone that answered its probe and then refused a connection; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(8);

/// What discovery is to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A pod of the Service answered its probe.
    Answered(ObjectKey, IpAddr),
    /// That counts no longer.
    Gone(ObjectKey, IpAddr),
}

/// What the request path knows of probing, and tells.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    refusals: mpsc::Sender<SocketAddr>,
    listening: mpsc::Sender<SocketAddr>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// How many pods count as ready by their probe alone.
    early: AtomicUsize,
    /// When a pod of the Service answered last; at most [`MAX_REMEMBERED`].
    answered: Mutex<HashMap<ObjectKey, Instant>>,
}

/// The task.
#[derive(Debug)]
pub(crate) struct Prober {
    reader: Reader,
    waited: Waited,
    verdicts: mpsc::Sender<Verdict>,
    refusals: mpsc::Receiver<SocketAddr>,
    listening: mpsc::Receiver<SocketAddr>,
    answers: (mpsc::Sender<Pod>, mpsc::Receiver<Pod>),
    limit: Arc<Semaphore>,
    /// How many rounds there are, for themselves.
    running: Arc<AtomicUsize>,
    shared: Arc<Shared>,
    metrics: ProbeMetrics,
    rounds: HashMap<ObjectKey, Running>,
    pods: HashMap<Pod, Memory>,
}

/// A pod of a Service.
type Pod = (ObjectKey, IpAddr);

/// What is known of a pod that answered.
#[derive(Clone, Copy, Debug)]
enum Memory {
    /// It counts as ready, until the index or the time says otherwise.
    Early { until: Instant, seen: bool, refused: u32 },
    /// It is left alone until then, and remembered for some time more.
    Doubted { until: Instant, refused: u32 },
}

/// The round of a Service; it and all its probes end when dropped.
#[derive(Debug)]
struct Running {
    probe: Arc<Probe>,
    pods: watch::Sender<BTreeSet<IpAddr>>,
    listens: Arc<Notify>,
    task: JoinHandle<()>,
}

/// The task, the handle to it, and what it says.
pub(crate) fn channel(reader: Reader, metrics: ProbeMetrics) -> (Prober, Handle, mpsc::Receiver<Verdict>) {
    let (refused, refusals) = mpsc::channel(REFUSALS);
    let (listens, listening) = mpsc::channel(REFUSALS);
    let (verdicts, said) = mpsc::channel(REFUSALS);
    let shared = Arc::new(Shared::default());
    let prober = Prober {
        waited: reader.waited(),
        reader,
        verdicts,
        refusals,
        listening,
        answers: mpsc::channel(REFUSALS),
        limit: Arc::new(Semaphore::new(MAX_PROBES)),
        running: Arc::default(),
        shared: Arc::clone(&shared),
        metrics,
        rounds: HashMap::new(),
        pods: HashMap::new(),
    };
    (prober, Handle { refusals: refused, listening: listens, shared }, said)
}

// === impl Handle ===

impl Handle {
    /// An endpoint did not take a connection. Free while no pod counts as ready by its probe alone.
    pub(crate) fn refused(&self, addr: SocketAddr) {
        if self.shared.early.load(Relaxed) > 0 {
            // A full queue has enough to do; the pod will refuse again.
            let _ = self.refusals.try_send(addr);
        }
    }

    /// A pod has begun to listen there; the unspecified address is any of its own. It is asked at once, if it is asked at all.
    pub(crate) fn listens(&self, addr: SocketAddr) {
        // When the queue is full, it is asked at its next turn.
        let _ = self.listening.try_send(addr);
    }

    /// When a pod of the Service last answered its probe before a slice said that it is ready.
    pub(crate) fn answered(&self, service: &ObjectKey) -> Option<Instant> {
        self.shared.answered.lock().get(service).copied()
    }
}

// === impl Prober ===

impl Prober {
    /// Runs until the process ends.
    pub(crate) async fn run(mut self) -> Result<(), Infallible> {
        loop {
            let wake = self.refresh(Instant::now());
            tokio::select! {
                () = self.waited.changed() => {}
                () = self.reader.published() => {}
                Some(pod) = self.answers.1.recv() => self.answered(pod).await,
                Some(addr) = self.refusals.recv() => self.refused(addr).await,
                Some(addr) = self.listening.recv() => self.listens(addr),
                () = sleep(wake) => self.expire(Instant::now()).await,
            }
        }
    }

    /// Brings the rounds in step with what is waited for. Returns when to look again if nothing happens.
    fn refresh(&mut self, now: Instant) -> Option<Instant> {
        let snapshot = self.reader.load();
        self.forget(&snapshot, now);
        let mut wanted = self.wanted(&snapshot);
        wanted.retain(|service, (_, pods)| {
            pods.retain(|pod| self.pods.get(&(service.clone(), *pod)).is_none_or(|memory| memory.may_be_asked(now)));
            !pods.is_empty()
        });
        self.rounds.retain(|service, running| {
            let stays = wanted.get(service).is_some_and(|(probe, _)| *probe == running.probe);
            if !stays {
                tracing::debug!(%service, "pods are no longer asked whether they are ready");
            }
            stays
        });
        for (service, (probe, pods)) in wanted {
            match self.rounds.get(&service) {
                Some(running) => drop(running.pods.send_if_modified(|known| {
                    let differs = *known != pods;
                    *known = pods;
                    differs
                })),
                None => self.begin(service, probe, pods),
            }
        }
        self.running.store(self.rounds.len(), Relaxed);
        let times = self.pods.values().filter(|memory| memory.is_early() || memory.until() > now);
        times.map(Memory::until).min()
    }

    /// By Service: how to ask its pods, and which, for as long as somebody waits for it and none is ready.
    fn wanted(&self, snapshot: &Snapshot) -> HashMap<ObjectKey, (Arc<Probe>, BTreeSet<IpAddr>)> {
        let mut wanted: HashMap<ObjectKey, (Arc<Probe>, BTreeSet<IpAddr>)> = HashMap::new();
        let mut ids = self.waited.ids();
        ids.sort_unstable();
        for upstream in ids.into_iter().filter_map(|id| snapshot.upstream(id)) {
            let Some(probe) = upstream.probe.as_ref().filter(|_| upstream.endpoints.is_empty()) else { continue };
            // Routes of one Service share its pods, and so their answers.
            let new = || (Arc::clone(probe), BTreeSet::new());
            let (_, pods) = wanted.entry(upstream.target.service.clone()).or_insert_with(new);
            pods.extend(upstream.pending.keys().map(SocketAddr::ip));
        }
        wanted
    }

    fn begin(&mut self, service: ObjectKey, probe: Arc<Probe>, pods: BTreeSet<IpAddr>) {
        tracing::debug!(%service, probe = %probe.action, pods = pods.len(), "pods are asked whether they are ready");
        let (sender, receiver) = watch::channel(pods);
        let listens = Arc::new(Notify::new());
        let round = Round {
            service: service.clone(),
            probe: Arc::clone(&probe),
            pods: receiver,
            listens: Arc::clone(&listens),
            answers: self.answers.0.clone(),
            limit: Arc::clone(&self.limit),
            rounds: Arc::clone(&self.running),
            metrics: self.metrics.clone(),
        };
        let task = task::spawn("probe-round", round.run());
        self.rounds.insert(service, Running { probe, pods: sender, listens, task });
    }

    fn listens(&self, addr: SocketAddr) {
        let is_any = addr.ip().is_unspecified();
        for running in self.rounds.values().filter(|running| running.probe.action.port() == addr.port()) {
            if is_any || running.pods.borrow().contains(&addr.ip()) {
                running.listens.notify_one();
            }
        }
    }

    async fn answered(&mut self, (service, pod): Pod) {
        let Some(running) = self.rounds.get(&service) else { return };
        let refused = match self.pods.get(&(service.clone(), pod)) {
            Some(Memory::Doubted { refused, .. }) => *refused,
            Some(Memory::Early { .. }) => return,
            None if self.pods.len() >= MAX_REMEMBERED => {
                self.metrics.skipped();
                return;
            }
            None => 0,
        };
        let now = Instant::now();
        let until = now + running.probe.patience();
        tracing::debug!(%service, %pod, "pod answered its readiness probe and counts as ready");
        self.metrics.woken();
        self.pods.insert((service.clone(), pod), Memory::Early { until, seen: false, refused });
        self.note(now, &service);
        self.say(Verdict::Answered(service, pod)).await;
    }

    /// For the times of a cold start.
    fn note(&self, now: Instant, service: &ObjectKey) {
        self.shared.early.store(self.pods.values().filter(|memory| memory.is_early()).count(), Relaxed);
        let mut answered = self.shared.answered.lock();
        if answered.len() >= MAX_REMEMBERED {
            answered.clear();
        }
        answered.insert(service.clone(), now);
    }

    async fn refused(&mut self, addr: SocketAddr) {
        let early = |(pod, memory): (&Pod, &Memory)| (pod.1 == addr.ip() && memory.is_early()).then(|| pod.clone());
        let pods: Vec<_> = self.pods.iter().filter_map(early).collect();
        for pod in pods {
            let refused = self.pods.get(&pod).map_or(0, Memory::refused);
            let pause = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(refused).unwrap_or(u32::MAX)).min(MAX_PAUSE);
            tracing::debug!(service = %pod.0, pod = %pod.1, ?pause, "pod refused a connection and counts as not ready");
            self.metrics.dropped_refused();
            self.doubt(pod, Instant::now() + pause, refused.saturating_add(1)).await;
        }
    }

    async fn expire(&mut self, now: Instant) {
        let over = self.pods.iter().filter(|(_, memory)| memory.is_early() && memory.until() <= now);
        let over: Vec<_> = over.map(|(pod, _)| pod.clone()).collect();
        for pod in over {
            let (service, ip) = &pod;
            tracing::info!(%service, pod = %ip, "pod answered its readiness probe, but no slice says that it is ready");
            self.metrics.dropped_unconfirmed();
            // As long again as it has been given.
            let patience = self.probe_of(service).map_or(MAX_PAUSE, |probe| probe.patience());
            self.doubt(pod, now + patience, 0).await;
        }
    }

    async fn doubt(&mut self, pod: Pod, until: Instant, refused: u32) {
        self.pods.insert(pod.clone(), Memory::Doubted { until, refused });
        self.shared.early.store(self.pods.values().filter(|memory| memory.is_early()).count(), Relaxed);
        self.say(Verdict::Gone(pod.0, pod.1)).await;
    }

    fn probe_of(&self, service: &ObjectKey) -> Option<Arc<Probe>> {
        let snapshot = self.reader.load();
        snapshot.upstreams().find(|upstream| upstream.target.service == *service)?.probe.clone()
    }

    /// Forgets pods that the index has confirmed, or lost.
    fn forget(&mut self, snapshot: &Snapshot, now: Instant) {
        if self.pods.is_empty() {
            return;
        }
        let (mut early, mut pending) = (BTreeSet::new(), BTreeSet::new());
        for upstream in snapshot.upstreams().filter(|upstream| upstream.probe.is_some()) {
            let service = &upstream.target.service;
            early.extend(upstream.early.iter().map(|addr| (service, addr.ip())));
            pending.extend(upstream.pending.keys().map(|addr| (service, addr.ip())));
        }
        self.pods.retain(|(service, pod), memory| match memory {
            Memory::Early { seen, .. } => {
                let is_early = early.contains(&(service, *pod));
                *seen |= is_early;
                // Not yet published, or not any more.
                is_early || (!*seen && pending.contains(&(service, *pod)))
            }
            Memory::Doubted { until, refused: _ } => *until + MAX_PAUSE > now && pending.contains(&(service, *pod)),
        });
        self.shared.early.store(self.pods.values().filter(|memory| memory.is_early()).count(), Relaxed);
    }

    async fn say(&self, verdict: Verdict) {
        // Discovery outlives this task but for the end of the process.
        let _ = self.verdicts.send(verdict).await;
    }
}

// === impl Memory ===

impl Memory {
    fn until(&self) -> Instant {
        match self {
            Self::Early { until, .. } | Self::Doubted { until, .. } => *until,
        }
    }

    fn refused(&self) -> u32 {
        match self {
            Self::Early { refused, .. } | Self::Doubted { refused, .. } => *refused,
        }
    }

    fn may_be_asked(&self, now: Instant) -> bool {
        matches!(self, Self::Doubted { until, .. } if *until <= now)
    }

    fn is_early(&self) -> bool {
        matches!(self, Self::Early { .. })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn sleep(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}
