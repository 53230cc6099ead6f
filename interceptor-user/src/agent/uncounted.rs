//! Ready pods of this node of which nobody counts what they take: one task that compares those that slices list with those that
//! are counted, and has scalers told, so that their workloads are kept from zero.
//!
//! ```text
//! count ─► Seen (the snapshot whose pods are counted), Report (which are, and why others are not)
//!            └─► here: ready pods of this node ─► without a count ─► Uncounted ─► counts (gRPC), /state, /metrics
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use imbl::{OrdMap, ordmap::DiffItem};
use interceptor_core::{
    Snapshot, UpstreamId,
    direct::{Life, Pod},
};
use parking_lot::Mutex;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::count::{self, Seen};
use crate::control::{taken::Taken, uncounted::Uncounted};

/// Between two looks: cgroups come and go without a new snapshot.
const LOOK: Duration = Duration::from_millis(250);

/// For how long a pod's cgroup may not be there before that is told: one that ends may be gone before its slice says so.
const MISSING: Duration = Duration::from_secs(5);

/// What `/state` tells: pods by their addresses, and why they are not counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pods: Arc<Mutex<Vec<(SocketAddr, String)>>>,
    /// The upstreams that they are of.
    pub(crate) upstreams: Uncounted,
}

/// The task.
#[derive(Debug)]
pub(crate) struct Task {
    seen: watch::Receiver<Seen>,
    count: count::Report,
    taken: Taken,
    report: Report,
    uncounted: Gauge,
    here: Here,
    /// Pods whose cgroups are not there, and since when.
    missing: HashMap<Arc<str>, Instant>,
}

/// Ready pods of this node.
#[derive(Debug)]
struct Here {
    node: String,
    upstreams: BTreeMap<UpstreamId, Pods>,
}

/// Pods of an upstream: all, and the UIDs of those of this node that are ready.
#[derive(Debug, Default)]
struct Pods {
    all: OrdMap<SocketAddr, Pod>,
    ready: BTreeMap<SocketAddr, Option<Arc<str>>>,
}

// === impl Report ===

impl Report {
    /// The pods that are not counted, in order of their upstreams, and why.
    pub(crate) fn pods(&self) -> Vec<(SocketAddr, String)> {
        self.pods.lock().clone()
    }
}

// === impl Task ===

impl Task {
    /// Does nothing yet.
    pub(crate) fn new(
        node: String,
        (seen, count, taken): (watch::Receiver<Seen>, count::Report, Taken),
        registry: &mut Registry,
    ) -> Self {
        let uncounted = Gauge::default();
        registry.register(
            "rouse_count_pods_uncounted",
            "Ready pods of this node whose requests nobody counts; /state says why",
            uncounted.clone(),
        );
        let here = Here { node, upstreams: BTreeMap::new() };
        Self { seen, count, taken, report: Report::default(), uncounted, here, missing: HashMap::new() }
    }

    pub(crate) fn report(&self) -> Report {
        self.report.clone()
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self) -> Result<(), Infallible> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = self.seen.changed() => {
                    if let Some(snapshot) = &*self.seen.borrow_and_update() {
                        self.here.update(snapshot);
                    }
                }
                _ = looks.tick() => {}
            }
            self.look();
        }
    }

    fn look(&mut self) {
        let known = self.count.load();
        // Before the first reading it is not known how much those have taken that are counted.
        if self.seen.borrow().is_none() || (known.off.is_none() && !self.taken.is_read()) {
            return;
        }
        let now = Instant::now();
        let here: HashSet<_> = self.here.upstreams.values().flat_map(|pods| pods.ready.values().flatten()).collect();
        self.missing.retain(|uid, _| here.contains(uid));
        let mut told = Vec::new();
        let mut upstreams = BTreeSet::new();
        for (id, pods) in &self.here.upstreams {
            for (addr, uid) in &pods.ready {
                if let Some(why) = why(&known, (*id, uid.as_ref()), (&mut self.missing, now)) {
                    told.push((*addr, why));
                    upstreams.insert(*id);
                }
            }
        }
        self.uncounted.set(i64::try_from(told.len()).unwrap_or(i64::MAX));
        self.report.upstreams.set(upstreams);
        let mut before = self.report.pods.lock();
        // That nothing is counted at all has been said.
        for (pod, why) in told.iter().filter(|one| known.off.is_none() && !before.contains(one)) {
            tracing::warn!(%pod, why, "nobody counts what a pod takes: its workload is kept from zero");
        }
        *before = told;
    }
}

