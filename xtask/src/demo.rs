//! `cargo xtask demo`: builds the interceptor, the scaler and the local cluster, and becomes the latter.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{build_ebpf, process};

/// Where the demonstration's manifests lie, below the workspace's root.
const MANIFESTS: &str = "examples/demo";
/// Nearly the speed of release at a fraction of the build time.
const PROFILE: &str = "quick-release";
/// What is run, and the packages it comes from.
const PACKAGES: [&str; 3] = ["interceptor-user", "scaler", "local"];

/// The whole loop on this machine: real interceptor and scaler, with pods as local processes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "All that follows `--` goes to rouse-local; `cargo xtask demo -- --help` tells what it knows.")]
pub(crate) struct DemoArgs {
    /// No terminal: send the requests, check each step from the outside, print a summary; fails when one did not happen.
    #[arg(long)]
    once: bool,

    /// With --once: the summary as JSON on standard output.
    #[arg(long, requires = "once")]
    json: bool,

    /// Folder of manifests, watched while it runs: copy examples/demo and edit the copy.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,

    /// Level of the interceptor's data plane: auto, none or self.
    #[arg(long, value_name = "LEVEL")]
    dataplane: Option<String>,

    /// Port for requests; a free one if not given.
    #[arg(long, value_name = "PORT")]
    proxy_port: Option<u16>,

    /// Cargo profile of what is run: `dev` is built soonest where the tests were built.
    #[arg(long, value_name = "NAME", default_value = PROFILE)]
    profile: String,

    /// Further arguments of rouse-local.
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Builds, then becomes `rouse-local`. Returns only when that fails.
pub(crate) fn run(root: &Path, args: &DemoArgs) -> Result<()> {
    let programs = build(root, &args.profile)?;
    if !build_ebpf::built(root) {
        eprintln!("demo: built without eBPF programs, so the data plane stays at level none; `cargo xtask setup` and");
        eprintln!("demo: `cargo xtask build-ebpf` get them");
    }
    let local = programs.join("rouse-local");
    let error = Command::new(&local).args(args.passed_on(root)).exec();
    Err(error).with_context(|| format!("cannot start {}", local.display()))
}

/// Runs the demonstration once and kills its scaler on the way: it must notice, and fail.
pub(crate) fn fails_without_scaler(root: &Path) -> Result<()> {
    let local = build(root, "dev")?.join("rouse-local");
    let mut command = Command::new(&local);
    command.arg("--manifests").arg(root.join(MANIFESTS)).arg("--once").stdout(Stdio::piped());
    let mut running = command.spawn().with_context(|| format!("cannot start {}", local.display()))?;
    let printed = running.stdout.take().context("standard output is piped")?;
    let mut killed = false;
    for line in BufReader::new(printed).lines() {
        let line = line.context("cannot read what the demonstration prints")?;
        println!("{line}");
        if !killed && line.contains("held and woken") {
            let scaler = child(running.id(), "scaler").context("the demonstration has no scaler")?;
            process::run(Command::new("kill").args(["-KILL", &scaler.to_string()]))?;
            killed = true;
        }
    }
    let status = running.wait()?;
    anyhow::ensure!(killed, "the demonstration ended before its scaler could be killed: {status}");
    anyhow::ensure!(!status.success(), "the demonstration went on without its scaler");
    Ok(())
}

/// A child of `parent` with that name.
fn child(parent: u32, name: &str) -> Option<u32> {
    let parent = parent.to_string();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // pid (name) state parent …
        let (_, rest) = stat.split_once(" (")?;
        let (its_name, rest) = rest.rsplit_once(") ")?;
        (its_name == name && rest.split(' ').nth(1) == Some(&parent)).then_some(pid)
    })
}

/// The folder of the built programs.
fn build(root: &Path, profile: &str) -> Result<PathBuf> {
    eprintln!("demo: building {} (profile {profile}; the first time takes minutes)", PACKAGES.join(", "));
    let mut cargo = process::cargo(root);
    cargo.args(["build", "--profile", profile, "--bins"]);
    // The summary of --json alone belongs on standard output; cargo speaks on standard error anyway.
    process::run(cargo.args(PACKAGES.iter().flat_map(|package| ["--package", package])))?;
    // Cargo's one exception: the dev profile builds into `debug`.
    Ok(target(root)?.join(if profile == "dev" { "debug" } else { profile }))
}

/// Cargo's target folder, wherever the caller has put it.
pub(crate) fn target(root: &Path) -> Result<PathBuf> {
    let mut cargo = process::cargo(root);
    let metadata = process::output(cargo.args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("cannot read cargo's metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo's metadata names no target folder")?;
    Ok(target.into())
}

// === impl DemoArgs ===

impl DemoArgs {
    fn passed_on(&self, root: &Path) -> Vec<OsString> {
        let Self { once, json, manifests, dataplane, proxy_port, profile: _, rest } = self;
        let manifests = manifests.clone().unwrap_or_else(|| root.join(MANIFESTS));
        let mut words: Vec<OsString> = vec!["--manifests".into(), manifests.into()];
        words.extend(once.then(|| "--once".into()));
        words.extend(json.then(|| "--json".into()));
        if let Some(level) = dataplane {
            words.extend(["--dataplane".into(), level.into()]);
        }
        if let Some(port) = proxy_port {
            words.extend(["--proxy-port".into(), port.to_string().into()]);
        }
        words.extend(rest.iter().cloned());
        words
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        demo: DemoArgs,
    }

    #[test]
    fn what_was_asked_for_is_passed_on() {
        let args = Cli::parse_from(["demo", "--once", "--json", "--dataplane", "none", "--", "--load", "5"]).demo;
        let words = args.passed_on(Path::new("/r"));
        let expected = ["--manifests", "/r/examples/demo", "--once", "--json", "--dataplane", "none", "--load", "5"]
            .map(OsString::from);
        assert_eq!(words, expected);
    }
}
