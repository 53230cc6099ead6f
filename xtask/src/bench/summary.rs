//! From samples to what the page says: medians with their spread, and ratios within a round. Pure.

use std::collections::BTreeMap;

use crate::bench::load::Seen;

/// One peer's run in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Requests per second of the proxy's CPU time.
    pub(crate) per_cpu_second: f64,
    /// Share of one processor that the proxy used.
    pub(crate) busy: f64,
    /// What the load generator saw.
    pub(crate) seen: Seen,
}

/// Samples of one case: by peer, one a round, in the order of the rounds.
pub(crate) type Samples = BTreeMap<String, Vec<Sample>>;

/// Median of some values, with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// The middle one.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of these values; `None` of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max })
    }

    /// The same in another unit.
    pub(crate) fn scaled(self, by: f64) -> Self {
        let Self { median, min, max } = self;
        Self { median: median * by, min: min * by, max: max * by }
    }
}

/// How `name` does beside the best of `others`, round by round: both met the same machine at nearly the same time.
pub(crate) fn ratio(samples: &Samples, name: &str, others: &[&str]) -> Option<Spread> {
    let mine = samples.get(name)?;
    let rounds = mine.iter().enumerate().filter_map(|(round, mine)| {
        let theirs = others.iter().filter_map(|other| Some(samples.get(*other)?.get(round)?.per_cpu_second));
        Some(mine.per_cpu_second / theirs.max_by(f64::total_cmp)?)
    });
    Spread::of(rounds)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn samples(values: &[f64]) -> Vec<Sample> {
        let seen = Seen { requests: 1, p50: Duration::ZERO, p99: Duration::ZERO };
        values.iter().map(|&per_cpu_second| Sample { per_cpu_second, busy: 1.0, seen }).collect()
    }

    #[test]
    fn a_ratio_is_taken_within_a_round_against_the_better_of_the_others() {
        let all = Samples::from([
            ("ours".to_owned(), samples(&[100.0, 50.0, 90.0])),
            ("a".to_owned(), samples(&[80.0, 50.0, 10.0])),
            ("b".to_owned(), samples(&[50.0, 40.0, 60.0])),
        ]);
        let spread = ratio(&all, "ours", &["a", "b"]).unwrap();
        assert_eq!(spread, Spread { median: 1.25, min: 1.0, max: 1.5 });
        assert_eq!(ratio(&all, "ours", &["nobody"]), None);
        assert_eq!(ratio(&all, "nobody", &["a"]), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }
}
