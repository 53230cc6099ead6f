//! Requests in flight from counters that only grow: the mean over the time between two readings, so that requests shorter
//! than that are seen as well as those that hang. Pure.

use interceptor_common::{Served, flow::span};

/// What an upstream's pods on this node had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests in flight: the mean since the last reading, rounded up, and connections that moved bytes without requests.
    pub in_flight: u64,
    /// Requests ever.
    pub requests: u64,
}

/// One upstream's readings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    last: Option<Reading>,
    requests: u64,
    /// Connections that moved bytes in the last span of time that is complete.
    moved: u64,
    span: u32,
    /// What had been counted when the present span began.
    span_base: u64,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    now_ns: u64,
    busy_ns: u64,
}

// === impl Meter ===

impl Meter {
    /// Takes what was read at `now_ns`.
    pub fn read(&mut self, now_ns: u64, served: &Served) -> Load {
        let busy_ns = served.busy_until(now_ns);
        let waiting = match self.last {
            Some(last) if now_ns > last.now_ns => mean(busy_ns.wrapping_sub(last.busy_ns), now_ns - last.now_ns),
            _ => served.outstanding(),
        };
        self.last = Some(Reading { now_ns, busy_ns });
        // One that turns out to be none is taken back, and totals must not fall.
        self.requests = self.requests.max(served.requests());
        Load { in_flight: waiting.saturating_add(self.moving(now_ns, served.moving)), requests: self.requests }
    }

    fn moving(&mut self, now_ns: u64, moving: u64) -> u64 {
        let now = span(now_ns);
        if now != self.span {
            let complete = now == self.span.wrapping_add(1);
            self.moved = if complete { moving.wrapping_sub(self.span_base) } else { 0 };
            self.span = now;
            self.span_base = moving;
        }
        self.moved.max(moving.wrapping_sub(self.span_base))
    }
}

/// Rounded up. CPUs are read one after the other, so that it may come out a little below zero.
fn mean(busy_ns: u64, time_ns: u64) -> u64 {
    if busy_ns > u64::MAX / 2 { 0 } else { busy_ns.div_ceil(time_ns) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 250_000_000;

    fn at(tick: u64) -> u64 {
        (1 << 33) + tick * TICK
    }

    fn started(count: u64, when_ns: u64, before: Served) -> Served {
        let busy_ns = before.busy_ns.wrapping_sub(count * when_ns);
        Served { started: before.started + count, busy_ns, ..before }
    }

    fn ended(count: u64, when_ns: u64, before: Served) -> Served {
        let busy_ns = before.busy_ns.wrapping_add(count * when_ns);
        Served { ended: before.ended + count, busy_ns, ..before }
    }

    #[test]
    fn what_hangs_is_in_flight_at_every_reading() {
        let mut meter = Meter::default();
        let served = started(3, at(0), Served::default());
        for tick in 0..5 {
            assert_eq!(meter.read(at(tick), &served), Load { in_flight: 3, requests: 3 });
        }
        assert_eq!(meter.read(at(5), &ended(3, at(5), served)).in_flight, 3);
        assert_eq!(meter.read(at(6), &ended(3, at(5), served)).in_flight, 0);
    }

    #[test]
    fn a_request_between_two_readings_shows() {
        let mut meter = Meter::default();
        meter.read(at(0), &Served::default());
        let served = ended(1, at(0) + 2000, started(1, at(0) + 1000, Served::default()));
        assert_eq!(meter.read(at(1), &served), Load { in_flight: 1, requests: 1 });
        assert_eq!(meter.read(at(2), &served), Load { in_flight: 0, requests: 1 });
    }

    #[test]
    fn a_connection_that_moves_bytes_counts_until_a_span_has_passed_without() {
        let mut meter = Meter::default();
        let mut served = Served { moving: 5, ..Served::default() };
        meter.read(1 << 33, &served);
        served.moving = 7;
        let now = (1 << 33) + TICK;
        assert_eq!(meter.read(now, &served).in_flight, 2);
        assert_eq!(meter.read(now + (1 << 30), &served).in_flight, 2, "in the span before");
        assert_eq!(meter.read(now + (2 << 30), &served).in_flight, 0);
    }

    #[test]
    fn a_reading_that_saw_an_end_before_its_start_is_not_below_zero() {
        let mut meter = Meter::default();
        meter.read(at(0), &Served::default());
        let torn = Served { started: 1, busy_ns: 0_u64.wrapping_sub(at(2)), ..Served::default() };
        assert_eq!(meter.read(at(1), &torn).in_flight, 0);
    }

    #[test]
    fn a_total_never_falls() {
        let mut meter = Meter::default();
        let served = Served { started: 4, ended: 4, ..Served::default() };
        assert_eq!(meter.read(at(0), &served).requests, 4);
        assert_eq!(meter.read(at(1), &Served { undone: 1, ..served }).requests, 4);
    }
}
