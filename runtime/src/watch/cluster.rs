//! Objects of a Kubernetes API server: one watch a kind (of Secrets, one a namespace or name), resumed, listed again when it must be, and retried for ever.
//!
//! ```text
//! API ─► follow (one a kind: kube's watcher, pauses) ─► steps ─► Objects (pure) ─► events
//!           └─► Links: whether the API answers, told once ─► log, metrics
//! ```
//!
//! Nothing is held back: what has come is told at once, and what comes meanwhile goes into the next batch.

use std::{
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all};
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, InitialListStrategy, watcher},
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};

use super::{Kind, WatchError, WatchEvent};
use crate::backoff::Backoff;

mod client;
mod item;
mod link;
mod metrics;
mod objects;

#[cfg(test)]
mod tests;

pub use self::{
    client::{ApiError, api_client},
    metrics::WatchMetrics,
};
use self::{
    item::Item,
    link::{Link, Links, Reason},
    objects::{Objects, Step},
};

/// Steps that wait to be taken in; the watches wait when there are more.
const QUEUE: usize = 1024;

/// How many steps go into one batch at most: the first list is told in parts.
const BATCH: usize = 512;

/// Objects of one page, where the server can't stream the list.
const PAGE: u32 = 500;

/// The longest pause after a failure: an API server that comes back is heard again within this.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// A Kubernetes cluster, and what is read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The file that tells how to reach it. `None`: `KUBECONFIG`, the pod's service account, or `~/.kube/config`,
    /// whichever is there first.
    pub kubeconfig: Option<PathBuf>,
    /// What is read.
    pub watches: Vec<Watch>,
}

/// Objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Which.
    pub kind: Kind,
    /// Those of one namespace; `None` is all.
    pub namespace: Option<String>,
    /// Those with these labels; `None` is all.
    pub labels: Option<String>,
    /// The one of this name; `None` is all.
    pub name: Option<String>,
}

// === impl Watch ===

impl Watch {
    /// All objects of a kind, in one namespace or in all.
    pub fn all(kind: Kind, namespace: Option<&str>) -> Self {
        Self { kind, namespace: namespace.map(Into::into), labels: None, name: None }
    }

    /// Only those with these labels: a label selector.
    #[must_use]
    pub fn labelled(self, labels: impl Into<String>) -> Self {
        Self { labels: Some(labels.into()), ..self }
    }

    /// Only the one of this name.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    fn config(&self, strategy: &InitialListStrategy) -> watcher::Config {
        watcher::Config {
            label_selector: self.labels.clone(),
            field_selector: self.name.as_ref().map(|name| format!("metadata.name={name}")),
            page_size: Some(PAGE),
            initial_list_strategy: strategy.clone(),
            ..watcher::Config::default()
        }
    }
}

/// Whether there is a configuration that can be used; asks nobody.
pub(super) async fn check(cluster: &Cluster) -> Result<(), ApiError> {
    let config = client::config(cluster.kubeconfig.as_deref()).await?;
    let links = Arc::new(Links::new([Kind::Service].into_iter(), WatchMetrics::default()));
    client::client(&config, Link::new(&links, 0)).map(drop)
}

/// Reads everything, then tells what changes, until nobody listens.
pub(super) async fn watch(
    cluster: Cluster,
    metrics: WatchMetrics,
    events: mpsc::Sender<Vec<WatchEvent>>,
) -> Result<(), WatchError> {
    let Cluster { kubeconfig, watches } = cluster;
    let config = client::config(kubeconfig.as_deref()).await?;
    tracing::info!(api = %config.cluster_url, "objects are read from a Kubernetes API server");
    let links = Arc::new(Links::new(watches.iter().map(|watch| watch.kind), metrics.clone()));
    let mut objects = Objects::new(watches.iter().map(|watch| watch.kind), super::MAX_OBJECTS);
    let (steps, mut taken) = mpsc::channel(QUEUE);
    let mut following = Vec::new();
    for (index, watch) in watches.into_iter().enumerate() {
        let link = Link::new(&links, index);
        let client = client::client(&config, link.clone())?;
        following.push(follow(index, client, watch, steps.clone(), link));
    }
    drop(steps);
    let take = async {
        let mut buffer = Vec::with_capacity(BATCH);
        while taken.recv_many(&mut buffer, BATCH).await > 0 {
            let batch = objects.take(buffer.drain(..));
            metrics.note(&mut objects);
            log(&batch);
            if !batch.is_empty() && events.send(batch).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = take => {}
        _never = join_all(following) => {}
        () = events.closed() => {}
    }
    Ok(())
}

/// Whether a kind that need not exist, because the add-on's 1.0 has it no more, does not: then nobody waits for its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    /// The server knows the kind, or has been believed that it does not, or must know it.
    Told,
    /// Since when the server says that it does not.
    Open(Option<Instant>),
}

