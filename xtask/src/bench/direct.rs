//! `cargo xtask bench direct`: what a Service costs whose clients reach its pods while the kernel counts, beside nothing at all and
//! beside proxies. The load is put by a program of the tests, which have the nodes and pods for it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    bench::{
        files, machine,
        plot::{self, rounded},
        summary::Spread,
    },
    process, setup,
};

/// Arguments of `bench direct`.
#[derive(Debug, clap::Args)]
pub(crate) struct DirectArgs {
    /// How often each contender runs each case.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load in one run.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// A build without link-time optimisation: for tuning, not for publishing.
    #[arg(long)]
    quick: bool,
    /// Folder for the results.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

const CASES: [(&str, &str); 3] = [
    ("work", "a service with 100 µs of work"),
    ("hello", "a service without work"),
    ("connections", "without work, one request a connection"),
];
const CONTENDERS: [(&str, &str); 6] = [
    ("nothing", "nothing installed"),
    ("agent", "the agent counts this Service"),
    ("other", "nothing installed, another Service"),
    ("bystander", "the agent counts the first, not this other one"),
    ("interceptor", "through the interceptor"),
    ("nginx", "through nginx"),
];

/// A run of the load generator, as the program beside it tells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    case: String,
    contender: String,
    round: usize,
    requests: f64,
    seconds: f64,
    cpu_ns: f64,
    p50_us: f64,
    p99_us: f64,
    counted: Option<f64>,
}

/// Runs the bench.
pub(crate) fn run(root: &Path, args: &DirectArgs) -> Result<()> {
    let DirectArgs { rounds, seconds, quick, out } = args;
    ensure!(process::is_root(), "bench direct makes network namespaces and loads eBPF programs: run it as root");
    setup::for_bench()?;
    setup::with_ebpf(root, "bench");
    let profile = if *quick { "quick-release" } else { "release" };
    println!("bench: building the agent and the load (profile {profile})");
    let mut build = process::cargo(root);
    build.args(["build", "--locked", "--profile", profile, "--package", "integration"]);
    process::run(build.args(["--bin", "interceptor-under-test", "--example", "direct"]))?;
    let disturbance = machine::disturbance();
    let program = root.join("target").join(profile).join("examples/direct");
    let runs = collect(&program, *rounds, *seconds)?;
    let page = page(&runs, *seconds, disturbance.as_deref());
    let json = serde_json::json!({
        "machine": machine::describe(), "disturbance": disturbance, "runs": runs.iter().map(|(_, value)| value).collect::<Vec<_>>(),
    });
    let out = root.join(out);
    let json = format!("{json:#}\n");
    files::write(&out, [("direct.md", page.clone()), ("direct.json", json), ("direct.svg", svg(&runs))])?;
    println!("\n{page}\nwritten to {}", out.display());
    Ok(())
}

/// Runs the load; what it tells, a line for each run.
fn collect(program: &Path, rounds: usize, seconds: u32) -> Result<Vec<(Run, Value)>> {
    let mut command = std::process::Command::new(program);
    command.args(["--rounds", &rounds.to_string(), "--seconds", &seconds.to_string()]).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let told = child.stdout.take().context("standard output is piped")?;
    let mut runs = Vec::new();
    for line in BufReader::new(told).lines() {
        let value: Value = serde_json::from_str(&line?).context("expected a line of JSON")?;
        let run = Run::deserialize(&value)?;
        println!(
            "  {:11} round {}  {:11} {:>7.0} requests/s  {:>6.1} µs CPU  p50 {:.0} µs  p99 {:.0} µs",
            run.case,
            run.round,
            run.contender,
            run.requests / run.seconds,
            run.cpu_ns / 1e3,
            run.p50_us,
            run.p99_us
        );
        runs.push((run, value));
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the load ended with {status}");
    }
    Ok(runs)
}

/// What one contender did in one case, and how it stands to the same Service with nothing installed in the same round.
struct Row {
    rate: Spread,
    ratio: Spread,
    cpu: Spread,
    added: Spread,
    p50: Spread,
    p99: Spread,
}

impl Row {
    fn of(runs: &[(Run, Value)], case: &str, contender: &str) -> Option<Self> {
        let of = |contender: &str| -> BTreeMap<usize, &Run> {
            let runs = runs.iter().map(|(run, _)| run).filter(|run| run.case == case && run.contender == contender);
            runs.map(|run| (run.round, run)).collect()
        };
        let (mine, bare) = (of(contender), of(if contender == "bystander" { "other" } else { "nothing" }));
        let pairs = || mine.iter().filter_map(|(round, mine)| Some((*mine, *bare.get(round)?)));
        let rate = |run: &Run| run.requests / run.seconds;
        Some(Self {
            rate: Spread::of(mine.values().map(|run| rate(run)))?,
            ratio: Spread::of(pairs().map(|(mine, bare)| rate(mine) / rate(bare)))?,
            cpu: Spread::of(mine.values().map(|run| run.cpu_ns / 1e3))?,
            added: Spread::of(pairs().map(|(mine, bare)| (mine.cpu_ns - bare.cpu_ns) / 1e3))?,
            p50: Spread::of(mine.values().map(|run| run.p50_us))?,
            p99: Spread::of(mine.values().map(|run| run.p99_us))?,
        })
    }
}

