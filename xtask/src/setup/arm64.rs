//! What builds for arm64 on another machine where rustup has no library for it: Debian's Rust, whose library for arm64 is a package
//! of that architecture. It is unpacked into `.rouse/tools`, not installed: the machine keeps its one architecture.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    process,
    setup::debian::{self, Package, Probe},
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
    let work = folder.with_extension("partial");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(work.join("state/lists/partial"))?;
    fs::create_dir_all(work.join("cache/archives/partial"))?;
    fs::write(work.join("status"), "")?;
    apt(&work, &["update", "--quiet"])?;
    apt(&work, &["download", "--quiet", &format!("{LIBRARY}={version}")])?;
    let package = fs::read_dir(&work)?.flatten().map(|entry| entry.path());
    let package = package.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.context("apt-get downloaded no package")?;
    process::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder))?;
    fs::remove_dir_all(&work).context("cannot remove apt's lists for arm64")
}

/// `apt-get` as if on an arm64 machine that has nothing installed.
fn apt(work: &Path, verb: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.current_dir(work).args(["-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]);
    for (name, path) in [("Dir::State", "state"), ("Dir::State::status", "status"), ("Dir::Cache", "cache")] {
        apt.arg("-o").arg(format!("{name}={}", work.join(path).display()));
    }
    apt.args(["-o", "APT::Sandbox::User=root"]).args(verb).stdout(std::io::stderr());
    process::run(&mut apt)
}
