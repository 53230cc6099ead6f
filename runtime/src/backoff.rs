//! Pauses between attempts: doubling, with jitter, so that replicas don't come back in step. Pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);

/// How often something has failed in a row.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    failures: u32,
    max: Duration,
}

// === impl Backoff ===

impl Backoff {
    /// Pauses of no more than `max`.
    pub fn up_to(max: Duration) -> Self {
        Self { failures: 0, max }
    }

    /// The pause after one more failure: half of it fixed, half by `noise`, which is as likely to be any number.
    pub fn next(&mut self, noise: u64) -> Duration {
        let whole = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        let per_mille = u32::try_from(noise % 1000).expect("less than a thousand");
        whole / 2 + whole / 2 * per_mille / 1000
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_begin_anew_after_a_success() {
        let max = Duration::from_secs(5);
        let mut backoff = Backoff::up_to(max);
        let pauses: Vec<_> = (0..8).map(|_| backoff.next(0).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2500, 2500]);
        backoff.reset();
        assert_eq!(backoff.next(999).as_millis(), 99);
        (0..100).for_each(|noise| assert!(backoff.next(noise) <= max));
    }
}
