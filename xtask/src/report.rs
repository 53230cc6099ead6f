//! What ran and how it went: collected by `test` and `ci`, printed as a table at their end.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How one step went, each with a word on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Ran and passed.
    Passed(String),
    /// Ran and failed.
    Failed(String),
    /// Did not run, and why.
    NotRun(String),
}

/// The steps so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(String, Outcome, Duration)>,
}

impl Report {
    /// Runs one step under a headline and notes how it went. Later steps run whatever this one did.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce() -> Result<Outcome>) -> bool {
        println!("\n── {name}");
        let started = Instant::now();
        let outcome = step().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        match &outcome {
            Outcome::Failed(why) => eprintln!("{name}: failed: {why}"),
            Outcome::NotRun(why) => println!("not run: {why}"),
            Outcome::Passed(_) => {}
        }
        let passed = matches!(outcome, Outcome::Passed(_));
        self.add(name, outcome, started.elapsed());
        passed
    }

    /// Notes what ran elsewhere.
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome, took: Duration) {
        self.rows.push((name.to_owned(), outcome, took));
    }

    /// The table: a row a step.
    pub(crate) fn table(&self) -> String {
        let width = self.rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
        let mut table = String::new();
        for (name, outcome, took) in &self.rows {
            let (word, detail) = match outcome {
                Outcome::Passed(detail) => ("passed", detail),
                Outcome::Failed(detail) => ("FAILED", detail),
                Outcome::NotRun(detail) => ("not run", detail),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(table, "  {name:width$}  {word:7}  {:>6.1} s  {detail}", took.as_secs_f64());
        }
        table
    }

    /// Names of the steps that failed.
    pub(crate) fn failed(&self) -> Vec<&str> {
        let failed = self.rows.iter().filter(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)));
        failed.map(|(name, ..)| name.as_str()).collect()
    }

    /// An error that names the steps that failed, if any did.
    pub(crate) fn verdict(&self) -> Result<()> {
        let failed = self.failed();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_does_not_stop_the_next_and_decides_the_verdict() {
        let mut report = Report::default();
        assert!(!report.step("first", || bail!("broken")));
        assert!(!report.step("second", || Ok(Outcome::NotRun("no root".to_owned()))));
        assert!(report.step("third", || Ok(Outcome::Passed("3 passed".to_owned()))));
        assert_eq!(report.failed(), ["first"]);
        assert_eq!(report.verdict().unwrap_err().to_string(), "failed: first");
        let table = report.table();
        assert!(table.contains("first   FAILED"), "{table}");
        assert!(table.contains("not run"), "{table}");
    }
}
