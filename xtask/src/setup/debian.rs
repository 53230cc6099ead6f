//! Debian packages: which are missing, and installing them once without starting their services. Read by `setup.rs`.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// Asked by Debian's packages before they start a service; 101 means "do not".
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str =
    "#!/bin/sh\n# Put here by `cargo xtask setup` of Rouse while it installs packages.\nexit 101\n";

/// Whether this process has read Debian's package lists: once is enough, also when there is no network.
static LISTS_READ: AtomicBool = AtomicBool::new(false);

/// A package, how to see that what we want of it is there, and what for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Package {
    name: &'static str,
    probe: Probe,
    purpose: &'static str,
}

/// How to see that a package, or something as good, is there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Probe {
    /// A program of this name.
    Command(&'static str),
    /// A file or folder at this place.
    File(&'static str),
}

impl Package {
    pub(super) const fn new(name: &'static str, probe: Probe, purpose: &'static str) -> Self {
        Self { name, probe, purpose }
    }

    fn is_there(&self) -> bool {
        match self.probe {
            Probe::Command(name) => process::which(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
        }
    }
}

/// Installs those of the packages that are missing; the error says in one line what is missing and how to get it.
pub(super) fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !package.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!("missing {0}; get it as root with `apt-get install {0}`", names.join(" "));
    if process::which("apt-get").is_none() {
        bail!("missing {}; this is no Debian machine: install what matches these packages", names.join(" "));
    }
    if !process::is_root() {
        bail!("{by_hand}");
    }
    for (number, package) in missing.iter().enumerate() {
        let Package { name, purpose, .. } = package;
        eprintln!("setup: Debian package {}/{}: {name} ({purpose})", number + 1, missing.len());
    }
    let quiet = NoServices::begin()?;
    let installed = fetch(&names);
    drop(quiet);
    keep_off(&names);
    installed.with_context(|| by_hand)?;
    match missing.iter().find(|package| !package.is_there()) {
        Some(Package { name, probe, .. }) => bail!("package {name} is installed, but {probe:?} is not there"),
        None => Ok(()),
    }
}

/// Installs from the package lists at hand; reads new lists once if those are missing or too old.
fn fetch(names: &[&str]) -> Result<()> {
    if known(names) && apt(&["install"], names).is_ok() {
        return Ok(());
    }
    if LISTS_READ.swap(true, Relaxed) {
        bail!("Debian's package lists, read a moment ago, do not lead to them");
    }
    eprintln!("setup: reading Debian's package lists");
    apt(&["update"], &[])?;
    apt(&["install"], names)
}

/// Whether the lists at hand know a version of each package.
fn known(names: &[&str]) -> bool {
    let known = |name: &&str| {
        let policy = process::output(Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C"));
        policy.is_ok_and(|text| text.contains("Candidate: ") && !text.contains("Candidate: (none)"))
    };
    names.iter().all(known)
}

fn apt(verb: &[&str], names: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]);
    command.args(["-o", "Acquire::Retries=2", "-o", "Dpkg::Use-Pty=0"]);
    command.args(verb).args(names).env("DEBIAN_FRONTEND", "noninteractive");
    // Standard output belongs to what the command is for: `demo --once --json` prints its summary there.
    let status = command.stdout(std::io::stderr()).status().context("cannot start apt-get")?;
    if !status.success() {
        bail!("`apt-get {}` failed, its words are above", verb.join(" "));
    }
    Ok(())
}

/// While it lives, packages do not start their services.
#[derive(Debug)]
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> Result<Self> {
        // Another's policy stays: containers forbid services too, and who allows them on purpose knows why.
        let theirs = fs::read_to_string(POLICY).is_ok_and(|text| text != POLICY_TEXT);
        if theirs {
            return Ok(Self { ours: false });
        }
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(POLICY);
        file.and_then(|mut file| file.write_all(POLICY_TEXT.as_bytes()))
            .with_context(|| format!("cannot write {POLICY}"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(POLICY).is_err() {
            eprintln!("setup: cannot remove {POLICY}; remove it, or no package starts its service");
        }
    }
}

/// Keeps the services that came with these packages from starting with the machine.
fn keep_off(installed: &[&str]) {
    for (package, service) in [("nginx-light", "nginx"), ("haproxy", "haproxy"), ("redis-server", "redis-server")] {
        if installed.contains(&package) && process::which("systemctl").is_some() {
            // A machine without systemd has nothing to disable.
            let _ = Command::new("systemctl").args(["--quiet", "disable", service]).output();
        }
    }
}
