//! `cargo xtask bench proxy`: starts origin and proxies, alternates load between them, writes table, plot and samples.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench::{
        case::{self, Case},
        cpu, files, load, machine,
        page::Results,
        peer::{self, Contender, Kind, Peer},
        plot,
        summary::{Sample, Samples},
    },
    process, setup,
};

/// Arguments of `bench proxy`.
#[derive(Debug, clap::Args)]
pub(crate) struct ProxyArgs {
    /// Only these cases (default: all; `--case list` names them).
    #[arg(long = "case", value_name = "NAME", value_delimiter = ',')]
    cases: Vec<String>,
    /// How often each proxy runs each case.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load in one run.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Few short rounds and a build without link-time optimisation: for tuning, not for publishing.
    #[arg(long)]
    quick: bool,
    /// Only these proxies: nginx, haproxy, interceptor.
    #[arg(long = "peer", value_name = "NAME", value_delimiter = ',')]
    peers: Vec<String>,
    /// Measure this program as an interceptor instead of building one; repeat it to compare versions.
    #[arg(long = "interceptor", value_name = "[NAME=]PATH")]
    interceptors: Vec<String>,
    /// Folder for the results.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// Runs the bench.
pub(crate) fn run(root: &Path, args: &ProxyArgs) -> Result<()> {
    if args.cases == ["list"] {
        for case in case::ALL {
            println!("{:14} {}", case.name, case.title);
        }
        return Ok(());
    }
    let cases = chosen_cases(&args.cases)?;
    setup::for_bench()?;
    let contenders = contenders(root, args)?;
    let out = root.join(&args.out);
    let scratch = out.join("scratch");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let (rounds, time) = if args.quick { (args.rounds.min(3), 2) } else { (args.rounds.max(1), args.seconds) };
    let run = Run { contenders: &contenders, scratch, rounds, time: Duration::from_secs(time) };
    let origin = peer::origin(&peer::debian(Kind::Nginx)?.program, &run.scratch)?;
    let mut results = Results {
        machine: machine::describe(),
        disturbance: machine::disturbance(),
        versions: contenders.iter().map(version).collect(),
        names: contenders.iter().map(|contender| contender.name.clone()).collect(),
        ours: contenders.iter().filter(|one| one.kind == Kind::Interceptor).map(|one| one.name.clone()).collect(),
        rounds,
        time: run.time,
        cases: Vec::new(),
    };
    for case in cases {
        let (samples, remarks) = run.case(&case, &origin)?;
        results.cases.push((case, samples, remarks));
        // After each case, so that an interrupted run leaves what it has.
        write(&out, &results)?;
    }
    println!("\n{}\nwritten to {}", results.markdown(), out.display());
    Ok(())
}

/// What all cases of one run share.
#[derive(Debug)]
struct Run<'a> {
    contenders: &'a [Contender],
    scratch: PathBuf,
    rounds: usize,
    time: Duration,
}

