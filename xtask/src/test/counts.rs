//! How many tests passed, failed, were ignored: read from `cargo test`'s closing lines, and written as one.

use std::{ops::AddAssign, time::Duration};

use crate::report::Outcome;

/// The numbers of one closing line, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests that did not run because they are marked so.
    pub(crate) ignored: u64,
    /// Tests that did not run because others were asked for.
    pub(crate) filtered: u64,
    /// Whether something went wrong besides tests: a build, a crash.
    pub(crate) broken: bool,
}

impl Counts {
    /// Reads `test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 3 filtered out; …`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let number = |name: &str| -> Option<u64> {
            let part = numbers.split(';').find_map(|part| part.trim().strip_suffix(name))?;
            part.trim().parse().ok()
        };
        let (passed, failed) = (number("passed")?, number("failed")?);
        Some(Self { passed, failed, ignored: number("ignored")?, filtered: number("filtered out")?, broken: false })
    }

    /// As the outcome of a step.
    pub(crate) fn outcome(&self) -> Outcome {
        let Self { passed, failed, ignored, broken, .. } = self;
        let ignored = if *ignored > 0 { format!(", {ignored} ignored") } else { String::new() };
        match (failed, broken) {
            // A wrong name would pass for ever.
            (0, false) if *passed == 0 => Outcome::Failed("no test ran".to_owned()),
            (0, false) => Outcome::Passed(format!("{passed} passed{ignored}")),
            (0, true) => Outcome::Failed(format!("{passed} passed{ignored}, then it broke: see above")),
            _ => Outcome::Failed(format!("{passed} passed, {failed} failed{ignored}")),
        }
    }

    /// As `cargo test` would close. Steps that are no tests have their say in `ok`.
    pub(crate) fn closing_line(&self, ok: bool, took: Duration) -> String {
        let Self { passed, failed, ignored, filtered, .. } = self;
        let word = if ok { "ok" } else { "FAILED" };
        format!(
            "test result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {filtered} filtered \
             out; finished in {:.2}s",
            took.as_secs_f64()
        )
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { passed, failed, ignored, filtered, broken } = other;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
        self.filtered += filtered;
        self.broken |= broken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_is_one_that_can_be_read_again() {
        let counts = Counts { passed: 3, failed: 1, ignored: 2, filtered: 4, broken: false };
        let line = counts.closing_line(false, Duration::from_millis(1500));
        let expected =
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 4 filtered out; finished in 1.50s";
        assert_eq!(line, expected);
        assert_eq!(Counts::parse(&line), Some(counts));
        assert_eq!(Counts::parse("test a ... ok"), None);
    }

    #[test]
    fn what_breaks_without_a_failed_test_fails_all_the_same() {
        let counts = Counts { broken: true, ..Counts::default() };
        assert!(matches!(counts.outcome(), Outcome::Failed(_)));
        let counts = Counts { passed: 1, ..Counts::default() };
        assert!(matches!(counts.outcome(), Outcome::Passed(_)));
        assert_eq!(Counts::default().outcome(), Outcome::Failed("no test ran".to_owned()));
    }
}
