//! Discovery: the only owner of the index. Takes watch events in, and publishes snapshots.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use interceptor_core::{
    ObjectKey,
    index::{Event, Index, ProblemKind},
    service::SliceEndpoint,
};
use parking_lot::Mutex;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use runtime::{
    ready::{Latch, Ready},
    snapshot::Writer,
    watch::{self, Invalid, Kind, Object, Sources, WatchEvent, WatchMetrics},
};
use serde::Serialize;
use tokio::sync::{mpsc, watch as latest};

use super::{
    namespaces::{Addresses, Namespaces},
    secrets::Secrets,
};
use crate::{names::Found, probe::Verdict};

/// Batches that wait to be taken in; the watch waits when there are more.
const QUEUE: usize = 64;

/// Something that is wrong with an object, for `/state`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Problem {
    pub(crate) object: String,
    pub(crate) message: String,
}

/// The problems as of now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Problems(Arc<Mutex<Vec<Problem>>>);

/// The discovery task.
#[derive(Debug)]
pub(crate) struct Discover {
    sources: Sources,
    metrics: WatchMetrics,
    verdicts: mpsc::Receiver<Verdict>,
    found: mpsc::Receiver<Found>,
    index: Index,
    writer: Writer,
    synced: Option<Latch>,
    complete: latest::Sender<bool>,
    /// At most [`watch::MAX_INVALID`], which the watch sees to.
    invalid: BTreeSet<Invalid>,
    problems: Problems,
    invalid_total: Counter,
    problem_count: Gauge,
    conflicts: Family<[(&'static str, String); 2], Gauge>,
    /// Whose pods somebody wants to know.
    followed: Option<Followed>,
    /// Certificates, where they are wanted.
    secrets: Option<Secrets>,
    namespaces: Option<Namespaces>,
}

/// The pods of one Service that no route need refer to.
#[derive(Debug)]
struct Followed {
    service: ObjectKey,
    slices: HashMap<ObjectKey, BTreeSet<FollowedPod>>,
    pods: latest::Sender<Vec<FollowedPod>>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FollowedPod {
    pub(crate) address: IpAddr,
    /// Whether it takes connections.
    pub(crate) is_ready: bool,
    /// Its UID, if the slice tells it.
    pub(crate) uid: Option<Arc<str>>,
}

// === impl Problems ===

impl Problems {
    pub(crate) fn all(&self) -> Vec<Problem> {
        self.0.lock().clone()
    }
}

// === impl Discover ===

impl Discover {
    pub(crate) fn new(
        (sources, metrics): (Sources, WatchMetrics),
        (verdicts, found): (mpsc::Receiver<Verdict>, mpsc::Receiver<Found>),
        index: Index,
        writer: Writer,
        ready: &Ready,
        registry: &mut Registry,
    ) -> Self {
        let (invalid_total, problem_count, conflicts) = (Counter::default(), Gauge::default(), Family::default());
        let ours = registry.sub_registry_with_prefix("rouse");
        ours.register("invalid_objects", "Objects that were skipped because they can't be used", invalid_total.clone());
        ours.register("problems", "Objects that do not work as they are, as listed by /state", problem_count.clone());
        ours.register(
            "route_conflicts",
            "Places in the routing table that the route asks for and does not get",
            conflicts.clone(),
        );
        Self {
            sources,
            metrics,
            verdicts,
            found,
            index,
            writer,
            synced: Some(ready.latch("objects")),
            complete: latest::Sender::new(false),
            invalid: BTreeSet::new(),
            problems: Problems::default(),
            invalid_total,
            problem_count,
            conflicts,
            followed: None,
            secrets: None,
            namespaces: None,
        }
    }

    /// Tells of a Service's pods, by their addresses.
    pub(crate) fn follow(&mut self, service: Option<ObjectKey>) -> latest::Receiver<Vec<FollowedPod>> {
        let (pods, told) = latest::channel(Vec::new());
        self.followed = service.map(|service| Followed { service, slices: HashMap::new(), pods });
        told
    }

    /// Has Secrets taken in too.
    pub(crate) fn with_secrets(mut self, secrets: Secrets) -> Self {
        self.secrets = Some(secrets);
        self
    }

    /// Tells of the addresses of pods of those namespaces that routes leave out of their demand.
    pub(crate) fn follow_namespaces(&mut self) -> latest::Receiver<Addresses> {
        let (namespaces, told) = Namespaces::new();
        self.namespaces = Some(namespaces);
        told
    }

    /// Tells when all objects have been read once: what is missing before that may be there.
    pub(crate) fn complete(&self) -> latest::Receiver<bool> {
        self.complete.subscribe()
    }

    pub(crate) fn problems(&self) -> Problems {
        self.problems.clone()
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self) -> Result<(), watch::WatchError> {
        let (tx, mut rx) = mpsc::channel(QUEUE);
        let watching = watch::run(self.sources.clone(), self.metrics.clone(), tx);
        let taking = async {
            loop {
                tokio::select! {
                    Some(batch) = rx.recv() => self.take(batch),
                    Some(verdict) = self.verdicts.recv() => self.heed(verdict),
                    Some(found) = self.found.recv() => self.learn(&found),
                    else => return,
                }
            }
        };
        tokio::select! {
            result = watching => result,
            () = taking => std::future::pending().await,
        }
    }

    fn take(&mut self, batch: Vec<WatchEvent>) {
        let mut synced = false;
        let mut events = Vec::with_capacity(batch.len());
        for event in batch {
            match event {
                WatchEvent::Synced => synced = true,
                WatchEvent::Invalid(invalid) => {
                    self.invalid_total.inc();
                    self.invalid.insert(invalid);
                }
                WatchEvent::Repaired(invalid) => {
                    self.invalid.remove(&invalid);
                }
                WatchEvent::Applied(Object::Secret(secret)) => {
                    self.secrets.iter_mut().for_each(|secrets| secrets.put(&secret));
                }
                WatchEvent::Deleted(Kind::Secret, key) => {
                    self.secrets.iter_mut().for_each(|secrets| secrets.take(&key));
                }
                WatchEvent::Applied(_) | WatchEvent::Deleted(..) => match watch::core_event(&event) {
                    Ok(Some(change)) => {
                        if let Some(followed) = &mut self.followed {
                            followed.take(&change);
                        }
                        if let Some(secrets) = &mut self.secrets {
                            secrets.note(&change);
                        }
                        if let Some(namespaces) = &mut self.namespaces {
                            namespaces.take(&change);
                        }
                        events.push(change);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "object is skipped"),
                },
            }
        }
        for event in events {
            self.index.apply(event);
        }
        self.secrets.iter_mut().for_each(Secrets::settle);
        let changed = self.index.take_changed();
        let snapshot = self.index.snapshot();
        if let Some(namespaces) = &mut self.namespaces {
            namespaces.publish(&snapshot, |namespace| self.index.slices_in(namespace));
        }
        self.writer.publish(snapshot, &changed);
        if synced {
            self.synced = None;
            self.complete.send_replace(true);
        }
        // Before that, what seems to be missing may just not have been read.
        if self.synced.is_none() {
            self.note_problems();
        }
    }

    fn heed(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Answered(service, pod) => self.index.answered(&service, pod),
            Verdict::Gone(service, pod) => self.index.answer_gone(&service, pod),
        }
        let changed = self.index.take_changed();
        self.writer.publish(self.index.snapshot(), &changed);
    }

    fn learn(&mut self, found: &Found) {
        self.index.found(&found.service, &found.addresses);
        let changed = self.index.take_changed();
        if !changed.is_empty() {
            self.writer.publish(self.index.snapshot(), &changed);
        }
    }

    fn note_problems(&self) {
        let invalid = self.invalid.iter().map(|invalid| Problem {
            object: match (&invalid.object, &invalid.file) {
                (Some((kind, key)), _) => format!("{kind} {key}"),
                (None, Some(file)) => format!("{} document {}", file.display(), invalid.document),
                (None, None) => "an object without a name".to_owned(),
            },
            message: invalid.message.clone(),
        });
        let found = self.index.problems();
        self.conflicts.clear();
        for lost in found.iter().filter(|problem| is_lost(problem.kind)) {
            let (name, namespace) = (lost.object.name().to_owned(), lost.object.namespace().to_owned());
            self.conflicts.get_or_create(&[("route_name", name), ("route_namespace", namespace)]).inc();
        }
        let found = found.into_iter().map(|problem| Problem {
            object: format!("{} {}", problem.route_kind, problem.object),
            message: problem.message,
        });
        let secrets = self.secrets.iter().flat_map(Secrets::problems);
        let mut all: Vec<_> = invalid.chain(found).chain(secrets).collect();
        all.sort();
        let mut known = self.problems.0.lock();
        for new in all.iter().filter(|problem| known.binary_search(problem).is_err()) {
            tracing::warn!(object = new.object, message = new.message, "object does not work as it is");
        }
        self.problem_count.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
        *known = all;
    }
}

/// Whether it is about a place in the routing table that somebody else has, or that the route may not have.
fn is_lost(kind: ProblemKind) -> bool {
    matches!(kind, ProblemKind::Conflict | ProblemKind::Barred | ProblemKind::HostNotAllowed)
}

// === impl Followed ===

impl Followed {
    fn take(&mut self, change: &Event) {
        match change {
            Event::Slice(slice) if slice.service == self.service => {
                let pods = slice.endpoints.iter().flat_map(|endpoint| {
                    let SliceEndpoint { addresses, ready, terminating, pod: _, uid, node: _ } = endpoint;
                    let is_ready = *ready && !terminating;
                    let pod = move |address: &IpAddr| FollowedPod { address: *address, is_ready, uid: uid.clone() };
                    addresses.iter().map(pod)
                });
                self.slices.insert(slice.key.clone(), pods.collect());
            }
            Event::Slice(slice) if self.slices.remove(&slice.key).is_some() => {}
            Event::SliceGone(key) if self.slices.remove(key).is_some() => {}
            _ => return,
        }
        let all: BTreeSet<_> = self.slices.values().flatten().collect();
        self.pods.send_if_modified(|known| {
            let differs = !known.iter().eq(all.iter().copied());
            if differs {
                *known = all.into_iter().cloned().collect();
            }
            differs
        });
    }
}
