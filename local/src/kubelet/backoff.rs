//! CrashLoopBackOff: when a pod's process that ended by itself is started again.

use std::time::Duration;

/// The kubelet's numbers with `ReduceDefaultCrashLoopBackOffDecay`: one second, doubling to a minute.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_mins(1);
/// A process that ran for so long starts over.
const FORGIVEN: Duration = Duration::from_mins(10);

/// The delays of one pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrashLoop {
    next: Duration,
}

// === impl CrashLoop ===

impl CrashLoop {
    /// How long to wait after a process that ran for `ran`. The first restart is immediate.
    pub fn after(&mut self, ran: Duration) -> Duration {
        if ran >= FORGIVEN {
            self.next = Duration::ZERO;
        }
        let delay = self.next;
        self.next = (delay * 2).clamp(FIRST, LAST);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_later_ones_wait_up_to_a_minute() {
        let mut crash_loop = CrashLoop::default();
        let delays: Vec<u64> = (0..9).map(|_| crash_loop.after(Duration::ZERO).as_secs()).collect();
        assert_eq!(delays, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(crash_loop.after(FORGIVEN), Duration::ZERO);
    }
}
