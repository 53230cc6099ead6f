//! Per-route counters: requests that are held or running, and requests ever seen.
//!
//! Each worker writes a shard of its own, so that the request path shares no cache line between workers, and all that a
//! request needs lies in that one line: with thousands of routes each request finds its route's memory cold. The control
//! thread sums the shards. Whether a route is reported as active stands in each shard, looked at by its worker only
//! when the worker's own in-flight count leaves or reaches zero.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, AtomicU64, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, AtomicU64, fence};
use std::{
    fmt,
    num::NonZeroU64,
    ops::Deref,
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
};

use crate::RouteId;

/// Told by a worker that a route may have crossed the edge between idle and active.
pub trait EdgeSink: Send + Sync + fmt::Debug {
    /// Called on the request path: must not block. Called at most once per worker, report of the route and direction.
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

/// The counters of one route. Clones share them.
#[derive(Clone, Debug)]
pub struct RouteCounters {
    shards: Arc<[Shard]>,
}

/// One worker's share of a route's counters.
#[derive(Debug)]
pub struct Share {
    shards: Arc<[Shard]>,
    index: usize,
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

/// A cache line. Started and finished have one writer, the worker, so a plain load and store is an increment. Held requests are
/// few enough for all workers to count them in the first shard, so that a limit is kept to the letter.
#[derive(Debug)]
#[repr(align(64))]
struct Shard {
    started: AtomicU64,
    finished: AtomicU64,
    held: AtomicU64,
    reported: AtomicU8,
    route: RouteId,
    sink: Arc<dyn EdgeSink>,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Shard>() == 64);

/// A request in flight; ends when dropped.
#[must_use]
#[derive(Debug)]
pub struct Guard<C: Deref<Target: AsRef<Share>>> {
    counters: C,
}

/// A held request; ends when dropped.
#[must_use]
#[derive(Debug)]
pub struct HeldGuard<C: Deref<Target: AsRef<Share>>> {
    counters: C,
}

// === impl NoSink ===

impl EdgeSink for NoSink {
    fn edge(&self, _: RouteId) {}
}

// === impl RouteCounters ===

impl RouteCounters {
    /// Counters with one shard per worker.
    pub fn new(route: RouteId, shards: usize, sink: &Arc<dyn EdgeSink>) -> Self {
        Self { shards: (0..shards).map(|_| Shard::new(route, Arc::clone(sink))).collect() }
    }

    /// The share of the worker with this number.
    ///
    /// # Panics
    ///
    /// When there are not as many.
    pub fn share(&self, worker: usize) -> Share {
        assert!(worker < self.shards.len(), "no more workers than shards");
        Share { shards: Arc::clone(&self.shards), index: worker }
    }

    /// Sums all shards. `in_flight` is exact when nothing moves, and never negative.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for shard in &*self.shards {
            // `finished` first: a request that ends in between then reads as still running, never as minus one.
            let finished = shard.finished.load(Acquire);
            let started = shard.started.load(Relaxed);
            counts.in_flight += started.saturating_sub(finished);
            counts.total += started;
        }
        counts.held = self.shards.first().map_or(0, |first| first.held.load(Relaxed));
        counts
    }

    /// What is to be reported now, and marks it as reported. The control thread alone calls this.
    ///
    /// When it returns zero in flight, the next request that starts is sure to call [`EdgeSink::edge`]: either the
    /// worker sees the mark, or this sees the worker's count (store, fence, load on both sides).
    pub fn report(&self) -> Counts {
        self.mark(IDLE);
        fence(SeqCst);
        let counts = self.counts();
        if counts.in_flight > 0 {
            self.mark(ACTIVE);
        }
        counts
    }

    fn mark(&self, reported: u8) {
        for shard in &*self.shards {
            shard.reported.store(reported, Relaxed);
        }
    }
}

// === impl Share ===

impl Share {
    fn own(&self) -> &Shard {
        &self.shards[self.index]
    }

    fn held(&self) -> &AtomicU64 {
        &self.shards[0].held
    }
}

impl AsRef<Self> for Share {
    fn as_ref(&self) -> &Self {
        self
    }
}

// === impl Shard ===

impl Shard {
    fn new(route: RouteId, sink: Arc<dyn EdgeSink>) -> Self {
        Self {
            started: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            held: AtomicU64::new(0),
            reported: AtomicU8::new(IDLE),
            route,
            sink,
        }
    }

    fn start(&self) {
        let started = self.started.load(Relaxed);
        self.started.store(started + 1, Relaxed);
        if started == self.finished.load(Relaxed) {
            fence(SeqCst);
            self.cross(IDLE, ACTIVE);
        }
    }