impl Run<'_> {
    /// Measures one case: every contender in every round, the order turning by one each round.
    fn case(&self, case: &Case, origin: &Peer) -> Result<(Samples, Vec<String>)> {
        println!("\n── {} ({})", case.title, case.name);
        let mut remarks = Vec::new();
        let mut peers = Vec::new();
        for contender in self.contenders {
            match case.excludes(contender.kind) {
                Some(why) => remarks.push(format!("{}: without {}: {why}.", case.title, contender.name)),
                None => peers.push(peer::proxy(contender, case, origin, &self.scratch)?),
            }
        }
        for peer in &peers {
            load::run(case, peer, Duration::from_secs(1), &self.scratch).with_context(|| peer.name.clone())?;
        }
        let mut samples = Samples::new();
        for round in 0..self.rounds {
            for number in 0..peers.len() {
                let peer = &peers[(round + number) % peers.len()];
                let sample = self.sample(case, peer).with_context(|| format!("{} in {}", peer.name, case.name))?;
                println!(
                    "  round {}  {:14} {:>8.0} per CPU-second  p50 {:?}  p99 {:?}  busy {:.0} %",
                    round + 1,
                    peer.name,
                    sample.per_cpu_second,
                    sample.seen.p50,
                    sample.seen.p99,
                    sample.busy * 100.0
                );
                samples.entry(peer.name.clone()).or_default().push(sample);
            }
        }
        Ok((samples, remarks))
    }

    fn sample(&self, case: &Case, peer: &Peer) -> Result<Sample> {
        let (started, before) = (Instant::now(), cpu::used(peer.pid())?);
        let seen = load::run(case, peer, self.time, &self.scratch)?;
        let (took, used) = (started.elapsed(), cpu::used(peer.pid())?.saturating_sub(before));
        if used.is_zero() {
            bail!("no CPU time was counted");
        }
        #[expect(clippy::cast_precision_loss, reason = "fewer requests than a float tells apart")]
        let per_cpu_second = seen.requests as f64 / used.as_secs_f64();
        Ok(Sample { per_cpu_second, busy: used.as_secs_f64() / took.as_secs_f64(), seen })
    }
}

fn chosen_cases(names: &[String]) -> Result<Vec<Case>> {
    if names.is_empty() {
        return Ok(case::ALL.to_vec());
    }
    let find = |name: &String| {
        let case = case::ALL.into_iter().find(|case| case.name == name);
        case.with_context(|| format!("--case {name}: expected one of those `--case list` names"))
    };
    names.iter().map(find).collect()
}

/// nginx, HAProxy, and the interceptors: given, or built here.
fn contenders(root: &Path, args: &ProxyArgs) -> Result<Vec<Contender>> {
    let wanted = |name: &str| args.peers.is_empty() || args.peers.iter().any(|peer| peer == name);
    if let Some(name) = args.peers.iter().find(|name| !["nginx", "haproxy", "interceptor"].contains(&name.as_str())) {
        bail!("--peer {name}: expected nginx, haproxy or interceptor");
    }
    let mut contenders = Vec::new();
    for (name, kind) in [("nginx", Kind::Nginx), ("haproxy", Kind::Haproxy)] {
        if wanted(name) {
            contenders.push(peer::debian(kind)?);
        }
    }
    if wanted("interceptor") {
        contenders.extend(interceptors(root, args)?);
    }
    Ok(contenders)
}

fn interceptors(root: &Path, args: &ProxyArgs) -> Result<Vec<Contender>> {
    let named = |text: &String| {
        let (name, path) = text.split_once('=').unwrap_or(("interceptor", text));
        let program = PathBuf::from(path);
        Contender { name: name.to_owned(), kind: Kind::Interceptor, program }
    };
    if !args.interceptors.is_empty() {
        return Ok(args.interceptors.iter().map(named).collect());
    }
    let program = build(root, if args.quick { "quick-release" } else { "release" })?;
    Ok(vec![Contender { name: "interceptor".to_owned(), kind: Kind::Interceptor, program }])
}

/// Builds the interceptor with this profile and returns the program.
pub(crate) fn build(root: &Path, profile: &str) -> Result<PathBuf> {
    println!("bench: building the interceptor (profile {profile})");
    process::run(process::cargo(root).args([
        "build",
        "--profile",
        profile,
        "-p",
        "interceptor-user",
        "--bin",
        "interceptor",
    ]))?;
    Ok(root.join("target").join(profile).join("interceptor"))
}

/// What a contender says of its version, on one line.
fn version(contender: &Contender) -> String {
    let flag = if contender.kind == Kind::Interceptor { "--version" } else { "-v" };
    let output = Command::new(&contender.program).arg(flag).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    format!("{}: {}", contender.name, text.lines().next().unwrap_or("version unknown").trim())
}

fn write(out: &Path, results: &Results) -> Result<()> {
    let json = format!("{:#}\n", results.json());
    files::write(out, [("proxy.md", results.markdown()), ("proxy.svg", plot::svg(results)), ("proxy.json", json)])
}
