//! Pauses between attempts: doubling, with jitter, so that scalers don't come back in step. Pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
/// A pod that comes back is heard again within this.
const MAX: Duration = Duration::from_secs(5);

/// How often it has failed in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff(u32);

// === impl Backoff ===

impl Backoff {
    /// The pause after one more failure: half of it fixed, half by `noise`, which is as likely to be any number.
    pub(super) fn next(&mut self, noise: u64) -> Duration {
        let whole = FIRST.saturating_mul(1_u32.checked_shl(self.0).unwrap_or(u32::MAX)).min(MAX);
        self.0 = self.0.saturating_add(1);
        let per_mille = u32::try_from(noise % 1000).expect("less than a thousand");
        whole / 2 + whole / 2 * per_mille / 1000
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..8).map(|_| backoff.next(0).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2500, 2500]);
        backoff.reset();
        assert_eq!(backoff.next(999).as_millis(), 99);
        (0..100).for_each(|noise| assert!(backoff.next(noise) <= MAX));
    }
}
