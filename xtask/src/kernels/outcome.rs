//! What became of each suite: read from what a machine writes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{kernels::suites::Suite, report::Outcome, test::Counts};

/// Stands before a suite's name in what a machine writes.
const SUITE: &str = "== suite ";
/// Stands where what has failed is run once more.
const AGAIN: &str = "== again";

/// The suites so far.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    suites: BTreeMap<String, Seen>,
    now: Option<String>,
}

#[derive(Debug)]
struct Seen {
    began: Instant,
    last: Instant,
    counts: Option<Counts>,
    /// What the first run came to, where there was a second one.
    before: Option<Counts>,
    failed: Vec<String>,
    /// All that it wrote, to tell how far it came.
    begun: Vec<String>,
}

/// What a machine's shell does before a suite.
pub(super) fn begins(name: &str) -> String {
    format!("echo '{SUITE}{name}'")
}

/// What it does before what has failed is run once more.
pub(super) fn again() -> String {
    format!("echo '{AGAIN}'")
}

impl Outcomes {
    /// Takes a line of what a machine writes.
    pub(super) fn read(&mut self, line: &str, at: Instant) {
        if let Some(name) = line.strip_prefix(SUITE) {
            let seen = Seen { began: at, last: at, counts: None, before: None, failed: Vec::new(), begun: Vec::new() };
            self.suites.insert(name.to_owned(), seen);
            self.now = Some(name.to_owned());
        }
        let Some(seen) = self.now.as_ref().and_then(|name| self.suites.get_mut(name)) else { return };
        seen.last = at;
        if let Some(counts) = Counts::parse(line) {
            seen.counts = Some(counts);
        } else if line == AGAIN {
            seen.before = seen.counts.take();
            seen.failed.clear();
        } else if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            seen.failed.push(name.to_owned());
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            seen.begun.push(name.0.to_owned());
        }
    }

    /// How a suite went, and how long it took; `why` is what ended the machine before its time.
    pub(super) fn of(&self, suite: &Suite, why: Option<&anyhow::Error>) -> (Outcome, Duration) {
        let why = || why.map_or_else(|| "the machine ended: see console.log".to_owned(), |why| format!("{why:#}"));
        let Some(Seen { began, last, counts, before, failed, begun }) = self.suites.get(&suite.name) else {
            return (Outcome::Failed(format!("did not begin: {}", why())), Duration::ZERO);
        };
        let (expected, at_once) = (suite.tests.len() as u64, before.map_or(0, |before| before.passed));
        let counts = counts.map(|counts| Counts { passed: counts.passed + at_once, ..counts });
        let outcome = match counts {
            None => {
                let stuck = suite.tests.iter().find(|test| !begun.contains(test)).map_or("the end", String::as_str);
                Outcome::Failed(format!("stopped in {stuck}: {}", why()))
            }
            Some(Counts { passed, failed: 0, .. }) if passed == expected => Outcome::Passed(match before {
                None => format!("{passed} passed"),
                Some(before) => format!("{passed} passed, {} of them in a second try", before.failed),
            }),
            Some(Counts { passed, failed: 0, .. }) => Outcome::Failed(format!("{passed} passed of {expected}")),
            Some(Counts { passed, .. }) => Outcome::Failed(format!("{passed} passed; failed: {}", failed.join(", "))),
        };
        (outcome, last.duration_since(*began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> String {
        let tests = ["a", "b", "c"].map(str::to_owned).to_vec();
        let suite = Suite { name: "p/s".to_owned(), folder: "/".into(), program: "/s".into(), tests };
        let mut outcomes = Outcomes::default();
        for line in lines {
            outcomes.read(line, Instant::now());
        }
        let (Outcome::Passed(told) | Outcome::Failed(told) | Outcome::NotRun(told)) = outcomes.of(&suite, None).0;
        told
    }

    #[test]
    fn a_suite_has_passed_only_if_all_of_its_tests_have() {
        let ended = |passed, failed| {
            format!("test result: x. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; x")
        };
        assert_eq!(of(&["== suite p/s", "test a ... ok", &ended(3, 0)]), "3 passed");
        assert_eq!(of(&["== suite p/s", &ended(2, 0)]), "2 passed of 3");
        let failed = ["== suite p/s", "---- b stdout ----", &ended(2, 1)];
        assert_eq!(of(&failed), "2 passed; failed: b");
        let again = ["== suite p/s", "---- b stdout ----", &ended(2, 1), "== again", &ended(1, 0)];
        assert_eq!(of(&again), "3 passed, 1 of them in a second try");
        let twice = ["== suite p/s", &ended(2, 1), "== again", "---- b stdout ----", &ended(0, 1)];
        assert_eq!(of(&twice), "2 passed; failed: b");
        let stopped = ["== suite p/s", "test a ... ok", "== suite other", "test b ... ok"];
        assert_eq!(of(&stopped), "stopped in b: the machine ended: see console.log");
        assert!(of(&[]).starts_with("did not begin"));
    }
}
