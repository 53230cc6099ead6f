//! The BPF linker: built once into `.rouse/tools`, against the LLVM of Debian's Rust. Read by `setup.rs`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// The version that goes with LLVM 22.
const VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
const FEATURE: &str = "llvm-22";

/// Where tools go that are not Debian packages.
fn folder(root: &Path) -> PathBuf {
    root.join(".rouse/tools")
}

/// Whether a nightly of rustup with Rust's source and a linker of the user are there, so that we need nothing.
pub(super) fn rustup_suffices() -> bool {
    let sysroot = process::output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
    let source = sysroot.is_ok_and(|path| Path::new(path.trim()).join("lib/rustlib/src/rust/library/core").is_dir());
    source && process::which("bpf-linker").is_some()
}

/// Builds the linker unless this very version is there and starts.
pub(super) fn install(root: &Path) -> Result<()> {
    let tools = folder(root);
    if installed(&tools.join("bin/bpf-linker")) {
        return Ok(());
    }
    eprintln!("setup: building bpf-linker {VERSION} (links the eBPF programs) into .rouse/tools; about two minutes");
    let mut build = process::cargo(root);
    build.args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"]);
    build.args(["--no-default-features", "--features", FEATURE, "--root"]).arg(&tools);
    // Without the prefix its build script picks a wrong library folder.
    build.env("LLVM_PREFIX", LLVM);
    process::run(&mut build)
        .context("cannot build bpf-linker; `cargo xtask setup` tries again when the network is there")
}

fn installed(linker: &Path) -> bool {
    let version = process::output(Command::new(linker).arg("--version"));
    version.is_ok_and(|text| text.split_whitespace().any(|word| word == VERSION))
}
