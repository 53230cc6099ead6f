//! What the kernel counts per slot of the connections and requests that pods take. Written by the programs, each CPU its own
//! copy; read and summed by user space.

use crate::Stats;

/// Upper limits of the classes of time to first byte, nanoseconds; the last class has none.
pub const FIRST_BYTE_NS: [u64; 7] =
    [1_000_000, 4_000_000, 16_000_000, 64_000_000, 256_000_000, 1_024_000_000, 4_096_000_000];

/// One CPU's share of a slot's counters. All but the two last ones only ever grow (wrapping), and no one resets them: user
/// space subtracts what a slot had counted before its present use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Served {
    /// Sockets that bear the slot.
    pub tagged: u64,
    /// Those of them that have ended.
    pub released: u64,
    /// Connections that were accepted.
    pub opened: u64,
    /// Those that have ended, in whatever way.
    pub closed: u64,
    /// Those that ended with a request that had no answer.
    pub failed: u64,
    /// Requests that began.
    pub started: u64,
    /// Requests that were answered, or whose connection ended.
    pub ended: u64,
    /// Of those that began, the ones that turned out to be none.
    pub undone: u64,
    /// Once for each connection and each [`crate::flow::span`] of time in which a protocol without requests, or an answer
    /// that goes on for long, moved bytes.
    pub moving: u64,
    /// Time that requests were outstanding, nanoseconds: with `n` outstanding now, this plus `n` times now.
    pub busy_ns: u64,
    /// Times to the first byte of an answer, nanoseconds, all together.
    pub first_byte_ns: u64,
    /// How many of them there were, by class: see [`FIRST_BYTE_NS`].
    pub first_bytes: [u64; 8],
    /// Smoothed round-trip time over the slot's connections on this CPU, microseconds; zero before the first sample.
    pub srtt_us: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds at the last event of one of its connections on this CPU.
    pub last_ns: u64,
}

const _: () = assert!(size_of::<Served>() == 168);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
// SAFETY: `repr(C)`, Copy, 'static, integers alone, and the assert above shows that there is no padding.
unsafe impl aya::Pod for Served {}

/// Whose a slot is, for whoever comes after the process that gave it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlotUse {
    /// Tells the Service and the port; zero if it is nobody's.
    pub target: u64,
    /// What the slot had counted before this use of it.
    pub base: Served,
}

const _: () = assert!(size_of::<SlotUse>() == 8 + size_of::<Served>());

/// Since when is counted, and a number that tells this from every other time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Run {
    /// `CLOCK_MONOTONIC` in nanoseconds; zero if it has not begun.
    pub began_ns: u64,
    /// By chance.
    pub nonce: u64,
}

const _: () = assert!(size_of::<Run>() == 16);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
mod pod {
    // SAFETY: `repr(C)`, Copy, 'static, integers alone, and the assert above shows that there is no padding.
    unsafe impl aya::Pod for super::SlotUse {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Run {}
}

/// Where a pod's connections come from that are no demand: the key of a longest-prefix map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Origin {
    /// For which slot, as bytes in network order; zero for all of them.
    pub slot: [u8; 4],
    /// The client's address; IPv4 as its mapped IPv6 address.
    pub addr: [u8; 16],
}

const _: () = assert!(size_of::<Origin>() == 20);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
// SAFETY: `repr(C)`, Copy, 'static, bytes alone, and the assert above shows that there is no padding.
unsafe impl aya::Pod for Origin {}

/// To which program those that count leave a segment: places in an array.
#[derive(Clone, Copy, Debug)]
pub struct Jump;

impl Jump {
    /// The one that goes through the frames of HTTP/2.
    pub const STREAMS: u32 = 0;
    /// The one that finds out whose the connection is.
    pub const SETTLE: u32 = 1;
    /// Back to the first.
    pub const AGAIN: u32 = 2;
    /// How many there are.
    pub const COUNT: u32 = 3;
}