/// Why a pod is not counted, if so.
fn why(
    known: &count::Known,
    (upstream, uid): (UpstreamId, Option<&Arc<str>>),
    (missing, now): (&mut HashMap<Arc<str>, Instant>, Instant),
) -> Option<String> {
    if let Some(why) = known.off.as_ref().or(known.failed.as_ref()) {
        return Some(why.clone());
    }
    if known.left_out.contains(&upstream) {
        return Some("the kernel's maps have no room for it".to_owned());
    }
    let Some(uid) = uid else { return Some("its slice does not tell its UID".to_owned()) };
    if let Some((_, why)) = known.refused.iter().find(|(refused, _)| **refused == **uid) {
        return Some(why.clone());
    }
    if known.pods.iter().any(|counted| **counted == **uid) {
        missing.remove(uid);
        return None;
    }
    let since = *missing.entry(Arc::clone(uid)).or_insert(now);
    (now >= since + MISSING).then(|| "its cgroup is not there".to_owned())
}

// === impl Here ===

impl Here {
    fn update(&mut self, snapshot: &Snapshot) {
        let Self { node, upstreams } = self;
        let mut before = std::mem::take(upstreams);
        for upstream in snapshot.upstreams() {
            let Some(direct) = &upstream.direct else { continue };
            let mut pods = before.remove(&upstream.id).unwrap_or_default();
            pods.update(&direct.pods, node);
            upstreams.insert(upstream.id, pods);
        }
    }
}

// === impl Pods ===

impl Pods {
    /// Takes in what has changed. A pod without a node is of a list that somebody wrote by hand: no node's agent answers for it.
    fn update(&mut self, all: &OrdMap<SocketAddr, Pod>, node: &str) {
        for change in self.all.diff(all) {
            match change {
                DiffItem::Add(addr, pod) | DiffItem::Update { new: (addr, pod), .. }
                    if pod.life == Life::Ready && pod.node.as_deref() == Some(node) =>
                {
                    self.ready.insert(*addr, pod.uid.clone());
                }
                DiffItem::Add(addr, _) | DiffItem::Update { new: (addr, _), .. } | DiffItem::Remove(addr, _) => {
                    self.ready.remove(addr);
                }
            }
        }
        self.all = all.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 80);

    fn pod(node: Option<&str>, life: Life) -> Pod {
        Pod { life, name: None, uid: Some("u".into()), node: node.map(Into::into) }
    }

    fn ready(pods: &Pods) -> usize {
        pods.ready.len()
    }

    fn reason(known: &count::Known, uid: Option<&str>, waited: u64) -> Option<String> {
        let (uid, now) = (uid.map(Arc::from), Instant::now());
        let mut missing: HashMap<_, _> = uid.iter().map(|uid| (Arc::clone(uid), now)).collect();
        why(known, (UpstreamId(1), uid.as_ref()), (&mut missing, now + Duration::from_secs(waited)))
    }

    #[test]
    fn only_ready_pods_of_this_node_are_looked_at() {
        let mut pods = Pods::default();
        pods.update(&OrdMap::unit(HERE, pod(Some("here"), Life::Ready)), "here");
        assert_eq!(ready(&pods), 1);
        for (node, life) in [(Some("there"), Life::Ready), (None, Life::Ready), (Some("here"), Life::Ending)] {
            pods.update(&OrdMap::unit(HERE, pod(node, life)), "here");
            assert_eq!(ready(&pods), 0);
            pods.update(&OrdMap::unit(HERE, pod(Some("here"), Life::Ready)), "here");
        }
        pods.update(&OrdMap::new(), "here");
        assert_eq!(ready(&pods), 0);
    }

    #[test]
    fn a_pod_is_uncounted_for_whatever_reason_and_one_whose_cgroup_is_gone_after_a_while() {
        let fine = count::Known { pods: vec!["u".to_owned()], ..count::Known::default() };
        assert_eq!(reason(&fine, Some("u"), 60), None);
        assert_eq!(reason(&fine, Some("v"), 4), None, "it may be ending");
        assert_eq!(reason(&fine, Some("v"), 5).unwrap(), "its cgroup is not there");
        assert_eq!(reason(&fine, None, 0).unwrap(), "its slice does not tell its UID");
        let refused = vec![("v".to_owned(), "no".to_owned())];
        assert_eq!(reason(&count::Known { refused, ..fine.clone() }, Some("v"), 0).unwrap(), "no");
        let left_out = [UpstreamId(1)].into();
        assert!(reason(&count::Known { left_out, ..fine.clone() }, Some("u"), 0).unwrap().contains("no room"));
        for off in [
            count::Known { off: Some("off".to_owned()), ..fine.clone() },
            count::Known { failed: Some("off".to_owned()), ..fine },
        ] {
            assert_eq!(reason(&off, Some("u"), 0).unwrap(), "off");
        }
    }
}
