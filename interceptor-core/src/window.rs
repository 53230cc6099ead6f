//! Requests per second over a sliding window: a ring of buckets, as in Knative's autoscaler.
//! Written and read by [`crate::demand`]; time is passed in.

use std::time::Duration;

/// Most buckets of a window. Enough for a second's resolution over a quarter of an hour; a tenant who asks for a year in
/// seconds gets longer buckets instead of our memory (8 KiB at most).
pub const MAX_BUCKETS: u64 = 1024;

const DEFAULT_WINDOW: Duration = Duration::from_mins(1);
const DEFAULT_GRANULARITY: Duration = Duration::from_secs(1);
/// Rates are told in millionths.
const PRECISION: f64 = 1e6;
/// A window that has seen only its first moment is taken to be this long, so that one request in a bucket of a
/// millisecond isn't a thousand a second.
const MIN_SPAN: Duration = Duration::from_secs(1);

/// Length of a window and of its buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    granularity: Duration,
    bucket: u64,
    len: u64,
}

/// How a rate is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Requests per second.
    #[default]
    Second,
    /// Requests per granularity, as the original add-on has it: ten times as many at a granularity of ten seconds.
    Granularity,
}

/// The ring. Silence up to the time of a question counts as zeros; holds no memory while all is zero.
#[derive(Clone, Debug)]
pub struct Window {
    shape: Shape,
    /// Empty while `total` is zero, else one a bucket.
    buckets: Box<[u64]>,
    total: u64,
    /// First and last bucket of the time that was observed; `None` before the first record.
    seen: Option<(u64, u64)>,
}

// === impl Shape ===

impl Shape {
    /// A window of `window` in buckets of `granularity`; zero takes the defaults, one minute and one second.
    ///
    /// When that makes more than [`MAX_BUCKETS`], buckets are made longer.
    pub fn new(window: Duration, granularity: Duration) -> Self {
        let window = if window.is_zero() { DEFAULT_WINDOW } else { window };
        let granularity = if granularity.is_zero() { DEFAULT_GRANULARITY } else { granularity };
        let window_ns = nanos(window);
        let bucket = nanos(granularity).max(window_ns.div_ceil(MAX_BUCKETS));
        Self { granularity, bucket, len: window_ns.div_ceil(bucket) }
    }

    /// How many buckets there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: there is one bucket at least.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn index(self, now: Duration) -> u64 {
        nanos(now) / self.bucket
    }

    fn start_of(self, bucket: u64) -> Duration {
        Duration::from_nanos(bucket.saturating_mul(self.bucket))
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self::new(DEFAULT_WINDOW, DEFAULT_GRANULARITY)
    }
}

// === impl Window ===

