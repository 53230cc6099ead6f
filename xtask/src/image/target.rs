//! Building programs that stand alone: static, without paths of this machine, for this architecture or another.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{
    demo,
    image::{Arch, Effort},
    process,
};

/// What separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const UNIT: &str = "\x1f";

/// What to build for, and with which linker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    triple: &'static str,
    linker: Option<&'static str>,
}

impl Target {
    /// The target of an architecture; an error says what this machine lacks for it.
    pub(super) fn find(arch: Arch) -> Result<Self> {
        let (triple, gcc) = match arch {
            Arch::Amd64 => ("x86_64-unknown-linux-gnu", "x86_64-linux-gnu-gcc"),
            Arch::Arm64 => ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu-gcc"),
        };
        let linker = (arch != Arch::HOST).then_some(gcc);
        let library = library(triple);
        if !library.as_deref().is_some_and(Path::is_dir) {
            let library = library.unwrap_or_default();
            bail!(
                "no Rust library for {triple}, expected it in {}: get it with `rustup target add {triple}`",
                library.display()
            );
        }
        if let Some(gcc) = linker
            && process::which(gcc).is_none()
        {
            bail!(
                "no C compiler for {triple}, expected `{gcc}`: on Debian, `apt-get install gcc-{}`",
                &gcc[..gcc.len() - 4]
            );
        }
        Ok(Self { triple, linker })
    }

    /// Builds all programs of the packages at once; the folder they are in.
    pub(super) fn build(&self, root: &Path, packages: &[&str], effort: Effort) -> Result<PathBuf> {
        let profile = match effort {
            Effort::Release => "image",
            Effort::Quick => "quick-image",
        };
        eprintln!("image: building {} (profile {profile}; the first time takes minutes)", packages.join(", "));
        let mut cargo = process::cargo(root);
        cargo.args(["build", "--locked", "--profile", profile, "--target", self.triple, "--bins"]);
        cargo.args(packages.iter().flat_map(|package| ["--package", package]));
        cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags(root));
        if let Some(linker) = self.linker {
            let name = self.triple.to_uppercase().replace('-', "_");
            cargo.env(format!("CARGO_TARGET_{name}_LINKER"), linker);
            cargo.env(format!("CC_{}", self.triple.replace('-', "_")), linker);
        }
        process::run(&mut cargo)?;
        Ok(demo::target(root)?.join(self.triple).join(profile))
    }
}

/// Static, and the same wherever the sources and the crates lie.
fn flags(root: &Path) -> OsString {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    // The later wins where both fit.
    for (from, to) in [(cargo.as_path(), "/cargo"), (root, "/rouse")] {
        flags.push(UNIT);
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

/// Where the compiler has its library for a target, whether it is there or not.
fn library(triple: &str) -> Option<PathBuf> {
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]).env_remove("RUSTC")).ok()?;
    Some(Path::new(sysroot.trim()).join("lib/rustlib").join(triple).join("lib"))
}
