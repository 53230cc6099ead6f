//! The result as a page (Markdown) and for machines (JSON). Pure: `proxy.rs` writes the files.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use crate::bench::{
    case::Case,
    summary::{Samples, Spread, ratio},
};

/// Everything one run of `bench proxy` found.
#[derive(Debug)]
pub(crate) struct Results {
    /// The machine.
    pub(crate) machine: String,
    /// What else it was doing.
    pub(crate) disturbance: Option<String>,
    /// Versions of the contenders, a line each.
    pub(crate) versions: Vec<String>,
    /// Names of the contenders, in the order of the table; the first are the ones compared with.
    pub(crate) names: Vec<String>,
    /// Names of the contenders that are ours.
    pub(crate) ours: Vec<String>,
    /// How often each contender ran each case, and for how long.
    pub(crate) rounds: usize,
    /// How long one run was.
    pub(crate) time: Duration,
    /// The cases with their samples and remarks.
    pub(crate) cases: Vec<(Case, Samples, Vec<String>)>,
}

impl Results {
    fn others(&self) -> Vec<&str> {
        self.names.iter().filter(|name| !self.ours.contains(name)).map(String::as_str).collect()
    }

    /// The page.
    pub(crate) fn markdown(&self) -> String {
        let mut page = String::from("# Proxy bench\n\n");
        let mut line = |text: &str| {
            page.push_str(text);
            page.push('\n');
        };
        line(&format!("Machine: {}.\n", self.machine));
        for version in &self.versions {
            line(&format!("- {version}"));
        }
        line(&format!(
            "\n{} rounds of {} s for each proxy in turn; one worker each on a processor of its own, load and origin \
             on the other; keep-alive to the origin. Requests per second of the proxy's own CPU time (user and \
             system), median (least to greatest over the rounds); `×` is the ratio to the better of {} in the same \
             round. p50 and p99 are medians over the rounds, under the full load of that case.\n",
            self.rounds,
            self.time.as_secs(),
            self.others().join(" and "),
        ));
        line("| case | proxy | requests per CPU-second | × | p50 | p99 | busy |");
        line("|---|---|---|---|---|---|---|");
        for (case, samples, _) in &self.cases {
            for name in &self.names {
                if let Some(row) = self.row(case, samples, name) {
                    line(&row);
                }
            }
        }
        let remarks = self.cases.iter().flat_map(|(_, _, remarks)| remarks).chain(&self.disturbance);
        let remarks: Vec<&String> = remarks.collect();
        if !remarks.is_empty() {
            line("");
        }
        for remark in remarks {
            line(&format!("- {remark}"));
        }
        page
    }

    fn row(&self, case: &Case, samples: &Samples, name: &str) -> Option<String> {
        let mine = samples.get(name)?;
        let rate = Spread::of(mine.iter().map(|sample| sample.per_cpu_second))?;
        let busy = Spread::of(mine.iter().map(|sample| sample.busy))?;
        let p50 = Spread::of(mine.iter().map(|sample| sample.seen.p50.as_secs_f64()))?;
        let p99 = Spread::of(mine.iter().map(|sample| sample.seen.p99.as_secs_f64()))?;
        let others: Vec<&str> = self.others().into_iter().filter(|other| *other != name).collect();
        let ratio = ratio(samples, name, &others)
            .map_or_else(String::new, |Spread { median, min, max }| format!("{median:.2} ({min:.2}–{max:.2})"));
        let mut row = String::new();
        // Writing to a String cannot fail.
        let _ = write!(
            row,
            "| {} | {name} | {:.0} ({:.0}–{:.0}) | {ratio} | {} | {} | {:.0} % |",
            case.title,
            rate.median,
            rate.min,
            rate.max,
            shown(p50.median),
            shown(p99.median),
            busy.median * 100.0
        );
        Some(row)
    }

    /// The same for machines, every sample of it.
    pub(crate) fn json(&self) -> Value {
        let cases = self.cases.iter().map(|(case, samples, remarks)| {
            let peers = samples.iter().map(|(name, samples)| {
                let rounds = samples.iter().map(|sample| {
                    json!({
                        "requestsPerCpuSecond": sample.per_cpu_second,
                        "busy": sample.busy,
                        "requests": sample.seen.requests,
                        "p50Us": sample.seen.p50.as_micros(),
                        "p99Us": sample.seen.p99.as_micros(),
                    })
                });
                (name.clone(), rounds.collect::<Value>())
            });
            json!({ "case": case.name, "peers": peers.collect::<Value>(), "remarks": remarks })
        });
        json!({ "machine": self.machine, "disturbance": self.disturbance, "versions": self.versions, "cases": cases.collect::<Value>() })
    }
}

fn shown(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.0} µs", seconds * 1e6) } else { format!("{:.2} ms", seconds * 1e3) }
}
