//! `cargo xtask fuzz`: foreign bytes, made by libFuzzer from what it sees of the code, for what reads them. `test` runs each target
//! for a moment.
//!
//! The targets are a workspace of their own, fuzz/, in the layout of cargo-fuzz. They are built with the stable compiler: coverage is
//! a pass of LLVM's that it has; the address sanitizer is not, and would need the standard library's source. Overflow and
//! `debug_assert!` are checked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{process, report::Outcome, setup};

/// Where targets and their seeds lie.
const FOLDER: &str = "fuzz";
/// Where they are built, and where what was found is kept.
const TARGET: &str = "target/fuzz";
/// The machine they are built for, named so that the flags are for them alone and not for build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What lets libFuzzer see where the program went.
const FLAGS: [&str; 9] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg",
    "fuzzing",
    "-Ccodegen-units=1",
];
/// Most memory of one target, in MiB.
const MEMORY: u32 = 2048;
/// Longest time that one input may take, in seconds.
const SLOWEST: u32 = 10;

/// Arguments of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// The target: a file of `fuzz/fuzz_targets` without its ending. All of them, one after the other, if none is named.
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    time: u32,
}

/// `cargo xtask fuzz`.
pub(crate) fn run(root: &Path, args: &FuzzArgs) -> Result<()> {
    let FuzzArgs { target, time } = args;
    let mut targets = targets(root)?;
    if let Some(target) = target {
        if !targets.contains(target) {
            bail!("there is no fuzz target {target:?}, expected one of {}", targets.join(", "));
        }
        targets = vec![target.clone()];
    }
    setup::for_fuzz()?;
    build(root)?;
    for target in &targets {
        println!("fuzz: {target} ran {} inputs", fuzz(root, target, *time, Search::Onward)?);
    }
    Ok(())
}

/// What a target is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    /// The same inputs in the same order each time, as far as they get: so that a test fails by what changed in the code.
    Same,
    /// Others each time, from all that was found before.
    Onward,
}

/// Each target for this many seconds, as a step of a report: with the same inputs each time.
pub(crate) fn briefly(root: &Path, time: u32) -> Result<Outcome> {
    if let Err(error) = setup::for_fuzz() {
        return Ok(Outcome::NotRun(format!("{error:#}")));
    }
    build(root)?;
    let targets = targets(root)?;
    let mut inputs = 0;
    for target in &targets {
        inputs += fuzz(root, target, time, Search::Same)?;
    }
    Ok(Outcome::Passed(format!("{} targets, {inputs} inputs", targets.len())))
}

fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join(FOLDER).join("fuzz_targets");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut targets = Vec::new();
    for file in files {
        let path = file.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if let (Some(name), Some("rs")) = (path.file_stem(), path.extension().and_then(|ending| ending.to_str())) {
            targets.push(name.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

fn build(root: &Path) -> Result<()> {
    lock(root)?;
    let mut command = process::cargo(root);
    command.args(["build", "--bins", "--manifest-path"]).arg(root.join(FOLDER).join("Cargo.toml"));
    command.args(["--target", TRIPLE, "--target-dir"]).arg(root.join(TARGET));
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).env_remove("RUSTFLAGS");
    process::run(&mut command)
}

/// The targets' own lock file begins with the workspace's, each time that changes, so that both have the same versions.
fn lock(root: &Path) -> Result<()> {
    let (ours, seen) = (root.join("Cargo.lock"), folder(root.join(TARGET))?.join("Cargo.lock"));
    let theirs = root.join(FOLDER).join("Cargo.lock");
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let versions = read(&ours)?;
    if theirs.exists() && fs::read(&seen).is_ok_and(|seen| seen == versions) {
        return Ok(());
    }
    for copy in [&theirs, &seen] {
        fs::write(copy, &versions).with_context(|| format!("cannot write {}", copy.display()))?;
    }
    Ok(())
}

/// Runs one target; returns how many inputs it was given. What it finds goes to target/fuzz.
fn fuzz(root: &Path, target: &str, time: u32, search: Search) -> Result<u64> {
    let kept = match search {
        Search::Onward => folder(root.join(TARGET).join("corpus").join(target))?,
        Search::Same => empty(root.join(TARGET).join("brief").join(target))?,
    };
    let found = folder(root.join(TARGET).join("found").join(target))?;
    let log = root.join(TARGET).join(format!("{target}.log"));
    let mut command = Command::new(root.join(TARGET).join(TRIPLE).join("debug").join(target));
    command.arg(format!("-max_total_time={time}")).arg(format!("-artifact_prefix={}/", found.display()));
    command.args([format!("-rss_limit_mb={MEMORY}"), format!("-timeout={SLOWEST}"), "-print_final_stats=1".to_owned()]);
    if search == Search::Same {
        command.arg("-seed=1");
    }
    command.arg(kept).arg(root.join(FOLDER).join("corpus").join(target));
    let output = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    println!("$ {}", process::shown(&command));
    let status = command.stdout(output.try_clone()?).stderr(output).status();
    let status = status.with_context(|| format!("cannot start the fuzz target {target}"))?;
    let said = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    if !status.success() {
        let lines: Vec<&str> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(20)..].join("\n");
        bail!("fuzz target {target} failed, {status}; all it said is in {}:\n{last}", log.display());
    }
    inputs(&said).with_context(|| format!("fuzz target {target} did not say how many inputs it ran: {}", log.display()))
}

fn empty(path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    folder(path)
}

fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// How many inputs libFuzzer says that it ran.
fn inputs(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_inputs_is_read_from_what_libfuzzer_says() {
        let said =
            "Done 159241 runs in 6 second(s)\nstat::number_of_executed_units: 159241\nstat::new_units_added: 504\n";
        assert_eq!(inputs(said), Some(159_241));
        assert_eq!(inputs("stat::new_units_added: 504\n"), None);
    }

    #[test]
    fn every_target_is_built_and_has_seeds() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let manifest = fs::read_to_string(root.join(FOLDER).join("Cargo.toml")).unwrap();
        for target in targets(root).unwrap() {
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")),
                "{target} is not in the manifest"
            );
            let seeds = fs::read_dir(root.join(FOLDER).join("corpus").join(&target)).unwrap();
            assert!(seeds.count() > 0, "{target} has no seeds");
        }
    }
}
