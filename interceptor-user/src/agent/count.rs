//! Counting on this node: one task that keeps the programs on the cgroups of the pods that direct routes lead to, reads
//! their counters four times a second, and hands them to the counts stream, `/state` and the metrics.
//!
//! ```text
//! snapshot ─► Count::sync (addresses)        cgroups come and go ─► Count::follow (attach)
//! four times a second ─► Count::counters ─► Meter ─► Taken ─► counts (gRPC), /state, /metrics
//! ring buffer ─► a pod listens ─► hold, probe · pods have something to do ─► the same reading, at once, and Edges
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use dataplane::{
    ConnectionCounters,
    count::{Count, CountError, Followed, Origins, Served, Told},
    pods::Changes,
};
use interceptor_core::{Snapshot, UpstreamId, inflight::EdgeSink as _, route::DataPath};
use parking_lot::Mutex;
use runtime::snapshot::Reader;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

mod left_out;
mod meters;
mod metrics;

pub(crate) use self::metrics::CountMetrics;
use self::{
    left_out::{ignored, own, probes},
    meters::Meters,
};
use super::{
    hold::Listens,
    pins::{Part, Pins},
};
use crate::{
    control::{
        counts::Edges,
        discover::FollowedPod,
        namespaces::Addresses,
        taken::{Pods, Taken},
    },
    probe::Handle,
};

/// Between two readings. A route that turns active by what its pods take is read at once, which the programs tell.
const READ: Duration = Duration::from_millis(250);

/// Readings between these take at most one part in so many of the time.
const SHARE: u32 = 5;

/// Notices that are read before other things are looked at.
const BATCH: usize = 64;

/// How often the maps are read back and mended.
const REPAIR: Duration = Duration::from_secs(30);

/// What `/state` tells of the counting.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report(Arc<Mutex<Known>>);

/// What is known of the counting.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Why nothing is counted, if so.
    pub(crate) off: Option<String>,
    /// Why requests of HTTP/2 are not counted, if so.
    pub(crate) without_http2: Option<String>,
    /// Below which folder pods' cgroups are looked for.
    pub(crate) root: String,
    /// UIDs of the pods that are counted.
    pub(crate) pods: Vec<String>,
    /// Those that should be and are not, and why.
    pub(crate) refused: Vec<(String, String)>,
    /// Those that the kernel's maps have no room for.
    pub(crate) left_out: BTreeSet<UpstreamId>,
    /// Why these maps may not be in step, if so.
    pub(crate) failed: Option<String>,
    /// Addresses of interceptors, whose connections are left out.
    pub(crate) interceptors: Vec<IpAddr>,
}

/// The task.
#[derive(Debug)]
pub(crate) struct Task {
    count: Result<Count, String>,
    pins: Pins,
    reader: Reader,
    interceptors: watch::Receiver<Vec<FollowedPod>>,
    namespaces: watch::Receiver<Addresses>,
    taken: Taken,
    report: Report,
    metrics: CountMetrics,
    changes: Changes,
    meters: Meters,
    /// Those that had nothing to do, of which the programs tell when they have.
    rests: HashSet<UpstreamId>,
    /// Those that they have told of since the last reading.
    busy: HashSet<UpstreamId>,
    /// Before which time there is no reading out of turn.
    rested: Instant,
    /// This machine's addresses, as they were when they were last looked at.
    own: Vec<IpAddr>,
    origins: Origins,
    wakes: Wakes,
    seen: watch::Sender<Seen>,
}

/// The last snapshot whose pods are counted, as far as they can be; none before all objects were read.
pub(crate) type Seen = Option<Arc<Snapshot>>;

/// Whom the programs' notices concern.
#[derive(Debug)]
pub(crate) struct Wakes {
    /// Routes that turn active.
    pub(crate) edges: Arc<Edges>,
    /// Connections that wait for a pod that listens. Bounded; when it is full they wait for their next try.
    pub(crate) hold: mpsc::Sender<Listens>,
    /// Pods that are asked whether they are ready.
    pub(crate) prober: Handle,
}

// === impl Report ===

impl Report {
    pub(crate) fn load(&self) -> Known {
        self.0.lock().clone()
    }
}

// === impl Task ===

