//! What builds for arm64 on another machine where rustup has no library for it: Debian's Rust, whose library for arm64 is a package
//! of that architecture. It is unpacked into `.rouse/tools`, not installed: the machine keeps its one architecture.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    process,
    setup::{
        debian::{self, Package, Probe},
        elsewhere::Elsewhere,
    },
};

const PACKAGES: [Package; 4] = [
    Package::new("rustc-web", Probe::File("/usr/bin/rustc"), "the Rust compiler whose library there is for arm64"),
    Package::new("cargo-web", Probe::File("/usr/bin/cargo"), "its cargo"),
    Package::new("gcc-aarch64-linux-gnu", Probe::Command("aarch64-linux-gnu-gcc"), "a C compiler and linker for arm64"),
    Package::new("libc6-dev-arm64-cross", Probe::File("/usr/aarch64-linux-gnu/lib/libc.a"), "the C library for arm64"),
];
/// Rust's library, also the name of the package that is here for this machine's architecture.
const LIBRARY: &str = "libstd-rust-web-dev";
/// Where the library is, below the root of what its package unpacks to.
const IN_PACKAGE: &str = "usr/lib/rustlib/aarch64-unknown-linux-gnu/lib";

/// Installs and unpacks; the compiler's `--sysroot`.
pub(super) fn sysroot(root: &Path) -> Result<PathBuf> {
    debian::install(&PACKAGES)?;
    let version = process::output(Command::new("dpkg-query").args(["--show", "--showformat", "${Version}", LIBRARY]))?;
    let version = version.trim();
    // One folder a version: compiler and library must be of the same build.
    let folder = root.join(".rouse/tools").join(format!("arm64-{}", version.replace(['/', '~', '+'], "-")));
    if !folder.join(IN_PACKAGE).is_dir() {
        unpack(&folder, version).with_context(|| format!("cannot get {LIBRARY} {version} for arm64"))?;
    }
    Ok(folder.join("usr"))
}

fn unpack(folder: &Path, version: &str) -> Result<()> {
    eprintln!("setup: Debian package {LIBRARY} {version} for arm64 (Rust's library), unpacked into .rouse/tools");
    let arm64 = Elsewhere::architecture(folder.with_extension("partial"), "arm64")?;
    arm64.update()?;
    arm64.unpack(&format!("{LIBRARY}={version}"), folder)
}
