//! Per-route counters: requests that are held or running, and requests ever seen.
//!
//! Each worker writes a shard of its own, so that the request path shares no cache line between workers; the control
//! thread sums them. Whether a route is reported as active is one shared state per route, touched by a worker only
//! when its own in-flight count leaves or reaches zero.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, AtomicU64, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, AtomicU64, fence};
use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
};

use crate::RouteId;

/// Told by a worker that a route may have crossed the edge between idle and active.
pub trait EdgeSink: Send + Sync + fmt::Debug {
    /// Called on the request path: must not block. Called at most once per report of the route in each direction.
    fn edge(&self, route: RouteId);
}

/// A sink for processes that count nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSink;

/// What has been said about a route last.
const IDLE: u8 = 0;
const ACTIVE: u8 = 1;
/// Active was said, and a worker has told since that its share fell to zero.
const FALLING: u8 = 2;

/// The counters of one route.
#[derive(Debug)]
pub struct RouteCounters {
    route: RouteId,
    sink: Arc<dyn EdgeSink>,
    reported: AtomicU8,
    shards: Box<[Shard]>,
}

/// A sum over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests between arrival and the last byte of the response; held ones included.
    pub in_flight: u64,
    /// Requests ever; never goes down.
    pub total: u64,
    /// Of those in flight, the ones that wait for an endpoint.
    pub held: u64,
}

/// One worker's share. Each field has one writer, the worker, so a plain load and store is an increment.
#[derive(Debug)]
#[repr(align(64))]
struct Shard {
    started: AtomicU64,
    finished: AtomicU64,
    held: AtomicU64,
}

/// A request in flight; ends when dropped. Belongs to the worker whose shard it counts in.
#[must_use]
#[derive(Debug)]
pub struct Guard<C: Deref<Target: AsRef<RouteCounters>>> {
    counters: C,
    shard: usize,
}

/// A held request; ends when dropped.
#[must_use]
#[derive(Debug)]
pub struct HeldGuard<C: Deref<Target: AsRef<RouteCounters>>> {
    counters: C,
    shard: usize,
}

// === impl NoSink ===

impl EdgeSink for NoSink {
    fn edge(&self, _: RouteId) {}
}

// === impl RouteCounters ===

impl RouteCounters {
    /// Counters with one shard per worker.
    pub fn new(route: RouteId, shards: usize, sink: Arc<dyn EdgeSink>) -> Self {
        let shards = (0..shards).map(|_| Shard::new()).collect();
        Self { route, sink, reported: AtomicU8::new(IDLE), shards }
    }

    /// Whose counters these are.
    pub fn route(&self) -> RouteId {
        self.route
    }

    /// Sums all shards. `in_flight` is exact when nothing moves, and never negative.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for shard in &self.shards {
            // `finished` first: a request that ends in between then reads as still running, never as minus one.
            let finished = shard.finished.load(Acquire);
            let started = shard.started.load(Relaxed);
            counts.in_flight += started.saturating_sub(finished);
            counts.total += started;
            counts.held += shard.held.load(Relaxed);
        }
        counts
    }

    /// What is to be reported now, and marks it as reported. The control thread alone calls this.
    ///
    /// When it returns zero in flight, the next request that starts is sure to call [`EdgeSink::edge`]: either the
    /// worker sees the mark, or this sees the worker's count (store, fence, load on both sides).
    pub fn report(&self) -> Counts {
        self.reported.store(IDLE, Relaxed);
        fence(SeqCst);
        let counts = self.counts();
        if counts.in_flight > 0 {
            self.reported.store(ACTIVE, Relaxed);
        }
        counts
    }

    fn start(&self, shard: usize) {
        let own = &self.shards[shard];
        let started = own.started.load(Relaxed);
        own.started.store(started + 1, Relaxed);
        if started == own.finished.load(Relaxed) {
            fence(SeqCst);
            self.cross(IDLE, ACTIVE);
        }
    }

    fn finish(&self, shard: usize) {
        let own = &self.shards[shard];
        let finished = own.finished.load(Relaxed) + 1;
        own.finished.store(finished, Release);
        if finished == own.started.load(Relaxed) {
            fence(SeqCst);
            self.cross(ACTIVE, FALLING);
        }
    }

    fn cross(&self, from: u8, to: u8) {
        if self.reported.load(Relaxed) == from && self.reported.compare_exchange(from, to, Relaxed, Relaxed).is_ok() {
            self.sink.edge(self.route);
        }
    }
}

impl AsRef<Self> for RouteCounters {
    fn as_ref(&self) -> &Self {
        self
    }
}

// === impl Shard ===

impl Shard {
    fn new() -> Self {
        Self { started: AtomicU64::new(0), finished: AtomicU64::new(0), held: AtomicU64::new(0) }
    }
}

// === impl Guard ===

