//! `cargo xtask bench coldstart`: one request to a workload at zero, again and again, on real nodes with real KEDA: when each
//! phase was reached, from the request to the first byte of the answer.

mod page;
mod watch;
mod workload;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::{
    page::{Phase, Results, Round},
    watch::Watch,
};
use crate::{
    bench::{
        clock::Moment,
        cluster::{ClusterArgs, Wanted},
        files,
        request::{self, Moments},
    },
    cluster::{Cluster, Machine},
    e2e::release::{self, NAMESPACE},
    process,
};

/// How long one phase may take.
const PATIENCE: Duration = Duration::from_mins(2);
const PROXY: &str = "keda-add-ons-http-interceptor-proxy";
/// What the scaler of ours logs at level debug when it tells KEDA that a workload is wanted.
const SIGNAL: (&str, &str) = ("app.kubernetes.io/component=scaler", "active=true");

/// Arguments of `bench coldstart`.
#[derive(Args, Debug)]
pub(crate) struct ColdstartArgs {
    /// How many cold starts.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Install this chart instead of ours: another implementation of the same routes and Services.
    #[arg(long, value_name = "FOLDER")]
    chart: Option<PathBuf>,
    /// Values for that chart.
    #[arg(long, value_name = "FILE", requires = "chart")]
    values: Option<PathBuf>,
    /// Archives of the images that it needs, besides the demonstration workload's.
    #[arg(long, value_name = "FILE", requires = "chart")]
    archive: Vec<PathBuf>,
    /// Seconds between the kubelet's readiness probes.
    #[arg(long, default_value_t = 1)]
    probe_period: u32,
    /// Milliseconds from the workload's start until it listens.
    #[arg(long, default_value_t = 0)]
    start_delay: u64,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Folder for the results.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// Runs the bench.
pub(crate) fn run(root: &Path, args: &ColdstartArgs) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds 0, expected at least one");
    let wanted = Wanted { nodes: 2, archives: &args.archive };
    let install = |cluster: &Cluster| match &args.chart {
        Some(chart) => release::install_chart(cluster, &root.join(chart), args.values.as_deref()),
        None => release::upgrade(cluster, &["logging.scaler.level=debug"]),
    };
    let rounds = args.cluster.measured(root, &wanted, install, |cluster| measure(cluster, args))?;
    let results = Results { rounds, probe_period: args.probe_period, start_delay: args.start_delay };
    let page = results.markdown();
    let out = root.join(&args.out);
    let json = format!("{:#}\n", results.json());
    files::write(&out, [("coldstart.md", page.clone()), ("coldstart.json", json), ("coldstart.svg", results.svg())])?;
    println!("\n{page}\nwritten to {}", out.display());
    Ok(())
}

fn measure(cluster: &Cluster, args: &ColdstartArgs) -> Result<Vec<Round>> {
    workload::apply(cluster, args.start_delay, args.probe_period)?;
    let proxy = cluster.service_address(NAMESPACE, PROXY)?;
    let watch = Watch::start(cluster)?;
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        workload::await_sleep(cluster, PATIENCE)?;
        let round = one(cluster, &watch, &proxy).with_context(|| format!("round {number}"))?;
        println!("  {number:3}: {}", round.line());
        rounds.push(round);
    }
    Ok(rounds)
}

/// One cold start.
fn one(cluster: &Cluster, watch: &Watch, proxy: &str) -> Result<Round> {
    watch.forget();
    let this = std::env::current_exe().context("cannot find this program")?;
    let mut client = cluster.beside(Machine::Node(2));
    client.arg(this).args(["bench", "request", &format!("{proxy}:8080"), workload::HOST]);
    let Moments { connected: _, sent: request, answered: answer } = request::parse(&process::output(&mut client)?)?;
    let seen = watch.wait(cluster, PATIENCE)?;
    let listens = log_moment(
        &cluster.kubectl(&[
            "logs",
            "--namespace",
            workload::NAMESPACE,
            &format!("pod/{}", seen.pod),
            "--timestamps",
        ])?,
        "listening",
        request,
    );
    let signal = cluster
        .kubectl(&["logs", "--namespace", NAMESPACE, "--selector", SIGNAL.0, "--timestamps", "--tail=-1"])
        .ok()
        .and_then(|text| log_moment(&text, SIGNAL.1, request));
    Ok(Round::new(
        [
            (Phase::Signal, signal),
            (Phase::Decided, Some(seen.decided)),
            (Phase::Created, Some(seen.created)),
            (Phase::Accepts, listens),
            (Phase::Ready, Some(seen.ready)),
            (Phase::FirstByte, Some(answer)),
        ]
        .map(|(phase, moment)| (phase, moment.map(|moment| moment.since(request)))),
    ))
}

/// When the first line with these words was written, of those after `from`.
fn log_moment(text: &str, words: &str, from: Moment) -> Option<Moment> {
    let moments = text.lines().filter(|line| line.contains(words)).filter_map(Moment::parse_date);
    moments
        .filter(|moment| moment.since(from) >= 0.0)
        .min_by(|one, other| one.since(from).total_cmp(&other.since(from)))
}
