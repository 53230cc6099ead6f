//! Accept queues of this node's pods, for routes that scale by them: one task that reads them four times a second, and that
//! loads nothing and does nothing while there is no such route.
//!
//! ```text
//! snapshot ─► routes that ask ─► their pods of this node ─► Queues::queue ─► Waiting ─► counts (gRPC), /state, /metrics
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    error::Error as _,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use dataplane::{Queue, QueueError, Queues, Unread};
use interceptor_core::{UpstreamId, direct::Life, route::DataPath};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use runtime::snapshot::Reader;
use tokio::time::{Instant, MissedTickBehavior, interval};

mod metrics;

use self::metrics::BacklogMetrics;
use crate::control::waiting::{Backlog, Waiting};

/// Between two readings.
const READ: Duration = Duration::from_millis(250);

/// How often it is looked anew where pods' addresses are: at the most, while one is not found, and at the least.
const LOOK: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What `/state` tells of the readings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    known: Arc<Mutex<Known>>,
    /// What was read.
    pub(crate) waiting: Waiting,
}

/// What is known of the readings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Whether a route asks for them.
    pub(crate) asked: bool,
    /// Why nothing is read, if so.
    pub(crate) off: Option<String>,
    /// Pods whose accept queues are not known, and why.
    pub(crate) unread: Vec<(SocketAddr, Unread)>,
}

/// The task.
#[derive(Debug)]
pub(crate) struct Task {
    node: String,
    reader: Reader,
    report: Report,
    metrics: BacklogMetrics,
    queues: Loaded,
    looked: Option<Instant>,
}

/// Whether there is anything to read with.
#[derive(Debug)]
enum Loaded {
    /// Nobody has asked yet.
    No,
    Yes(Box<Queues>),
    Failed,
}

/// Pods of this node whose accept queues are asked for.
type Asked = BTreeMap<UpstreamId, Vec<(SocketAddr, Life)>>;

// === impl Report ===

impl Report {
    pub(crate) fn load(&self) -> Known {
        self.known.lock().clone()
    }
}

// === impl Task ===

impl Task {
    /// Does nothing yet; what it will find is registered.
    pub(crate) fn new(node: String, reader: Reader, registry: &mut Registry) -> Self {
        let (report, metrics) = (Report::default(), BacklogMetrics::register(registry));
        BacklogMetrics::register_routes(registry, reader.clone(), report.waiting.clone());
        Self { node, reader, report, metrics, queues: Loaded::No, looked: None }
    }

    /// What waits, for those who tell of it.
    pub(crate) fn waiting(&self) -> Waiting {
        self.report.waiting.clone()
    }

    pub(crate) fn report(&self) -> Report {
        self.report.clone()
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self) -> Result<(), Infallible> {
        let mut reads = interval(READ);
        reads.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = self.asked();
            self.report.known.lock().asked = !asked.is_empty();
            if asked.is_empty() {
                self.unload();
                self.tell(BTreeMap::new(), Vec::new());
                self.reader.published().await;
                continue;
            }
            self.load().await;
            self.read(&asked);
            tokio::select! {
                () = self.reader.published() => {}
                _ = reads.tick() => {}
            }
        }
    }

    /// An upstream without pods on this node is among them: that nobody waits there is known.
    fn asked(&self) -> Asked {
        let snapshot = self.reader.load();
        let routes = snapshot.routes.values().filter(|entry| entry.route.data_path == DataPath::Direct);
        let asking = routes.filter(|entry| entry.route.scaling.accept_queue.is_some());
        let upstreams: BTreeSet<_> = asking.map(|entry| entry.upstream).collect();
        let pods = |id| {
            let direct = snapshot.upstream(id).and_then(|upstream| upstream.direct.as_deref());
            let pods = direct.into_iter().flat_map(|direct| &direct.pods);
            pods.filter(|(_, pod)| pod.is_on(&self.node)).map(|(addr, pod)| (*addr, pod.life)).collect()
        };
        upstreams.into_iter().map(|id| (id, pods(id))).collect()
    }

    /// In a thread of its own: reading all of the kernel's type information takes its time.
    async fn load(&mut self) {
        if !matches!(self.queues, Loaded::No) {
            return;
        }
        let loaded = match tokio::task::spawn_blocking(Queues::open).await {
            Ok(loaded) => loaded.map_err(|error| with_source(&error)),
            Err(error) => Err(error.to_string()),
        };
        self.metrics.active(loaded.is_ok());
        self.queues = match loaded {
            Ok(queues) => Loaded::Yes(Box::new(queues)),
            Err(why) => {
                tracing::warn!(
                    why,
                    "accept queues are not read on this node: routes that scale by them have no number"
                );
                self.report.known.lock().off = Some(why);
                Loaded::Failed
            }
        };
    }

    fn unload(&mut self) {
        if matches!(self.queues, Loaded::Yes(_)) {
            self.queues = Loaded::No;
            self.looked = None;
            self.metrics.active(false);
            self.metrics.pods(0, 0);
        }
    }

    fn read(&mut self, asked: &Asked) {
        let mut waiting = BTreeMap::new();
        let mut unread = Vec::new();
        let is_old = |looked: Option<Instant>, age| looked.is_none_or(|looked| looked.elapsed() >= age);
        if is_old(self.looked, LOOK[1]) {
            self.look();
        }
        for (id, pods) in asked {
            let mut backlog = Backlog::default();
            let mut seen = BTreeSet::new();
            for (addr, life) in pods {
                let mut queue = self.queue(*addr);
                if queue == Err(Some(Unread::Nowhere)) && is_old(self.looked, LOOK[0]) {
                    self.look();
                    queue = self.queue(*addr);
                }
                match queue {
                    Ok(Some(queue)) if seen.insert(queue.id) => backlog.depth += u64::from(queue.depth),
                    // Nobody listens there, or it listens at another of the pod's addresses, too.
                    Ok(_) => {}
                    // Its network goes before its slice says so.
                    Err(Some(Unread::Nowhere)) if *life == Life::Ending => {}
                    Err(why) => {
                        backlog.unknown = true;
                        unread.extend(why.map(|why| (*addr, why)));
                    }
                }
            }
            waiting.insert(*id, backlog);
        }
        self.metrics
            .pods(asked.values().map(Vec::len).sum(), waiting.values().filter(|backlog| backlog.unknown).count());
        self.tell(waiting, unread);
    }

    /// Without a reason when there is nothing to read with, which has been said.
    fn queue(&mut self, addr: SocketAddr) -> Result<Option<Queue>, Option<Unread>> {
        match &mut self.queues {
            Loaded::Yes(queues) => queues.queue(addr).map_err(Some),
            Loaded::No | Loaded::Failed => Err(None),
        }
    }

    fn look(&mut self) {
        let Loaded::Yes(queues) = &mut self.queues else { return };
        if let Err(error) = queues.look() {
            tracing::warn!(%error, "pods' network namespaces cannot be looked for");
        }
        self.looked = Some(Instant::now());
    }

    fn tell(&self, waiting: BTreeMap<UpstreamId, Backlog>, unread: Vec<(SocketAddr, Unread)>) {
        self.report.waiting.set(waiting);
        let mut known = self.report.known.lock();
        for (pod, why) in unread.iter().filter(|one| !known.unread.contains(one)) {
            tracing::warn!(%pod, %why, "a pod's accept queue is not known");
        }
        known.unread = unread;
    }
}

fn with_source(error: &QueueError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