// === impl Served ===

impl Served {
    /// The class of a time to first byte.
    #[inline(always)]
    #[must_use]
    pub const fn class(first_byte_ns: u64) -> usize {
        let mut class = 0;
        while class < FIRST_BYTE_NS.len() && first_byte_ns > FIRST_BYTE_NS[class] {
            class += 1;
        }
        class
    }

    /// The sum of all CPUs' shares; the round-trip time is that of the CPU that saw an event last.
    #[must_use]
    pub fn sum<'a>(shares: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        let mut newest_rtt = 0;
        for share in shares {
            let before = sum;
            sum = share.combined(&before, u64::wrapping_add);
            sum.last_ns = before.last_ns.max(share.last_ns);
            sum.srtt_us = before.srtt_us;
            if share.srtt_us != 0 && share.last_ns >= newest_rtt {
                newest_rtt = share.last_ns;
                sum.srtt_us = share.srtt_us;
            }
        }
        sum
    }

    /// What was counted after `base` was read.
    #[must_use]
    pub fn since(&self, base: &Self) -> Self {
        let unmoved = self.last_ns == base.last_ns;
        let times = |value: u64| if unmoved { 0 } else { value };
        Self { srtt_us: times(self.srtt_us), last_ns: times(self.last_ns), ..self.combined(base, u64::wrapping_sub) }
    }

    /// In place of `base`, what leaves nothing open at `now_ns` of what is counted by now: for a slot that no socket can bear any more.
    #[must_use]
    pub fn settled(&self, base: &Self, now_ns: u64) -> Self {
        let Self { tagged, released, opened, closed, started, ended, .. } = self.since(base);
        let outstanding = started.wrapping_sub(ended);
        Self {
            released: base.released.wrapping_sub(tagged.wrapping_sub(released)),
            closed: base.closed.wrapping_sub(opened.wrapping_sub(closed)),
            ended: base.ended.wrapping_sub(outstanding),
            busy_ns: base.busy_ns.wrapping_sub(outstanding.wrapping_mul(now_ns)),
            ..*base
        }
    }

    /// Whether no socket can count here any more once no address leads here.
    pub const fn drained(&self) -> bool {
        self.tagged == self.released
    }

    /// Requests that are outstanding. CPUs are read one after the other, so an end may be seen whose start was not.
    pub const fn outstanding(&self) -> u64 {
        let outstanding = self.started.wrapping_sub(self.ended);
        if outstanding > u64::MAX / 2 { 0 } else { outstanding }
    }

    /// Requests ever.
    pub const fn requests(&self) -> u64 {
        self.started.wrapping_sub(self.undone)
    }

    /// Time that requests were outstanding until now, nanoseconds; wraps.
    pub const fn busy_until(&self, now_ns: u64) -> u64 {
        self.busy_ns.wrapping_add(self.started.wrapping_sub(self.ended).wrapping_mul(now_ns))
    }

    fn combined(&self, other: &Self, join: impl Fn(u64, u64) -> u64) -> Self {
        let Self {
            tagged,
            released,
            opened,
            closed,
            failed,
            started,
            ended,
            undone,
            moving,
            busy_ns,
            first_byte_ns,
            first_bytes,
            srtt_us,
            last_ns,
        } = *self;
        let mut classes = first_bytes;
        for (class, more) in classes.iter_mut().zip(other.first_bytes) {
            *class = join(*class, more);
        }
        Self {
            tagged: join(tagged, other.tagged),
            released: join(released, other.released),
            opened: join(opened, other.opened),
            closed: join(closed, other.closed),
            failed: join(failed, other.failed),
            started: join(started, other.started),
            ended: join(ended, other.ended),
            undone: join(undone, other.undone),
            moving: join(moving, other.moving),
            busy_ns: join(busy_ns, other.busy_ns),
            first_byte_ns: join(first_byte_ns, other.first_byte_ns),
            first_bytes: classes,
            srtt_us,
            last_ns,
        }
    }
}

