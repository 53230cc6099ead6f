//! Counting on this node: one task that keeps the programs on the cgroups of the pods that direct routes lead to, reads
//! their counters four times a second, and hands them to the counts stream, `/state` and the metrics.
//!
//! ```text
//! snapshot ─► Count::sync (addresses)        cgroups come and go ─► Count::follow (attach)
//! four times a second ─► Count::counters ─► Meter ─► Taken ─► counts (gRPC), /state, /metrics
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use dataplane::{
    ConnectionCounters, addresses,
    count::{Count, CountError, Followed, Meter, Origins, Served},
    pods::Changes,
};
use interceptor_core::{UpstreamId, route::Target};
use parking_lot::Mutex;
use runtime::snapshot::Reader;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

mod metrics;

pub(crate) use self::metrics::CountMetrics;
use crate::control::taken::{Pods, Taken};

/// Between two readings: a route that turns active by what its pods take is told so within this time.
const READ: Duration = Duration::from_millis(250);

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
    /// Whether requests of HTTP/2 are counted too.
    pub(crate) http2: bool,
    /// Below which folder pods' cgroups are looked for.
    pub(crate) root: String,
    /// UIDs of the pods that are counted.
    pub(crate) pods: Vec<String>,
    /// Those that should be and are not, and why.
    pub(crate) refused: Vec<(String, String)>,
    /// Addresses of interceptors, whose connections are left out.
    pub(crate) interceptors: Vec<IpAddr>,
}

/// The task.
#[derive(Debug)]
pub(crate) struct Task {
    count: Result<Count, String>,
    reader: Reader,
    interceptors: watch::Receiver<Vec<IpAddr>>,
    taken: Taken,
    report: Report,
    metrics: CountMetrics,
    changes: Changes,
    /// What was read of each upstream, for as long as its id means the same target.
    meters: HashMap<UpstreamId, (Target, Meter)>,
    origins: Origins,
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
        count: Result<Count, CountError>,
        reader: Reader,
        interceptors: watch::Receiver<Vec<IpAddr>>,
        metrics: CountMetrics,
    ) -> Self {
        let report = Report::default();
        let count = count.map_err(|error| with_source(&error));
        match &count {
            Ok(count) => {
                let mut known = report.0.lock();
                known.root = count.root().display().to_string();
                known.http2 = count.counts_http2();
                if !known.http2 {
                    tracing::warn!(
                        "requests of HTTP/2 to direct routes are not counted on this node: missing CAP_PERFMON"
                    );
                }
            }
            Err(why) => {
                tracing::warn!(why, "requests of direct routes are not counted on this node");
                report.0.lock().off = Some(why.clone());
            }
        }
        metrics.active(count.is_ok());
        Self {
            count,
            reader,
            interceptors,
            taken: Taken::default(),
            report,
            metrics,
            changes: Changes::new(),
            meters: HashMap::new(),
            origins: Origins::default(),
        }
    }

    /// What pods take, for those who tell of it.
    pub(crate) fn taken(&self) -> Taken {
        self.taken.clone()
    }

    pub(crate) fn report(&self) -> Report {
        self.report.clone()
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self) -> Result<(), Infallible> {
        if self.count.is_err() {
            return std::future::pending().await;
        }
        let (mut reads, mut repairs) = (interval(READ), interval(REPAIR));
        reads.set_missed_tick_behavior(MissedTickBehavior::Delay);
        repairs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was published before this ran.
        self.sync();
        loop {
            tokio::select! {
                () = self.reader.published() => self.sync(),
                () = self.changes.changed() => self.follow(),
                Ok(()) = self.interceptors.changed() => self.leave_out(),
                _ = reads.tick() => self.read(),
                _ = repairs.tick() => self.repair(),
            }
        }
    }

    fn sync(&mut self) {
        let Ok(count) = &mut self.count else { return };
        let snapshot = self.reader.load();
        match count.sync(&mut snapshot.upstreams()) {
            Ok(report) => self.metrics.left_out(report.left_out.len()),
            Err(error) => tracing::warn!(%error, "the kernel's list of pods to count is not in step"),
        }
        let target = |id| snapshot.upstream(id).map(|upstream| &upstream.target);
        self.meters.retain(|id, (of, _)| target(*id) == Some(of));
        self.follow();
        self.leave_out();
    }

    fn follow(&mut self) {
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

    /// Whose connections are no demand. The machine's own addresses change rarely, and are looked at whenever anything does.
    fn leave_out(&mut self) {
        let Ok(count) = &mut self.count else { return };
        let mut own: Vec<_> = addresses().unwrap_or_default().into_iter().map(|(ip, _)| ip).collect();
        own.extend([IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]);
        let interceptors = self.interceptors.borrow_and_update().clone();
        let origins = Origins { own, interceptors, ignored: Vec::new() };
        if origins == self.origins {
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
        let Ok(count) = &self.count else { return };
        let snapshot = self.reader.load();
        let (now_ns, counters) = count.counters();
        let mut taken = BTreeMap::new();
        for (id, served) in counters {
            let Some(target) = snapshot.upstream(id).map(|upstream| &upstream.target) else { continue };
            let (_, meter) = self.meters.entry(id).or_insert_with(|| (target.clone(), Meter::default()));
            let load = meter.read(now_ns, &served);
            taken.insert(id, Pods { load, connections: connections(&served, now_ns), served });
        }
        self.taken.set(taken);
    }

    fn repair(&mut self) {
        let Ok(count) = &mut self.count else { return };
        match count.repair() {
            Ok(report) => self.metrics.drift(report.missing + report.foreign + report.wrong),
            Err(error) => tracing::warn!(%error, "the kernel's list of pods to count could not be checked"),
        }
        self.metrics.missed(count.missed());
        // Addresses of this machine may have changed without anything else.
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