fn page(runs: &[(Run, Value)], seconds: u32, disturbance: Option<&str>) -> String {
    let rounds = runs.iter().map(|(run, _)| run.round).max().unwrap_or_default();
    let mut page = format!("# Direct bench\n\nMachine: {}.\n\n", machine::describe());
    // Writing to a String cannot fail.
    let _ = writeln!(
        page,
        "Clients reach a pod of their own node by its Service's address (rules of kube-proxy's shape), {rounds} rounds of {seconds} s \
         each in turn, wrk with 16 connections. CPU is that of the whole machine, client and pod included, for one request; `×` and \
         `added` are to nothing installed, in the same round; for the bystander, to nothing installed before that Service. Median (least to greatest).\n"
    );
    for (case, title) in CASES {
        let _ = writeln!(
            page,
            "## {title}\n\n| | requests/s | × | CPU, µs | added, µs | p50 | p99 |\n|---|---|---|---|---|---|---|"
        );
        for (contender, words) in CONTENDERS {
            let Some(row) = Row::of(runs, case, contender) else { continue };
            let two = |Spread { median, min, max }: Spread| format!("{median:.2} ({min:.2}–{max:.2})");
            let _ = writeln!(
                page,
                "| {words} | {:.0} | {} | {} ({}–{}) | {} | {:.0} µs | {:.0} µs |",
                row.rate.median,
                two(row.ratio),
                rounded(row.cpu.median),
                rounded(row.cpu.min),
                rounded(row.cpu.max),
                two(row.added),
                row.p50.median,
                row.p99.median,
            );
        }
        page.push('\n');
    }
    let (counted, answered): (Vec<f64>, Vec<f64>) =
        runs.iter().filter_map(|(run, _)| Some((run.counted?, run.requests))).unzip();
    let _ = writeln!(
        page,
        "The kernel counted {:.0} requests in the {} runs in which it was asked to; wrk saw {:.0} answered, and breaks up to 16 off at \
         the end of each run.",
        counted.iter().sum::<f64>(),
        counted.len(),
        answered.iter().sum::<f64>()
    );
    if let Some(disturbance) = disturbance {
        let _ = writeln!(page, "\n- {disturbance}");
    }
    page
}

fn svg(runs: &[(Run, Value)]) -> String {
    let mut rows = Vec::new();
    for (case, _) in CASES {
        for (contender, _) in CONTENDERS {
            if let Some(row) = Row::of(runs, case, contender) {
                rows.push((format!("{case}: {contender}"), row.cpu));
            }
        }
    }
    plot::ranges("CPU time of the whole machine for one request: least to greatest, and median", "µs", &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(contender: &str, round: usize, requests: f64, cpu_ns: f64) -> (Run, Value) {
        let (case, contender) = ("work".to_owned(), contender.to_owned());
        let counted = (contender == "agent").then_some(requests + 1.0);
        let run = Run { case, contender, round, requests, seconds: 1.0, cpu_ns, p50_us: 1.0, p99_us: 2.0, counted };
        (run, Value::Null)
    }

    #[test]
    fn what_is_added_is_taken_within_a_round() {
        let runs = [
            run("nothing", 1, 100.0, 20_000.0),
            run("agent", 1, 98.0, 21_500.0),
            run("nothing", 2, 50.0, 40_000.0),
            run("agent", 2, 50.0, 41_000.0),
        ];
        let row = Row::of(&runs, "work", "agent").unwrap();
        assert_eq!(row.ratio, Spread { median: 0.99, min: 0.98, max: 1.0 });
        assert_eq!(row.added, Spread { median: 1.25, min: 1.0, max: 1.5 });
        assert!(Row::of(&runs, "hello", "agent").is_none());
        let bystander = [run("nothing", 1, 100.0, 0.0), run("other", 1, 80.0, 0.0), run("bystander", 1, 40.0, 0.0)];
        assert_eq!(Row::of(&bystander, "work", "bystander").unwrap().ratio, Spread { median: 0.5, min: 0.5, max: 0.5 });
        let page = page(&runs, 1, None);
        assert!(
            page.contains(
                "| the agent counts this Service | 74 | 0.99 (0.98–1.00) | 31.2 (21.5–41.0) | 1.25 (1.00–1.50) |"
            ),
            "{page}"
        );
        assert!(page.contains("counted 150 requests in the 2 runs"), "{page}");
    }
}