    fn finish(&self) {
        let finished = self.finished.load(Relaxed) + 1;
        self.finished.store(finished, Release);
        if finished == self.started.load(Relaxed) {
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

// === impl Guard ===

impl<C: Deref<Target: AsRef<Share>>> Guard<C> {
    /// Counts one request in the worker's share.
    pub fn enter(counters: C) -> Self {
        counters.deref().as_ref().own().start();
        Self { counters }
    }
}

impl<C: Deref<Target: AsRef<Share>>> Drop for Guard<C> {
    fn drop(&mut self) {
        self.counters.deref().as_ref().own().finish();
    }
}

// === impl HeldGuard ===

impl<C: Deref<Target: AsRef<Share>>> HeldGuard<C> {
    /// Counts one held request, unless the route has `most` already.
    pub fn enter(counters: C, most: Option<NonZeroU64>) -> Option<Self> {
        let more = |held: u64| most.is_none_or(|most| held < most.get()).then_some(held + 1);
        let counted = counters.deref().as_ref().held().fetch_update(Relaxed, Relaxed, more).is_ok();
        counted.then(|| Self { counters })
    }
}

impl<C: Deref<Target: AsRef<Share>>> Drop for HeldGuard<C> {
    fn drop(&mut self) {
        self.counters.deref().as_ref().held().fetch_sub(1, Relaxed);
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

    fn counters() -> (Arc<Recorder>, RouteCounters, [Share; 2]) {
        let sink = Arc::new(Recorder::default());
        let counters = RouteCounters::new(RouteId(1), 2, &(Arc::clone(&sink) as Arc<dyn EdgeSink>));
        let shares = [0, 1].map(|worker| counters.share(worker));
        (sink, counters, shares)
    }

    #[test]
    fn requests_are_counted_over_all_workers_until_their_guards_drop() {
        let (_, counters, shares) = counters();
        let first = Guard::enter(&shares[0]);
        let second = Guard::enter(&shares[1]);
        let held = HeldGuard::enter(&shares[1], None);
        assert_eq!(counters.counts(), Counts { in_flight: 2, total: 2, held: 1 });
        drop((first, held));
        assert_eq!(counters.counts(), Counts { in_flight: 1, total: 2, held: 0 });
        drop(second);
        assert_eq!(counters.counts(), Counts { in_flight: 0, total: 2, held: 0 });
    }

    #[test]
    fn no_more_requests_are_held_than_may_be_whichever_worker_asks() {
        let (_, counters, [first, second]) = counters();
        let most = NonZeroU64::new(2);
        let one = HeldGuard::enter(&first, most).unwrap();
        let _other = HeldGuard::enter(&second, most).unwrap();
        assert!(HeldGuard::enter(&second, most).is_none());
        assert_eq!(counters.counts().held, 2, "one that was refused is not counted");
        drop(one);
        assert!(HeldGuard::enter(&second, most).is_some());
    }

    #[test]
    fn the_sink_hears_of_a_workers_first_request_and_then_nothing_until_a_report() {
        let (sink, counters, [share, _]) = counters();
        let first = Guard::enter(&share);
        assert_eq!(sink.edges(), 1, "the first request crosses the edge");
        drop(Guard::enter(&share));
        drop(first);
        assert_eq!(sink.edges(), 2, "the fall is told once");
        drop(Guard::enter(&share));
        assert_eq!(sink.edges(), 2, "and nothing more until the control thread has looked");
        assert_eq!(counters.report().in_flight, 0);
        let _again = Guard::enter(&share);
        assert_eq!(sink.edges(), 3);
    }

    #[test]
    fn a_worker_that_starts_after_the_route_was_reported_active_has_nothing_to_tell() {
        let (sink, counters, [first, second]) = counters();
        let running = Guard::enter(&first);
        assert_eq!(counters.report().in_flight, 1);
        let other = Guard::enter(&second);
        assert_eq!(sink.edges(), 1, "only the first");
        drop((running, other));
        assert_eq!(sink.edges(), 3, "each tells its own fall");
        assert_eq!(counters.report().in_flight, 0);
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
            let counters = RouteCounters::new(RouteId(1), 1, &dyn_sink);
            let share = counters.share(0);
            let worker = thread::spawn(move || share.own().start());
            let seen = counters.report();
            worker.join().expect("the worker does not panic");
            assert!(seen.in_flight == 1 || sink.0.load(Relaxed), "the request was neither counted nor signalled");
        });
    }

    #[test]
    fn a_sum_is_never_negative_and_exact_at_rest() {
        loom::model(|| {
            let sink: Arc<dyn EdgeSink> = Arc::new(NoSink);
            let counters = RouteCounters::new(RouteId(1), 1, &sink);
            let share = counters.share(0);
            let worker = thread::spawn(move || {
                share.own().start();
                share.own().finish();
            });
            assert!(counters.counts().in_flight <= 1);
            worker.join().expect("the worker does not panic");
            assert_eq!(counters.counts(), Counts { in_flight: 0, total: 1, held: 0 });
        });
    }
}
