//! `cargo xtask test`: set-up, then every test there is, then a table of what ran and what did not, and why.

mod counts;
pub(crate) mod marked;

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

pub(crate) use self::counts::Counts;
use crate::{
    build_ebpf, demo, fuzz, process,
    report::{Outcome, Report},
    setup,
};

/// The tests that start curl and other clients of others.
const FOREIGN: &str = "foreign::";

/// Seconds for each fuzz target; `cargo xtask fuzz` takes as long as it is told.
const FUZZ_TIME: u32 = 3;

/// `cargo xtask test`.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut report = Report::default();
    let started = Instant::now();
    let counts = all(root, &mut report);
    println!("\nWhat ran:\n{}", report.table());
    // The closing line of `cargo test`, over all of them: who reads the one can read the other.
    let verdict = report.verdict();
    println!("{}", counts.closing_line(verdict.is_ok(), started.elapsed()));
    verdict
}

/// Runs every test as a step of the report; `ci` does the same among its own steps.
pub(crate) fn all(root: &Path, report: &mut Report) -> Counts {
    let mut total = Counts::default();
    let mut missing = setup::Missing::default();
    report.step("set-up", || {
        missing = setup::for_test(root);
        Ok(match missing.lines() {
            lines if lines.is_empty() => Outcome::Passed("everything is there".to_owned()),
            lines => Outcome::NotRun(lines.join("; ")),
        })
    });
    report.step("eBPF objects", || match &missing.bpf {
        Some(why) => Ok(Outcome::NotRun(format!("data plane level none: {why}"))),
        None => build_ebpf::build(root).map(|_| Outcome::Passed(build_ebpf::FOLDER.to_owned())),
    });
    let mut ignored = 0;
    report.step("tests", || {
        let mut command = process::cargo(root);
        command.args(["test", "--no-fail-fast"]);
        if missing.tools.is_some() {
            command.args(["--", "--skip", FOREIGN]);
        }
        let counts = cargo_test(&mut command)?;
        ignored = counts.ignored;
        total += counts;
        Ok(counts.outcome())
    });
    if let Some(why) = &missing.tools {
        report.step("tests with foreign clients", || Ok(Outcome::NotRun(why.clone())));
    }
    report.step("tests that need root", || {
        if !process::is_root() {
            return Ok(Outcome::NotRun(format!("{ignored} tests need root; get them as root with `cargo xtask test`")));
        }
        let counts = cargo_test(&mut root_tests(root)?)?;
        if let (Some(why), true) = (&missing.bpf, counts == Counts::default()) {
            return Ok(Outcome::NotRun(format!("they need the eBPF programs: {why}")));
        }
        // What was ignored before has now run; what was filtered out has run before.
        total.ignored = total.ignored.saturating_sub(counts.passed + counts.failed);
        total += Counts { ignored: 0, filtered: 0, ..counts };
        Ok(counts.outcome())
    });
    report.step("loom models", || {
        let counts = cargo_test(&mut loom(root))?;
        total += Counts { filtered: 0, ..counts };
        Ok(counts.outcome())
    });
    report.step("fuzz targets", || fuzz::briefly(root, FUZZ_TIME));
    report.step("demo --once", || {
        let this = std::env::current_exe().context("cannot find this program")?;
        process::run(Command::new(this).args(["demo", "--once", "--profile", "dev"]).current_dir(root))?;
        Ok(Outcome::Passed("one request woke a workload".to_owned()))
    });
    report.step("demo --once, scaler killed", || {
        demo::fails_without_scaler(root)?;
        Ok(Outcome::Passed("it failed, as it must".to_owned()))
    });
    total
}

/// Documentation examples that are ignored are so for other reasons, and some tests need more than root: `e2e` runs those.
fn root_tests(root: &Path) -> Result<Command> {
    let mut command = process::cargo(root);
    command.args(["test", "--no-fail-fast", "--lib", "--bins", "--tests", "--", "--ignored"]);
    command.args(marked::control_plane(root)?.iter().flat_map(|name| ["--skip", name]));
    Ok(command)
}

/// The counters under every interleaving of their threads. A target folder of its own: the flag changes every crate.
fn loom(root: &Path) -> Command {
    let mut flags = std::env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(OsString::from(" --cfg loom"));
    let mut command = process::cargo(root);
    command.args(["test", "--release", "--package", "interceptor-core", "--lib", "--target-dir", "target/loom"]);
    command.args(["--", "model::"]).env("RUSTFLAGS", flags);
    command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    command
}

/// Runs a `cargo test`, shows what it writes as it comes, and adds up its closing lines.
pub(crate) fn cargo_test(command: &mut Command) -> Result<Counts> {
    println!("$ {}", process::shown(command));
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", process::shown(command)))?;
    let mut counts = Counts::default();
    for line in BufReader::new(child.stdout.take().context("standard output is piped")?).lines() {
        let line = line.context("cannot read what the tests write")?;
        if let Some(more) = Counts::parse(&line) {
            counts += more;
        }
        println!("{line}");
    }
    let status = child.wait()?;
    // Without a failed test it is what did not compile or crashed.
    counts.broken = !status.success() && counts.failed == 0;
    Ok(counts)
}
