//! Whether the process may be sent requests: named latches, all of which must have been released, and no drain.
//! Start-up code holds latches; the admin port reads.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;

/// What is pending, and whether the process drains. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<RwLock<State>>);

/// Keeps the process from being ready until it is released or dropped.
///
/// Dropped by a panic, it stays: what it waited for did not happen.
#[must_use = "dropping a latch says that what it stands for is done"]
#[derive(Debug)]
pub struct Latch {
    ready: Ready,
    name: &'static str,
}

#[derive(Debug, Default)]
struct State {
    pending: BTreeMap<&'static str, usize>,
    draining: bool,
}

// === impl Ready ===

impl Ready {
    /// Ready at once, as long as nobody takes a latch.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more thing that must be done first.
    pub fn latch(&self, name: &'static str) -> Latch {
        *self.0.write().pending.entry(name).or_default() += 1;
        Latch { ready: self.clone(), name }
    }

    /// Names of what is not done yet, in order, each once.
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.read().pending.keys().copied().collect()
    }

    /// Whether nothing is pending and the process does not drain.
    pub fn is_ready(&self) -> bool {
        let state = self.0.read();
        state.pending.is_empty() && !state.draining
    }

    /// Not ready any more, for good.
    pub fn set_draining(&self) {
        self.0.write().draining = true;
    }

    /// Whether [`Ready::set_draining`] was called.
    pub fn is_draining(&self) -> bool {
        self.0.read().draining
    }
}

// === impl Latch ===

impl Latch {
    /// What the latch stands for is done.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut state = self.ready.0.write();
        let last = match state.pending.get_mut(self.name) {
            Some(held) => {
                *held -= 1;
                *held == 0
            }
            None => false,
        };
        if last {
            state.pending.remove(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_latch_is_gone() {
        let ready = Ready::new();
        let routes = ready.latch("routes");
        let kernel = ready.latch("dataplane");
        assert_eq!(ready.pending(), ["dataplane", "routes"]);
        assert!(!ready.is_ready());
        kernel.release();
        assert_eq!(ready.pending(), ["routes"]);
        drop(routes);
        assert!(ready.is_ready());
    }

    #[test]
    fn a_name_is_pending_until_the_last_latch_of_that_name_is_gone() {
        let ready = Ready::new();
        let (first, second) = (ready.latch("worker"), ready.latch("worker"));
        drop(first);
        assert_eq!(ready.pending(), ["worker"]);
        drop(second);
        assert!(ready.is_ready());
    }

    #[test]
    fn a_draining_process_is_not_ready_whatever_the_latches_say() {
        let ready = Ready::new();
        ready.set_draining();
        assert!(!ready.is_ready());
        assert!(ready.pending().is_empty());
    }

    #[test]
    fn a_latch_dropped_by_a_panic_stays_pending() {
        let ready = Ready::new();
        let latch = ready.latch("routes");
        let thread = std::thread::spawn(move || {
            let _latch = latch;
            panic!("as the test wants");
        });
        assert!(thread.join().is_err());
        assert_eq!(ready.pending(), ["routes"]);
    }
}
