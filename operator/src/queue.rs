//! Which routes wait to be looked at, and since when: each at most once, none while it is being worked on, and those that
//! failed after longer and longer waits. Pure; owned by the task that reconciles.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

/// Waits after failures, doubling from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_mins(5);

/// What waits and what is being worked on.
#[derive(Debug)]
pub struct Queue<K> {
    waiting: BTreeSet<(Instant, K)>,
    since: HashMap<K, Instant>,
    running: HashMap<K, Again>,
    failures: HashMap<K, u32>,
}

/// Whether something that is being worked on has to be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    No,
    Yes,
}

// === impl Queue ===

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { waiting: BTreeSet::new(), since: HashMap::new(), running: HashMap::new(), failures: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    /// Has `key` looked at as soon as it can be.
    pub fn push(&mut self, key: K, now: Instant) {
        if let Some(again) = self.running.get_mut(&key) {
            *again = Again::Yes;
        } else {
            self.wait(key, now);
        }
    }

    /// The next that is due; it runs until [`done`](Self::done).
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        let (at, key) = self.waiting.first()?.clone();
        if at > now {
            return None;
        }
        self.waiting.pop_first();
        self.since.remove(&key);
        self.running.insert(key.clone(), Again::No);
        Some(key)
    }

    /// When the next is due.
    pub fn next(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// The work on `key` is over. After a failure it is looked at again, later each time.
    pub fn done(&mut self, key: K, failed: bool, now: Instant) {
        let again = self.running.remove(&key) == Some(Again::Yes);
        if failed {
            let failures = self.failures.entry(key.clone()).or_default();
            let wait = FIRST_WAIT.saturating_mul(1 << (*failures).min(16)).min(LAST_WAIT);
            *failures += 1;
            self.wait(key, now + wait);
        } else {
            self.failures.remove(&key);
            if again {
                self.wait(key, now);
            }
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Nothing waits any more; what runs goes on.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.since.clear();
        self.failures.clear();
    }

    fn wait(&mut self, key: K, at: Instant) {
        if let Some(since) = self.since.get(&key).copied() {
            if since <= at {
                return;
            }
            self.waiting.remove(&(since, key.clone()));
        }
        self.since.insert(key.clone(), at);
        self.waiting.insert((at, key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_worked_on_is_looked_at_again_afterwards_and_once() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push("a", now);
        queue.push("a", now);
        assert_eq!((queue.len(), queue.pop(now)), (1, Some("a")));
        queue.push("a", now);
        queue.push("a", now);
        assert_eq!(queue.pop(now), None);
        queue.done("a", false, now);
        assert_eq!(queue.pop(now), Some("a"));
        queue.done("a", false, now);
        assert!(queue.is_empty());
    }

    #[test]
    fn failures_wait_longer_each_time_until_one_succeeds() {
        let mut now = Instant::now();
        let mut queue = Queue::default();
        queue.push("a", now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(queue.pop(now), Some("a"));
            queue.done("a", true, now);
            let next = queue.next().unwrap();
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        queue.pop(now);
        queue.done("a", false, now);
        queue.push("a", now);
        queue.pop(now);
        queue.done("a", true, now);
        assert_eq!(queue.next(), Some(now + FIRST_WAIT));
    }

    #[test]
    fn a_change_does_not_wait_for_the_end_of_a_wait() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push("a", now);
        queue.pop(now);
        queue.done("a", true, now);
        assert_eq!(queue.pop(now), None);
        queue.push("a", now);
        assert_eq!(queue.pop(now), Some("a"));
    }
}
