//! What the kernel counts per slot. Written by the programs, each CPU its own copy; read and summed by user space.

/// One CPU's share of a slot's counters. All but the last two only ever grow, and no one resets them: user space
/// subtracts what a slot had counted before its present use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stats {
    /// Connections begun: one SYN each, before it is known how they end.
    pub attempted: u64,
    /// Connections that were established.
    pub opened: u64,
    /// Established connections that have ended, in whatever way.
    pub closed: u64,
    /// Connections that ended before they were established: refused, unreachable, timed out, given up.
    pub failed: u64,
    /// Smoothed round-trip time over the slot's connections on this CPU, microseconds; zero before the first sample.
    pub srtt_us: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds at the last event of one of its connections on this CPU.
    pub last_ns: u64,
}

const _: () = assert!(size_of::<Stats>() == 48);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
// SAFETY: `repr(C)`, Copy, 'static, integers alone, and the assert above shows that there is no padding.
unsafe impl aya::Pod for Stats {}

impl Stats {
    /// The next value of a smoothed time: an eighth of the way to the sample, as TCP does it; the first sample as it is.
    pub const fn smooth(old_us: u64, sample_us: u64) -> u64 {
        if old_us == 0 { sample_us } else { old_us - old_us / 8 + sample_us / 8 }
    }

    /// The sum of all CPUs' shares; the round-trip time is that of the CPU that saw an event last.
    #[must_use]
    pub fn sum<'a>(shares: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        let mut newest_rtt = 0;
        for share in shares {
            let Self { attempted, opened, closed, failed, srtt_us, last_ns } = *share;
            sum.attempted = sum.attempted.wrapping_add(attempted);
            sum.opened = sum.opened.wrapping_add(opened);
            sum.closed = sum.closed.wrapping_add(closed);
            sum.failed = sum.failed.wrapping_add(failed);
            sum.last_ns = sum.last_ns.max(last_ns);
            if srtt_us != 0 && last_ns >= newest_rtt {
                newest_rtt = last_ns;
                sum.srtt_us = srtt_us;
            }
        }
        sum
    }

    /// Whether every connection that was begun has ended, so that no socket can count here any more once no address
    /// leads here.
    pub const fn drained(&self) -> bool {
        self.opened.wrapping_add(self.failed) == self.attempted && self.closed == self.opened
    }

    /// What was counted after `base` was read.
    #[must_use]
    pub const fn since(&self, base: &Self) -> Self {
        let Self { attempted, opened, closed, failed, srtt_us, last_ns } = *self;
        let unmoved = last_ns == base.last_ns;
        Self {
            attempted: attempted.wrapping_sub(base.attempted),
            opened: opened.wrapping_sub(base.opened),
            closed: closed.wrapping_sub(base.closed),
            failed: failed.wrapping_sub(base.failed),
            srtt_us: if unmoved { 0 } else { srtt_us },
            last_ns: if unmoved { 0 } else { last_ns },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_all_cpus_are_summed_and_the_newest_round_trip_time_taken() {
        let old = Stats { attempted: 3, opened: 2, closed: 1, failed: 1, srtt_us: 900, last_ns: 10 };
        let new = Stats { attempted: 1, opened: 1, closed: 2, failed: 0, srtt_us: 50, last_ns: 20 };
        let silent = Stats { last_ns: 30, ..Stats::default() };
        let sum = Stats::sum([&old, &new, &silent]);
        assert_eq!(sum, Stats { attempted: 4, opened: 3, closed: 3, failed: 1, srtt_us: 50, last_ns: 30 });
        assert!(sum.drained());
    }

    #[test]
    fn a_slot_is_drained_only_when_every_connection_begun_has_ended() {
        let connecting = Stats { attempted: 1, ..Stats::default() };
        let open = Stats { opened: 1, ..connecting };
        let closed = Stats { closed: 1, ..open };
        let failed = Stats { failed: 1, ..connecting };
        assert!(Stats::default().drained());
        assert!(!connecting.drained());
        assert!(!open.drained());
        assert!(closed.drained());
        assert!(failed.drained());
    }

    #[test]
    fn an_earlier_use_is_subtracted_with_its_times() {
        let base = Stats { attempted: 5, opened: 4, closed: 4, failed: 1, srtt_us: 70, last_ns: 99 };
        assert_eq!(base.since(&base), Stats::default());
        let now = Stats { attempted: 6, opened: 5, last_ns: 120, ..base };
        let expected = Stats { attempted: 1, opened: 1, closed: 0, failed: 0, srtt_us: 70, last_ns: 120 };
        assert_eq!(now.since(&base), expected);
    }

    #[test]
    fn a_smoothed_time_starts_at_the_first_sample_and_moves_towards_later_ones() {
        assert_eq!(Stats::smooth(0, 80), 80);
        assert_eq!(Stats::smooth(80, 160), 90);
        assert_eq!(Stats::smooth(160, 80), 150);
    }
}
