//! The result as a page, as a plot and for machines.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use crate::bench::{machine, plot, summary::Spread};

/// How far a cold start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// KEDA has been told that the workload is wanted.
    Signal,
    /// KEDA has set `spec.replicas`.
    Decided,
    /// There is a pod.
    Created,
    /// The pod listens.
    Accepts,
    /// Its endpoint is listed as ready.
    Ready,
    /// The answer's first byte has come.
    FirstByte,
}

const PHASES: [(Phase, &str, &str); 6] = [
    (Phase::Signal, "signal", "the scaler tells KEDA"),
    (Phase::Decided, "decided", "KEDA has set `spec.replicas` to 1"),
    (Phase::Created, "created", "there is a pod"),
    (Phase::Accepts, "accepts", "the pod listens"),
    (Phase::Ready, "ready", "its endpoint is listed as ready"),
    (Phase::FirstByte, "firstByte", "first byte of the answer"),
];
/// Differences that say whose time it was.
const BETWEEN: [(Phase, Phase, &str); 4] = [
    (Phase::Signal, Phase::Decided, "signal → decided"),
    (Phase::Decided, Phase::Accepts, "decided → accepts"),
    (Phase::Accepts, Phase::FirstByte, "accepts → first byte"),
    (Phase::Ready, Phase::FirstByte, "ready → first byte"),
];

/// One cold start: seconds from the request to each phase.
#[derive(Clone, Debug)]
pub(super) struct Round(BTreeMap<Phase, f64>);

/// All of them.
#[derive(Clone, Debug)]
pub(super) struct Results {
    pub(super) rounds: Vec<Round>,
    pub(super) probe_period: u32,
    pub(super) start_delay: u64,
}

// === impl Round ===

impl Round {
    /// Of those phases that were seen.
    pub(super) fn new<const N: usize>(phases: [(Phase, Option<f64>); N]) -> Self {
        Self(phases.into_iter().filter_map(|(phase, at)| Some((phase, at?))).collect())
    }

    /// On one line, in milliseconds.
    pub(super) fn line(&self) -> String {
        let word = |(phase, name, _): &(Phase, &str, &str)| Some(format!("{name} {:.0}", self.0.get(phase)? * 1e3));
        PHASES.iter().filter_map(word).collect::<Vec<_>>().join(", ") + " ms"
    }
}

// === impl Results ===

impl Results {
    fn at(&self, phase: Phase) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|Round(round)| round.get(&phase).copied()))
    }

    fn between(&self, from: Phase, to: Phase) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|Round(round)| Some(round.get(&to)? - round.get(&from)?)))
    }

    /// The page.
    pub(super) fn markdown(&self) -> String {
        let mut page = format!("# Cold start bench\n\nMachine: {}.\n\n", machine::describe());
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "{} cold starts through KEDA on two nodes; the workload listens {} ms after its start, the kubelet probes \
             every {} s. From the moment the request was sent, as its client, logs and a watcher of the API see it; median (least to \
             greatest).\n",
            self.rounds.len(),
            self.start_delay,
            self.probe_period
        );
        page.push_str("| phase | since the request |\n|---|---|\n");
        for (phase, _, title) in PHASES {
            let _ = writeln!(page, "| {title} | {} |", shown(self.at(phase)));
        }
        page.push_str("\n| between | |\n|---|---|\n");
        for (from, to, title) in BETWEEN {
            let _ = writeln!(page, "| {title} | {} |", shown(self.between(from, to)));
        }
        page
    }

    /// The same for machines, every round of it, in milliseconds.
    pub(super) fn json(&self) -> Value {
        let rounds = self.rounds.iter().map(|Round(round)| {
            let phases =
                PHASES.iter().filter_map(|(phase, name, _)| Some(((*name).to_owned(), json!(round.get(phase)? * 1e3))));
            Value::Object(phases.collect())
        });
        json!({
            "machine": machine::describe(),
            "probePeriodSeconds": self.probe_period,
            "startDelayMs": self.start_delay,
            "roundsMs": rounds.collect::<Value>(),
        })
    }

    /// A bar for each phase.
    pub(super) fn svg(&self) -> String {
        let rows =
            PHASES.iter().filter_map(|(phase, _, title)| Some((title.replace('`', ""), self.at(*phase)?.scaled(1e3))));
        plot::ranges("Time since the request: least to greatest, and median", "ms", &rows.collect::<Vec<_>>())
    }
}

fn shown(spread: Option<Spread>) -> String {
    spread.map_or_else(
        || "not seen".to_owned(),
        |Spread { median, min, max }| format!("{:.1} ms ({:.1}–{:.1})", median * 1e3, min * 1e3, max * 1e3),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_that_was_not_seen_is_said_to_be_so() {
        let round = |first: f64| {
            Round::new([(Phase::Signal, None), (Phase::Ready, Some(0.5)), (Phase::FirstByte, Some(first))])
        };
        let results = Results { rounds: vec![round(0.4), round(0.6)], probe_period: 10, start_delay: 400 };
        let page = results.markdown();
        assert!(page.contains("| the scaler tells KEDA | not seen |"), "{page}");
        assert!(page.contains("| first byte of the answer | 500.0 ms (400.0–600.0) |"), "{page}");
        assert!(page.contains("| ready → first byte | 0.0 ms (-100.0–100.0) |"), "{page}");
        assert!(results.svg().contains("first byte of the answer"));
    }
}