impl Task {
    pub(crate) fn new(
        (count, pins): (Result<Count, CountError>, Pins),
        reader: Reader,
        (interceptors, namespaces): (watch::Receiver<Vec<FollowedPod>>, watch::Receiver<Addresses>),
        wakes: Wakes,
        metrics: CountMetrics,
    ) -> Self {
        let report = Report::default();
        let count = count.map_err(|error| with_source(&error));
        match &count {
            Ok(count) => {
                let mut known = report.0.lock();
                known.root = count.root().display().to_string();
                known.without_http2 = count.without_http2().map(str::to_owned);
                if let Some(why) = &known.without_http2 {
                    tracing::warn!(
                        why,
                        "connections of HTTP/2 to direct routes are counted on this node, their requests are not"
                    );
                }
                metrics.http2(known.without_http2.is_none());
            }
            Err(why) => {
                tracing::warn!(why, "requests of direct routes are not counted on this node");
                report.0.lock().off = Some(why.clone());
            }
        }
        metrics.active(count.is_ok());
        Self {
            count,
            pins,
            reader,
            interceptors,
            namespaces,
            taken: Taken::default(),
            report,
            metrics,
            changes: Changes::new(),
            meters: Meters::default(),
            rests: HashSet::new(),
            busy: HashSet::new(),
            rested: Instant::now(),
            own: Vec::new(),
            origins: Origins::default(),
            wakes,
            seen: watch::Sender::new(None),
        }
    }

    /// For who sends to pods, and lets them be counted first.
    pub(crate) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// What pods take, for those who tell of it.
    pub(crate) fn taken(&self) -> Taken {
        self.taken.clone()
    }

    pub(crate) fn report(&self) -> Report {
        self.report.clone()
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self, mut complete: watch::Receiver<bool>) -> io::Result<()> {
        // Until then the programs go on as an agent before has left them: who is missing now may only not have been read.
        if complete.wait_for(|complete| *complete).await.is_err() {
            return std::future::pending().await;
        }
        let Ok(count) = &self.count else {
            loop {
                let snapshot = self.reader.load();
                self.taken.set(BTreeMap::new(), Arc::clone(&snapshot));
                self.seen.send_replace(Some(snapshot));
                self.reader.published().await;
            }
        };
        let arrivals = count.arrivals()?;
        let (mut reads, mut repairs) = (interval(READ), interval(REPAIR));
        reads.set_missed_tick_behavior(MissedTickBehavior::Delay);
        repairs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was published before this ran.
        self.sync();
        let mut more = false;
        loop {
            tokio::select! {
                biased;
                arrived = arrivals.arrived(), if !more => {
                    arrived?;
                    more = self.notices();
                }
                // Others on this thread have their turn before there is more.
                () = tokio::task::yield_now(), if more => more = self.notices(),
                () = sleep_until(self.rested), if !self.busy.is_empty() => self.read(),
                () = self.reader.published() => self.sync(),
                () = self.changes.changed() => {
                    self.follow();
                    self.leave_out();
                }
                Ok(()) = self.interceptors.changed() => self.leave_out(),
                Ok(()) = self.namespaces.changed() => self.leave_out(),
                _ = reads.tick() => self.read(),
                _ = repairs.tick() => self.repair(),
            }
        }
    }

    /// Reads what the programs have told; whether there may be more.
    fn notices(&mut self) -> bool {
        let Ok(count) = &mut self.count else { return false };
        for _ in 0..BATCH {
            match count.told() {
                Some(Told::Listens { addr, at }) => {
                    self.metrics.listened();
                    if self.wakes.hold.try_send((addr, at)).is_err() {
                        self.metrics.notice_dropped();
                    }
                    self.wakes.prober.listens(addr);
                }
                Some(Told::Busy(upstream)) => {
                    self.metrics.woken();
                    self.busy.insert(upstream);
                }
                None => return false,
            }
        }
        true
    }

    fn sync(&mut self) {
        let Ok(count) = &mut self.count else { return };
        let snapshot = self.reader.load();
        match count.sync(&mut snapshot.upstreams()) {
            Ok(report) => {
                self.metrics.left_out(report.left_out.len());
                let mut known = self.report.0.lock();
                known.left_out = report.left_out.iter().map(|left| left.upstream).collect();
                known.failed = None;
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel's list of pods to count is not in step");
                self.report.0.lock().failed = Some(error.to_string());
            }
        }
        let target = |id| snapshot.upstream(id).map(|upstream| &upstream.target);
        self.meters.keep(|id, of| target(id) == Some(of) && count.counts(id));
        self.rests.retain(|id| self.meters.knows(*id));
        if count.wants_others() {
            self.follow();
        }
        self.leave_out();
        let routes = snapshot.routes.clone();
        let before = self.seen.send_replace(Some(snapshot));
        // Scalers are told of a route once there was a reading for it.
        if before.is_none_or(|before| !before.routes.ptr_eq(&routes)) {
            self.read();
        }
    }

    /// Looks for pods, and at the machine's own addresses, which change with the first and the last of them.
    fn follow(&mut self) {
        self.own = own();
        let Ok(count) = &mut self.count else { return };
        match count.follow() {
            Ok(Followed { attached: _, gone: _, missing, parents }) => {
                self.changes.watch(&parents);
                let mut known = self.report.0.lock();
                known.pods = count.pods().map(str::to_owned).collect();
                known.refused = count.refused().map(|(uid, why)| (uid.to_owned(), why.to_owned())).collect();
                self.metrics.pods(known.pods.len(), known.refused.len(), missing);
            }
            Err(error) => tracing::warn!(error = with_source(&error), "pods' cgroups cannot be followed"),
        }
    }

