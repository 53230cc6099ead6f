//! The one place where a snapshot is swapped. One writer, the task that owns the index; any number of readers.
//!
//! A request that has to wait subscribes to its upstream, then loads, then waits: a change between any two of these is
//! seen by the load or ends the wait.

use std::{
    collections::{HashMap, hash_map::Entry},
    future,
    sync::Arc,
};

use arc_swap::{ArcSwap, Cache};
use interceptor_core::{Snapshot, UpstreamId};
use parking_lot::Mutex;
use tokio::sync::watch;

/// A writer and a reader of `initial`.
pub fn channel(initial: Snapshot) -> (Writer, Reader) {
    let shared = Arc::new(Shared {
        current: Arc::new(ArcSwap::from_pointee(initial)),
        waiters: Mutex::new(HashMap::new()),
        generation: watch::Sender::new(()),
        waited_for: watch::Sender::new(()),
    });
    let reader = Reader { published: shared.generation.subscribe(), shared: Arc::clone(&shared) };
    (Writer { shared }, reader)
}

/// Publishes snapshots.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

/// Reads the last snapshot and waits for the next.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    published: watch::Receiver<()>,
}

/// A reader of its own for one worker: as long as nothing was published, a load writes nothing that is shared.
#[derive(Clone, Debug)]
pub struct Cached {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
}

/// Waits for changes of one upstream; forgotten when dropped.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    id: UpstreamId,
    /// `None` only while dropping.
    changes: Option<watch::Receiver<()>>,
}

#[derive(Debug)]
struct Shared {
    current: Arc<ArcSwap<Snapshot>>,
    /// One sender per upstream that is waited for: no more than there are held requests, which their queue bounds.
    waiters: Mutex<HashMap<UpstreamId, watch::Sender<()>>>,
    generation: watch::Sender<()>,
    /// Told when an upstream without an endpoint gets its first waiter, and when it loses its last.
    waited_for: watch::Sender<()>,
}

/// Tells which upstreams are waited for. Of those that have an endpoint no change is told: who opens a connection waits
/// for a moment too, and no more is to be done for him.
#[derive(Clone, Debug)]
pub struct Waited {
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
}

// === impl Shared ===

impl Shared {
    fn tell_waited(&self, id: UpstreamId) {
        let has_endpoint = self.current.load().upstream(id).is_some_and(|upstream| !upstream.endpoints.is_empty());
        // When it loses its last endpoint, that is published.
        if !has_endpoint {
            self.waited_for.send_replace(());
        }
    }
}

// === impl Writer ===

impl Writer {
    /// Swaps the snapshot in, then wakes the waiters of the upstreams that changed, and nobody else.
    pub fn publish(&mut self, snapshot: Snapshot, changed: &[UpstreamId]) {
        self.shared.current.store(Arc::new(snapshot));
        {
            let waiters = self.shared.waiters.lock();
            for sender in changed.iter().filter_map(|id| waiters.get(id)) {
                sender.send_replace(());
            }
        }
        self.shared.generation.send_replace(());
    }
}

// === impl Reader ===

impl Reader {
    /// The last snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.shared.current.load_full()
    }

    /// A cached reader for one worker.
    pub fn cached(&self) -> Cached {
        Cached { cache: Cache::new(Arc::clone(&self.shared.current)) }
    }

    /// Subscribes to changes of an upstream from now on: load afterwards.
    pub fn subscribe(&self, id: UpstreamId) -> Subscription {
        let (changes, is_first) = match self.shared.waiters.lock().entry(id) {
            Entry::Occupied(sender) => (sender.get().subscribe(), false),
            Entry::Vacant(vacant) => (vacant.insert(watch::Sender::new(())).subscribe(), true),
        };
        if is_first {
            self.shared.tell_waited(id);
        }
        Subscription { shared: Arc::clone(&self.shared), id, changes: Some(changes) }
    }

    /// Follows which upstreams are waited for.
    pub fn waited(&self) -> Waited {
        Waited { shared: Arc::clone(&self.shared), changes: self.shared.waited_for.subscribe() }
    }

    /// Waits for a snapshot that was published since this reader was made or this returned last.
    ///
    /// Cancel safe: a publication that was not returned is returned by the next call.
    pub async fn published(&mut self) {
        wait(&mut self.published).await;
    }
}