// === impl Absence ===

impl Absence {
    fn of(kind: Kind) -> Self {
        if kind == Kind::HttpScaledObject { Self::Open(None) } else { Self::Told }
    }

    /// The server failed for `reason`. True once, when it has said for a while that it does not know the kind.
    fn is_certain(&mut self, reason: Reason, now: Instant) -> bool {
        let Self::Open(since) = self else { return false };
        if reason != Reason::Missing {
            *since = None;
            return false;
        }
        let certain = now.duration_since(*since.get_or_insert(now)) >= link::GRACE;
        if certain {
            *self = Self::Told;
        }
        certain
    }
}

/// Follows one kind until nobody takes steps any more.
async fn follow(index: usize, client: Client, watch: Watch, steps: mpsc::Sender<Step>, link: Link) {
    let resource = watch.kind.resource();
    let api: Api<Item> = match &watch.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let (mut backoff, noise) = (Backoff::up_to(MAX_PAUSE), RandomState::new());
    let mut absence = Absence::of(watch.kind);
    // The cheapest for the server: objects come one by one out of its cache. One of before 1.32 may refuse it.
    let mut strategy = InitialListStrategy::StreamingList;
    loop {
        let mut stream = std::pin::pin!(watcher(api.clone(), watch.config(&strategy)));
        let error = loop {
            // A watcher never ends.
            let Some(event) = stream.next().await else { return };
            let step = match event {
                Ok(event) => step(index, event),
                Err(error) => {
                    let reason = Reason::of(&error);
                    link.down(reason, &error);
                    if absence.is_certain(reason, Instant::now()) {
                        tracing::info!(kind = %watch.kind, "there are no objects of a kind that the Kubernetes API server does not know");
                        for step in [Step::Listing(index), Step::Listed(index)] {
                            if steps.send(step).await.is_err() {
                                return;
                            }
                        }
                    }
                    if matches!(reason, Reason::NoStreaming | Reason::Expired) {
                        break reason;
                    }
                    time::sleep(backoff.next(noise.hash_one(Instant::now()))).await;
                    continue;
                }
            };
            if !matches!(step, Step::Listing(_)) {
                backoff.reset();
            }
            link.heard(matches!(step, Step::Listing(_)));
            absence = Absence::Told;
            if steps.send(step).await.is_err() {
                return;
            }
        };
        if error == Reason::NoStreaming {
            strategy = InitialListStrategy::ListWatch;
        }
        time::sleep(backoff.next(noise.hash_one(Instant::now()))).await;
    }
}

fn log(batch: &[WatchEvent]) {
    for event in batch {
        match event {
            WatchEvent::Invalid(invalid) => tracing::warn!(%invalid, "object ignored"),
            WatchEvent::Repaired(invalid) => tracing::info!(%invalid, "object no longer ignored"),
            WatchEvent::Applied(_) | WatchEvent::Deleted(..) | WatchEvent::Synced => {}
        }
    }
}

fn step(index: usize, event: Event<Item>) -> Step {
    match event {
        Event::Init => Step::Listing(index),
        Event::InitApply(item) | Event::Apply(item) => Step::Item(index, item),
        Event::InitDone => Step::Listed(index),
        Event::Delete(item) => Step::Gone(index, item),
    }
}