impl Window {
    /// An empty window.
    pub fn new(shape: Shape) -> Self {
        Self { shape, buckets: Box::default(), total: 0, seen: None }
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Adds `count` at `now`. After a gap of the whole window it begins anew, as if nothing had been observed before.
    ///
    /// A record older than the window is ignored.
    pub fn record(&mut self, now: Duration, count: u64) {
        let index = self.shape.index(now);
        match self.seen {
            Some((first, last)) if index < last.saturating_add(self.shape.len) => {
                self.roll(index);
                if index.saturating_add(self.shape.len) > last {
                    self.seen = Some((first.min(index), last.max(index)));
                    self.add(index, count);
                }
            }
            _ => {
                self.clear();
                self.seen = Some((index, index));
                self.add(index, count);
            }
        }
    }

    /// Adds `count`, which arrived at unknown times between `from` and `to`, evenly.
    pub fn record_span(&mut self, from: Duration, to: Duration, count: u64) {
        let last = self.shape.index(to);
        let first = self.shape.index(from).min(last);
        // What fell before the window is lost on purpose: spread over all of the time, then cut off.
        let span = last - first + 1;
        let each = count / span;
        for index in last.saturating_sub(self.shape.len - 1).max(first)..last {
            self.record(self.shape.start_of(index), each);
        }
        self.record(to, each + count % span);
    }

    /// Nothing came until `now`, and that was seen.
    pub fn advance(&mut self, now: Duration) {
        let index = self.shape.index(now);
        match self.seen {
            None => self.seen = Some((index, index)),
            Some((first, last)) if index > last => {
                self.roll(index);
                self.seen = Some((first, index));
            }
            Some(_) => {}
        }
    }

    /// The rate at `now`, to six decimals; a rate above zero never becomes zero by rounding.
    pub fn rate(&self, now: Duration, unit: Unit) -> f64 {
        let Some((first, last)) = self.seen else { return 0.0 };
        let index = self.shape.index(now).max(last);
        let total = self.total_at(index);
        if total == 0 {
            return 0.0;
        }
        let buckets = (index - first + 1).min(self.shape.len);
        let whole = Duration::from_nanos(self.shape.len.saturating_mul(self.shape.bucket));
        let span = Duration::from_nanos(buckets.saturating_mul(self.shape.bucket)).max(MIN_SPAN.min(whole));
        let per_second = as_float(total) / span.as_secs_f64();
        round(match unit {
            Unit::Second => per_second,
            Unit::Granularity => per_second * self.shape.granularity.as_secs_f64(),
        })
    }

    /// When the rate falls to zero if nothing more comes; `None` if it is zero at `now`.
    pub fn quiet_at(&self, now: Duration) -> Option<Duration> {
        let (_, last) = self.seen?;
        if self.total_at(self.shape.index(now).max(last)) == 0 {
            return None;
        }
        let newest = (0..self.shape.len).map(|back| last.saturating_sub(back)).find(|&index| self.bucket(index) > 0)?;
        Some(self.shape.start_of(newest.saturating_add(self.shape.len)))
    }

    /// The same history in another shape.
    #[must_use]
    pub fn reshaped(&self, shape: Shape) -> Self {
        let mut new = Self::new(shape);
        let Some((first, last)) = self.seen else { return new };
        new.advance(self.shape.start_of(first));
        for index in last.saturating_sub(self.shape.len - 1).max(first)..=last {
            let at = self.shape.start_of(index);
            new.advance(at);
            if self.bucket(index) > 0 {
                new.record(at, self.bucket(index));
            }
        }
        new
    }

    /// Sum of what is in the window when `index` is its newest bucket; `index` is not before the last one seen.
    fn total_at(&self, index: u64) -> u64 {
        let Some((_, last)) = self.seen else { return 0 };
        if self.total == 0 || index - last >= self.shape.len {
            return 0;
        }
        let gone: u64 = (last + 1..=index).map(|skipped| self.bucket(skipped)).sum();
        self.total.saturating_sub(gone)
    }

    /// Forgets what leaves the window when `index` becomes its newest bucket.
    fn roll(&mut self, index: u64) {
        let Some((_, last)) = self.seen else { return };
        if index <= last || self.total == 0 {
            return;
        }
        if index - last >= self.shape.len {
            return self.clear();
        }
        for skipped in last + 1..=index {
            let slot = self.slot(skipped);
            self.total = self.total.saturating_sub(std::mem::take(&mut self.buckets[slot]));
        }
        if self.total == 0 {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.buckets = Box::default();
        self.total = 0;
    }

    fn add(&mut self, index: u64, count: u64) {
        if count == 0 {
            return;
        }
        if self.buckets.is_empty() {
            self.buckets = (0..self.shape.len).map(|_| 0).collect();
        }
        // So that the sum of all buckets can't overflow, whatever a source claims.
        let count = count.min(u64::MAX - self.total);
        let slot = self.slot(index);
        self.buckets[slot] += count;
        self.total += count;
    }

    /// What lies in the slot of `index`, zero while nothing is held.
    fn bucket(&self, index: u64) -> u64 {
        self.buckets.get(self.slot(index)).copied().unwrap_or(0)
    }

    fn slot(&self, index: u64) -> usize {
        usize::try_from(index % self.shape.len).expect("a slot is less than MAX_BUCKETS")
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(u64::from(!duration.is_zero()))
}

fn round(rate: f64) -> f64 {
    let rounded = (rate * PRECISION).round() / PRECISION;
    if rounded == 0.0 { 1.0 / PRECISION } else { rounded }
}

#[expect(clippy::cast_precision_loss, reason = "a rate is an estimate; 53 bits are plenty")]
fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn window(window: Duration, granularity: Duration) -> Window {
        Window::new(Shape::new(window, granularity))
    }

    fn recorded(window: &mut Window, at: u64, count: u64) -> f64 {
        window.record(secs(at), count);
        window.rate(secs(at), Unit::Second)
    }

    #[track_caller]
    fn equal(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-9, "{left} is not {right}");
    }

    #[test]
    fn averages_as_the_original_does() {
        let mut w = window(secs(5), secs(1));
        for (at, count, rate) in [(0, 1, 1.0), (1, 2, 1.5), (2, 3, 2.0), (3, 4, 2.5), (4, 5, 3.0)] {
            equal(recorded(&mut w, at, count), rate);
        }
        equal(w.rate(secs(5), Unit::Second), 2.8);
        equal(w.rate(secs(6), Unit::Second), 2.4);
        for (at, count, rate) in [(7, 8, 3.4), (8, 9, 4.4), (9, 10, 5.4), (10, 11, 7.6), (11, 12, 10.0)] {
            equal(recorded(&mut w, at, count), rate);
        }
        for (at, rate) in [(12, 8.4), (13, 6.6), (14, 4.6), (15, 2.4), (16, 0.0)] {
            equal(w.rate(secs(at), Unit::Second), rate);
        }
        equal(recorded(&mut w, 17, 1), 1.0);
    }

    #[test]
    fn a_late_record_inside_the_window_is_added_and_an_older_one_is_ignored() {
        let mut w = window(secs(5), secs(1));
        w.record(secs(60), 1984);
        w.record(secs(57), 4);
        equal(w.rate(secs(60), Unit::Second), (4.0 + 1984.0) / 4.0);
        w.record(secs(55), 7);
        equal(w.rate(secs(60), Unit::Second), (4.0 + 1984.0) / 4.0);
    }

    #[test]
    fn a_gap_of_exactly_the_window_restarts_it() {
        let mut w = window(secs(5), secs(1));
        w.record(secs(10), 100);
        equal(recorded(&mut w, 15, 3), 3.0);
    }

    #[test]
    fn observed_silence_counts_as_zeros_instead_of_restarting_the_window() {
        let mut w = window(secs(60), secs(1));
        w.advance(secs(0));
        w.advance(secs(1000));
        equal(recorded(&mut w, 1000, 60), 1.0);
        equal(w.rate(secs(1059), Unit::Second), 1.0);
        equal(w.rate(secs(1060), Unit::Second), 0.0);
    }

    #[test]
    fn the_rate_is_per_second_at_every_granularity() {
        for granularity in [1, 10, 100, 250, 500, 1000, 1500, 3000, 10_000, 60_000] {
            let mut w = window(secs(60), Duration::from_millis(granularity));
            w.advance(Duration::ZERO);
            for at in (0..240_000).step_by(100) {
                w.record(Duration::from_millis(at), 1);
            }
            let now = Duration::from_millis(239_999);
            let rate = w.rate(now, Unit::Second);
            assert!((rate - 10.0).abs() < 0.2, "{rate} at {granularity} ms");
            let per = w.rate(now, Unit::Granularity);
            let expected = rate * Duration::from_millis(granularity).as_secs_f64();
            assert!((per - expected).abs() < 1e-5, "{per} is not {expected}");
        }
    }

    #[test]
    fn the_unit_of_the_original_is_requests_per_bucket() {
        let mut w = window(secs(60), secs(10));
        for at in 0..60 {
            w.record(secs(at), 10);
        }
        equal(w.rate(secs(59), Unit::Granularity), 100.0);
        equal(w.rate(secs(59), Unit::Second), 10.0);
    }

    #[test]
    fn a_year_in_seconds_takes_longer_buckets_and_one_request_still_is_not_zero() {
        let shape = Shape::new(secs(365 * 86_400), secs(1));
        assert!(shape.len() <= MAX_BUCKETS);
        let mut w = Window::new(shape);
        w.advance(Duration::ZERO);
        w.record(secs(364 * 86_400), 1);
        assert!(w.rate(secs(364 * 86_400), Unit::Second) > 0.0);
    }

    #[test]
    fn rates_are_rounded_to_six_decimals() {
        let mut w = window(secs(3), secs(1));
        w.advance(Duration::ZERO);
        assert_eq!(recorded(&mut w, 2, 1).to_string(), "0.333333");
    }

    #[test]
    fn a_count_over_a_long_time_is_spread_over_it() {
        let mut w = window(secs(10), secs(1));
        w.advance(secs(0));
        w.record_span(secs(100), secs(199), 1000);
        equal(w.rate(secs(199), Unit::Second), 10.0);
        let mut w = window(secs(10), secs(1));
        w.record_span(secs(5), secs(5), 7);
        equal(w.rate(secs(5), Unit::Second), 7.0);
    }

    #[test]
    fn an_idle_window_holds_no_buckets() {
        let mut w = window(secs(60), secs(1));
        w.advance(secs(1));
        w.record(secs(1), 0);
        assert!(w.buckets.is_empty());
        w.record(secs(2), 1);
        assert_eq!(w.buckets.len(), 60);
        w.advance(secs(62));
        assert!(w.buckets.is_empty());
    }

    #[test]
    fn another_shape_keeps_the_history() {
        let mut w = window(secs(60), secs(1));
        w.advance(secs(0));
        for at in 0..60 {
            w.record(secs(at), 5);
        }
        equal(w.reshaped(Shape::new(secs(60), secs(10))).rate(secs(59), Unit::Second), 5.0);
        equal(w.reshaped(Shape::new(secs(30), secs(1))).rate(secs(59), Unit::Second), 5.0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Record(u64, u64),
        Advance(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..20_000_u64, 0..1000_u64).prop_map(|(at, count)| Step::Record(at, count)),
            (0..20_000_u64).prop_map(Step::Advance),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// Against a list of all records: the total is what lies in the newest `len` buckets.
        #[test]
        fn holds_what_was_recorded_in_the_window(
            (window_ms, granularity_ms) in (1..10_000_u64, 1..3000_u64), mut steps in steps(), late in 0..20_000_u64,
        ) {
            steps.sort_by_key(|step| match step { Step::Record(at, _) | Step::Advance(at) => *at });
            let shape = Shape::new(Duration::from_millis(window_ms), Duration::from_millis(granularity_ms));
            let mut w = Window::new(shape);
            let mut all = Vec::new();
            for step in &steps {
                match *step {
                    Step::Record(at, count) => {
                        w.record(Duration::from_millis(at), count);
                        all.push((shape.index(Duration::from_millis(at)), count));
                    }
                    Step::Advance(at) => w.advance(Duration::from_millis(at)),
                }
            }
            let end = steps.last().map_or(0, |step| match step { Step::Record(at, _) | Step::Advance(at) => *at });
            let now = Duration::from_millis(end + late);
            let index = shape.index(now);
            let expected: u64 = all.iter().filter(|(i, _)| i + shape.len > index).map(|(_, count)| count).sum();
            if w.seen.is_some() {
                prop_assert_eq!(w.total_at(index), expected);
            }
            prop_assert_eq!(w.rate(now, Unit::Second) > 0.0, expected > 0);
            match w.quiet_at(now) {
                None => prop_assert_eq!(expected, 0),
                Some(quiet) => {
                    prop_assert!(quiet > now);
                    prop_assert!(w.rate(quiet.saturating_sub(Duration::from_nanos(1)), Unit::Second) > 0.0);
                    prop_assert!(w.rate(quiet, Unit::Second) <= 0.0);
                }
            }
        }

        #[test]
        fn no_shape_time_or_count_makes_it_panic_or_grow(
            window: Duration, granularity: Duration, steps in prop::collection::vec(any::<(Duration, Duration, u64)>(), 0..20), other: Duration,
        ) {
            let shape = Shape::new(window, granularity);
            prop_assert!(!shape.is_empty() && shape.len() <= MAX_BUCKETS);
            let mut w = Window::new(shape);
            for (at, until, count) in steps {
                w.record(at, count);
                w.record_span(at, until, count);
                w.advance(until);
                prop_assert!(w.rate(until, Unit::Second).is_finite());
                prop_assert!(w.rate(at, Unit::Granularity) >= 0.0);
                let _ = w.quiet_at(at);
                prop_assert!(w.buckets.len() as u64 <= MAX_BUCKETS);
                w = w.reshaped(Shape::new(window, other));
                w = w.reshaped(shape);
            }
        }

        #[test]
        fn another_shape_loses_nothing_that_lies_in_both(granularity in 1..2000_u64, counts in prop::collection::vec(0..50_u64, 1..30)) {
            let mut w = window(secs(30), secs(1));
            for (at, count) in counts.iter().enumerate() {
                w.record(secs(at as u64), *count);
            }
            let new = w.reshaped(Shape::new(secs(60), Duration::from_millis(granularity)));
            prop_assert_eq!(new.total, counts.iter().sum::<u64>());
        }
    }
}