// === impl Waited ===

impl Waited {
    /// Upstreams that somebody waits for.
    pub fn ids(&self) -> Vec<UpstreamId> {
        self.shared.waiters.lock().keys().copied().collect()
    }

    /// Waits until they may have changed since this was made or returned last.
    ///
    /// Cancel safe: a change that was not returned is returned by the next call.
    pub async fn changed(&mut self) {
        wait(&mut self.changes).await;
    }
}

// === impl Cached ===

impl Cached {
    /// The last snapshot.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        self.cache.load()
    }
}

// === impl Subscription ===

impl Subscription {
    /// Waits until the upstream has changed since the subscription, or since this returned last.
    ///
    /// Cancel safe: a change that was not returned is returned by the next call.
    pub async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes {
            wait(changes).await;
        }
    }
}

/// Readers hold the sender, so it never goes before them; if it did, nothing more would change.
async fn wait(changes: &mut watch::Receiver<()>) {
    if changes.changed().await.is_err() {
        future::pending::<()>().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiters = self.shared.waiters.lock();
        drop(self.changes.take());
        if let Entry::Occupied(sender) = waiters.entry(self.id)
            && sender.get().receiver_count() == 0
        {
            sender.remove();
            drop(waiters);
            self.shared.tell_waited(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const A: UpstreamId = UpstreamId(0);
    const B: UpstreamId = UpstreamId(1);

    #[tokio::test]
    async fn a_publication_wakes_the_waiters_of_what_changed_and_nobody_else() {
        let (mut writer, reader) = channel(Snapshot::default());
        let (mut first, mut second, mut other) = (reader.subscribe(A), reader.subscribe(A), reader.subscribe(B));
        writer.publish(Snapshot::default(), &[A]);
        assert!(first.changed().now_or_never().is_some());
        assert!(second.changed().now_or_never().is_some());
        assert!(other.changed().now_or_never().is_none());
        assert!(first.changed().now_or_never().is_none(), "one change is told once");
    }

    #[tokio::test]
    async fn a_change_between_subscribing_and_waiting_is_not_lost() {
        let (mut writer, reader) = channel(Snapshot::default());
        let mut waiter = reader.subscribe(A);
        writer.publish(Snapshot::default(), &[A]);
        assert!(waiter.changed().now_or_never().is_some());
        let mut late = reader.subscribe(A);
        assert!(late.changed().now_or_never().is_none(), "what was there before is for the load to see");
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_waiter_that_was_dropped() {
        let (mut writer, reader) = channel(Snapshot::default());
        let (first, second) = (reader.subscribe(A), reader.subscribe(A));
        drop(first);
        assert_eq!(reader.shared.waiters.lock().len(), 1);
        drop(second);
        assert_eq!(reader.shared.waiters.lock().len(), 0);
        writer.publish(Snapshot::default(), &[A]);
    }

    #[tokio::test]
    async fn who_follows_what_is_waited_for_hears_of_the_first_waiter_and_of_the_last() {
        let (_writer, reader) = channel(Snapshot::default());
        let mut waited = reader.waited();
        assert!(waited.changed().now_or_never().is_none());
        let first = reader.subscribe(A);
        assert!(waited.changed().now_or_never().is_some());
        assert_eq!(waited.ids(), [A]);
        let second = reader.subscribe(A);
        drop(first);
        assert!(waited.changed().now_or_never().is_none(), "one more or less makes no difference");
        drop(second);
        assert!(waited.changed().now_or_never().is_some());
        assert!(waited.ids().is_empty());
    }

    #[tokio::test]
    async fn every_reader_sees_the_last_snapshot_and_hears_of_it() {
        let (mut writer, mut reader) = channel(Snapshot::default());
        let mut cached = reader.cached();
        let before = reader.load();
        assert!(Arc::ptr_eq(cached.load(), &before));
        assert!(reader.published().now_or_never().is_none());
        let mut other = reader.clone();
        writer.publish(Snapshot::default(), &[]);
        assert!(reader.published().now_or_never().is_some());
        assert!(other.published().now_or_never().is_some());
        assert!(!Arc::ptr_eq(cached.load(), &before));
        assert!(Arc::ptr_eq(cached.load(), &reader.load()));
    }
}