    /// Whose connections are no demand.
    fn leave_out(&mut self) {
        let Ok(count) = &mut self.count else { return };
        // Whatever their state: one that is not ready any more may still be sending.
        let mut interceptors: Vec<_> = self.interceptors.borrow_and_update().iter().map(|pod| pod.address).collect();
        interceptors.dedup();
        let snapshot = self.reader.load();
        let ignored = ignored(&snapshot, &self.namespaces.borrow_and_update());
        let origins = Origins { own: self.own.clone(), interceptors, ignored, probes: probes(&snapshot) };
        // The kernel may know by now of Services and pods that it did not when they were left out.
        if origins == self.origins && origins.ignored.is_empty() && origins.probes.is_empty() {
            return;
        }
        match count.set_origins(&origins) {
            Ok(refused) => {
                self.metrics.origins_refused(refused);
                self.report.0.lock().interceptors.clone_from(&origins.interceptors);
                self.origins = origins;
            }
            Err(error) => tracing::warn!(%error, "the kernel does not know whose connections are left out"),
        }
    }

    fn read(&mut self) {
        let Ok(count) = &mut self.count else { return };
        let Some(snapshot) = self.seen.borrow().clone() else { return };
        let began = Instant::now();
        let (now_ns, counters) = count.counters();
        let mut taken = BTreeMap::new();
        let mut rests = Vec::new();
        for (id, served) in counters {
            let Some(target) = snapshot.upstream(id).map(|upstream| &upstream.target) else { continue };
            let load = self.meters.read((id, target), now_ns, &served);
            if load.in_flight > 0 {
                self.rests.remove(&id);
            } else if !self.rests.contains(&id) {
                rests.push((id, served));
            }
            taken.insert(id, Pods { load, connections: connections(&served, now_ns), served });
        }
        self.taken.set(taken, Arc::clone(&snapshot));
        self.rest(&rests);
        if !self.busy.is_empty() {
            let busy = std::mem::take(&mut self.busy);
            let routes = snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct);
            routes.filter(|entry| busy.contains(&entry.upstream)).for_each(|entry| self.wakes.edges.edge(entry.id));
        }
        let ended = Instant::now();
        self.rested = ended + (ended - began) * (SHARE - 1);
    }

    /// Asks to be told when these have something to do.
    fn rest(&mut self, rests: &[(UpstreamId, Served)]) {
        let Ok(count) = &mut self.count else { return };
        if rests.is_empty() {
            return;
        }
        for (id, _) in rests {
            match count.rest(*id) {
                Ok(()) => _ = self.rests.insert(*id),
                Err(error) => tracing::warn!(%error, "the kernel is not asked to tell when pods have something to do"),
            }
        }
        // What began since it was read and before that was not told.
        let (_, counters) = count.counters();
        let now: HashMap<_, _> = counters.into_iter().collect();
        let moved = |before: &Served, now: &Served| (before.started, before.moving) != (now.started, now.moving);
        let missed = rests.iter().filter(|(id, before)| now.get(id).is_some_and(|now| moved(before, now)));
        self.busy.extend(missed.map(|(id, _)| *id));
    }

    fn repair(&mut self) {
        let Ok(count) = &mut self.count else { return };
        match count.repair() {
            Ok(report) => self.metrics.drift(report.missing + report.foreign + report.wrong),
            Err(error) => tracing::warn!(%error, "the kernel's list of pods to count could not be checked"),
        }
        self.metrics.put_back(count.put_back());
        self.pins.tell(Part::Count, count.not_pinned());
        self.metrics.missed(count.missed());
        self.metrics.untold(count.untold());
        // Cgroups that refused the programs may take them by now, and addresses have changed without anything else.
        self.follow();
        self.leave_out();
    }
}

fn connections(served: &Served, now_ns: u64) -> ConnectionCounters {
    let Served { opened, closed, failed, srtt_us, last_ns, .. } = *served;
    let last_activity = (last_ns > 0).then(|| Duration::from_nanos(now_ns.saturating_sub(last_ns)));
    // CPUs are read one after the other, so a close may be seen whose opening was not.
    ConnectionCounters { opened, closed: closed.min(opened), failed, srtt_us, last_activity }
}

fn with_source(error: &CountError) -> String {
    use std::error::Error as _;

    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    // The verifier's log may be long, and says at its end what it did not like.
    match text.char_indices().nth_back(MOST) {
        Some((at, _)) => format!("… {}", &text[at..]),
        None => text,
    }
}

/// Characters of a reason that are told.
const MOST: usize = 600;
