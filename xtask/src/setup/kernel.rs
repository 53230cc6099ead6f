//! Kernels of other Debian releases, for virtual machines: unpacked once into `.rouse/kernels`. Read by `setup.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{process, setup::elsewhere::Elsewhere};

/// Depends on a release's present kernel for virtual machines.
const META: &str = "linux-image-cloud-amd64";
const FOLDER: &str = ".rouse/kernels";

/// A kernel and its modules.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` tells it.
    pub(crate) version: String,
    /// With `boot` and `lib/modules` in it.
    pub(crate) folder: PathBuf,
}

impl Kernel {
    /// The kernel itself.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// Its modules and what `depmod` has written about them.
    pub(crate) fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.version)
    }
}

/// The kernel that is in `.rouse/kernels`, or else the release's present one.
pub(super) fn fetch(root: &Path, release: &str) -> Result<Kernel> {
    let folder = root.join(FOLDER).join(release);
    if !folder.is_dir() {
        download(&folder, release).with_context(|| format!("cannot get the kernel of Debian {release}"))?;
    }
    let version = only_entry(&folder.join("lib/modules"))?;
    Ok(Kernel { version, folder })
}

fn download(folder: &Path, release: &str) -> Result<()> {
    let debian = Elsewhere::release(folder.with_extension("apt"), release)?;
    debian.update()?;
    let package = debian.dependency(META)?;
    eprintln!("setup: Debian package {package} of {release}, unpacked into {FOLDER}");
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    debian.unpack(&package, &partial)?;
    prepare(&partial)?;
    fs::rename(&partial, folder).context("cannot put the kernel in place")
}

/// What the package's own scripts would do; and all releases alike.
fn prepare(folder: &Path) -> Result<()> {
    let (merged, plain) = (folder.join("usr/lib/modules"), folder.join("lib/modules"));
    if merged.is_dir() {
        fs::create_dir_all(folder.join("lib"))?;
        fs::rename(merged, &plain)?;
    }
    let version = only_entry(&plain)?;
    let packed = ["-name", "*.ko.xz", "-exec", "busybox", "unxz", "{}", "+"];
    process::run(Command::new("find").arg(&plain).args(packed))?;
    process::run(Command::new("busybox").args(["depmod", "-b"]).arg(folder).arg(version).current_dir(folder))
}

fn only_entry(folder: &Path) -> Result<String> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", folder.display()))??;
    entry.file_name().into_string().ok().context("a kernel's version is text")
}