// === impl Origin ===

impl Origin {
    /// What an address means: its connections are no demand.
    pub const OUT: u32 = 1;
    /// It is this machine, and may be the kubelet.
    pub const HOST: u32 = 2;

    /// Bits of the slot, which every key has in full.
    pub const SLOT_BITS: u32 = 32;

    /// The key of an address as [`crate::AddrKey::octets`] has it.
    #[inline(always)]
    #[must_use]
    pub const fn new(slot: u32, addr: [u8; 16]) -> Self {
        Self { slot: slot.to_be_bytes(), addr }
    }
}

/// Counters that a slot may have: what the ledger of slots needs to know of them.
pub trait Counters: Copy + Default + core::fmt::Debug + PartialEq {
    /// What was counted after `base` was read.
    #[must_use]
    fn since(&self, base: &Self) -> Self;
    /// Whether no socket can count here any more once no address leads here.
    fn drained(&self) -> bool;
}

impl Counters for Stats {
    fn since(&self, base: &Self) -> Self {
        self.since(base)
    }

    fn drained(&self) -> bool {
        self.drained()
    }
}

impl Counters for Served {
    fn since(&self, base: &Self) -> Self {
        self.since(base)
    }

    fn drained(&self) -> bool {
        self.drained()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_summed_and_an_earlier_use_is_subtracted() {
        let one = Served {
            tagged: 2,
            started: 3,
            ended: 5,
            busy_ns: 0_u64.wrapping_sub(70),
            last_ns: 9,
            ..Served::default()
        };
        let two = Served { tagged: 1, started: 4, ended: 1, busy_ns: 100, srtt_us: 8, last_ns: 5, ..Served::default() };
        let sum = Served::sum([&one, &two]);
        assert_eq!((sum.tagged, sum.outstanding(), sum.busy_ns, sum.last_ns, sum.srtt_us), (3, 1, 30, 9, 8));
        assert_eq!(sum.since(&sum), Served::default());
        assert!(!sum.drained());
        assert!(Served { released: 3, ..sum }.drained());
    }

    #[test]
    fn what_is_settled_has_nothing_open_and_loses_no_total() {
        let base = Served { tagged: 9, released: 9, started: 5, ended: 5, ..Served::default() };
        let counted = Served {
            tagged: 12,
            released: 10,
            opened: 3,
            closed: 1,
            started: 9,
            ended: 6,
            busy_ns: 0_u64.wrapping_sub(3000),
            ..base
        };
        let (before, settled) = (counted.since(&base), counted.since(&counted.settled(&base, 2000)));
        assert!(settled.drained());
        assert_eq!((settled.outstanding(), settled.opened, settled.closed), (0, 3, 3));
        assert_eq!((settled.requests(), settled.busy_until(9999)), (before.requests(), before.busy_until(2000)));
        assert_eq!(counted.settled(&counted, 2000), counted, "nothing is open");
    }

    #[test]
    fn an_end_that_is_read_before_its_start_is_not_a_negative_count() {
        assert_eq!(Served { ended: 1, ..Served::default() }.outstanding(), 0);
    }

    #[test]
    fn time_goes_on_for_what_is_outstanding() {
        let one = Served { started: 1, busy_ns: 0_u64.wrapping_sub(1000), ..Served::default() };
        assert_eq!(one.busy_until(1500), 500);
        let ended = Served { ended: 1, busy_ns: one.busy_ns.wrapping_add(1200), ..one };
        assert_eq!(ended.busy_until(9999), 200);
    }

    #[test]
    fn a_time_falls_into_the_class_whose_limit_it_does_not_exceed() {
        assert_eq!(Served::class(0), 0);
        assert_eq!(Served::class(1_000_000), 0);
        assert_eq!(Served::class(1_000_001), 1);
        assert_eq!(Served::class(u64::MAX), 7);
    }
}
