//! `cargo xtask ci`: all that must pass before a commit, each as a step of one report.

mod compatibility;
mod layers;

use std::{path::Path, process::Command, time::Instant};

use anyhow::Result;

use crate::{
    codegen, process,
    report::{Outcome, Report},
    sizes, test,
};

/// All crates but the eBPF programs, which are for another target.
const ALL: [&str; 3] = ["--workspace", "--exclude", "interceptor-ebpf"];

/// Runs every step, whatever the ones before gave, and fails if one failed.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut report = Report::default();
    let started = Instant::now();
    report.step("fmt", || ran(process::cargo(root).args(["fmt", "--all", "--check"])));
    report.step("fmt of the fuzz targets", || {
        ran(process::cargo(root).args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
    });
    report.step("sizes", || sizes::run(root).map(|()| passed()));
    report.step("dependency direction", || layers::run(root).map(|()| passed()));
    report.step("compatibility", || compatibility::run(root).map(|()| passed()));
    report.step("clippy", || {
        let mut clippy = process::cargo(root);
        ran(clippy.arg("clippy").args(ALL).args(["--all-targets", "--", "-D", "warnings"]))
    });
    report.step("doc", || {
        let mut doc = process::cargo(root);
        ran(doc.arg("doc").args(ALL).args(["--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", "-D warnings"))
    });
    report.step("codegen", || codegen::check_all(root).map(|()| passed()));
    report.step("deny", || deny(root));
    let counts = test::all(root, &mut report);
    println!("\nWhat ran:\n{}", report.table());
    let verdict = report.verdict();
    println!("{}", counts.closing_line(verdict.is_ok(), started.elapsed()));
    verdict
}

fn passed() -> Outcome {
    Outcome::Passed(String::new())
}

fn ran(command: &mut Command) -> Result<Outcome> {
    println!("$ {}", process::shown(command));
    process::run(command).map(|()| passed())
}

/// Licences, sources and advisories of what we depend on.
fn deny(root: &Path) -> Result<Outcome> {
    if process::which("cargo-deny").is_none() {
        let how = "cargo-deny is not installed; get it with `cargo install --locked cargo-deny`";
        return Ok(Outcome::NotRun(how.to_owned()));
    }
    ran(process::cargo(root).args(["deny", "check"]))
}