impl<C: Deref<Target: AsRef<RouteCounters>>> Guard<C> {
    /// Counts one request in `shard`, which must be the calling worker's own.
    ///
    /// # Panics
    ///
    /// When there is no such shard.
    pub fn enter(counters: C, shard: usize) -> Self {
        counters.deref().as_ref().start(shard);
        Self { counters, shard }
    }
}

impl<C: Deref<Target: AsRef<RouteCounters>>> Drop for Guard<C> {
    fn drop(&mut self) {
        self.counters.deref().as_ref().finish(self.shard);
    }
}

// === impl HeldGuard ===

impl<C: Deref<Target: AsRef<RouteCounters>>> HeldGuard<C> {
    /// Counts one held request in `shard`, which must be the calling worker's own.
    ///
    /// # Panics
    ///
    /// When there is no such shard.
    pub fn enter(counters: C, shard: usize) -> Self {
        let held = &counters.deref().as_ref().shards[shard].held;
        held.store(held.load(Relaxed) + 1, Relaxed);
        Self { counters, shard }
    }
}

impl<C: Deref<Target: AsRef<RouteCounters>>> Drop for HeldGuard<C> {
    fn drop(&mut self) {
        let held = &self.counters.deref().as_ref().shards[self.shard].held;
        held.store(held.load(Relaxed) - 1, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use parking::Recorder;

    use super::*;

    mod parking {
        use std::sync::atomic::{AtomicUsize, Ordering};

        use super::{EdgeSink, RouteId};

        #[derive(Debug, Default)]
        pub(super) struct Recorder(AtomicUsize);

        impl Recorder {
            pub(super) fn edges(&self) -> usize {
                self.0.load(Ordering::Relaxed)
            }
        }

        impl EdgeSink for Recorder {
            fn edge(&self, _: RouteId) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn counters() -> (Arc<Recorder>, Arc<RouteCounters>) {
        let sink = Arc::new(Recorder::default());
        let counters = RouteCounters::new(RouteId(1), 2, Arc::clone(&sink) as Arc<dyn EdgeSink>);
        (sink, Arc::new(counters))
    }

    #[test]
    fn requests_are_counted_over_all_workers_until_their_guards_drop() {
        let (_, counters) = counters();
        let first = Guard::enter(&*counters, 0);
        let second = Guard::enter(&*counters, 1);
        let held = HeldGuard::enter(&*counters, 1);
        assert_eq!(counters.counts(), Counts { in_flight: 2, total: 2, held: 1 });
        drop((first, held));
        assert_eq!(counters.counts(), Counts { in_flight: 1, total: 2, held: 0 });
        drop(second);
        assert_eq!(counters.counts(), Counts { in_flight: 0, total: 2, held: 0 });
    }

    #[test]
    fn the_sink_hears_the_first_request_and_then_nothing_until_a_report() {
        let (sink, counters) = counters();
        let first = Guard::enter(&*counters, 0);
        assert_eq!(sink.edges(), 1, "the first request crosses the edge");
        let second = Guard::enter(&*counters, 0);
        drop(Guard::enter(&*counters, 1));
        drop((first, second));
        assert_eq!(sink.edges(), 2, "the fall is told once");
        drop(Guard::enter(&*counters, 0));
        assert_eq!(sink.edges(), 2, "and nothing more until the control thread has looked");
        assert_eq!(counters.report().in_flight, 0);
        let _again = Guard::enter(&*counters, 0);
        assert_eq!(sink.edges(), 3);
    }
}

#[cfg(all(test, loom))]
mod model {
    use loom::{sync::atomic::AtomicBool, thread};

    use super::*;

    #[derive(Debug)]
    struct Flag(AtomicBool);

    impl EdgeSink for Flag {
        fn edge(&self, _: RouteId) {
            self.0.store(true, Relaxed);
        }
    }

    #[test]
    fn a_request_that_starts_while_idle_is_reported_is_seen_or_signalled() {
        loom::model(|| {
            let sink = Arc::new(Flag(AtomicBool::new(false)));
            let dyn_sink: Arc<dyn EdgeSink> = sink.clone();
            let counters = Arc::new(RouteCounters::new(RouteId(1), 1, dyn_sink));
            let worker = {
                let counters = Arc::clone(&counters);
                thread::spawn(move || counters.start(0))
            };
            let seen = counters.report();
            worker.join().expect("the worker does not panic");
            assert!(seen.in_flight == 1 || sink.0.load(Relaxed), "the request was neither counted nor signalled");
        });
    }

    #[test]
    fn a_sum_is_never_negative_and_exact_at_rest() {
        loom::model(|| {
            let counters = Arc::new(RouteCounters::new(RouteId(1), 1, Arc::new(NoSink)));
            let worker = {
                let counters = Arc::clone(&counters);
                thread::spawn(move || {
                    counters.start(0);
                    counters.finish(0);
                })
            };
            assert!(counters.counts().in_flight <= 1);
            worker.join().expect("the worker does not panic");
            assert_eq!(counters.counts(), Counts { in_flight: 0, total: 1, held: 0 });
        });
    }
}
