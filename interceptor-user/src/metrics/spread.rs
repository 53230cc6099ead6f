//! A histogram of times whose one observation touches one or two cache lines: with thousands of routes each request
//! finds its own series cold. Written by workers, read by a scrape.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Upper bounds in milliseconds: the add-on's, with those that 0.16 added for cold starts.
const BOUNDS: [u32; 19] = [
    5, 10, 25, 50, 75, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000,
];

/// Observed times. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spread(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    nanos: AtomicU64,
    /// Not cumulative; the last is for all that is longer than any bound.
    counts: [AtomicU64; BOUNDS.len() + 1],
}

// === impl Spread ===

impl Spread {
    pub(crate) fn observe(&self, time: Duration) {
        let Cells { nanos, counts } = &*self.0;
        let bucket = BOUNDS.iter().position(|bound| time <= Duration::from_millis(u64::from(*bound)));
        counts[bucket.unwrap_or(BOUNDS.len())].fetch_add(1, Relaxed);
        nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

impl Spread {
    /// How many times were observed.
    pub(crate) fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

impl TypedMetric for Spread {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Spread {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Cells { nanos, counts } = &*self.0;
        let bounds = BOUNDS.iter().map(|bound| f64::from(*bound) / 1e3).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).map(|(bound, count)| (bound, count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(nanos.load(Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn times_are_shown_in_cumulative_buckets() {
        let (mut registry, spread) = (Registry::default(), Spread::default());
        registry.register("took", "Time", spread.clone());
        for millis in [1, 5, 6, 400_000] {
            spread.observe(Duration::from_millis(millis));
        }
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "took_sum 400.012",
            "took_count 4",
            "took_bucket{le=\"0.005\"} 2",
            "took_bucket{le=\"0.01\"} 3",
            "took_bucket{le=\"300.0\"} 3",
            "took_bucket{le=\"+Inf\"} 4",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
    }
}
