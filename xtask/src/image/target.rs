//! Building programs that stand alone: static, without paths of this machine, for this architecture or another.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    demo,
    image::{Arch, Effort},
    process, setup,
};

/// What to build for, and with what.
#[derive(Clone, Debug)]
pub(super) struct Target {
    triple: &'static str,
    cross: Option<Cross>,
}

/// What building for another architecture takes.
#[derive(Clone, Debug)]
struct Cross {
    /// C compiler, which links too.
    gcc: &'static str,
    /// Debian's Rust with this library, where rustup has none for the target.
    sysroot: Option<PathBuf>,
}

impl Target {
    /// The target of an architecture; an error says what this machine lacks for it.
    pub(super) fn find(root: &Path, arch: Arch) -> Result<Self> {
        let (triple, gcc) = match arch {
            Arch::Amd64 => ("x86_64-unknown-linux-gnu", "x86_64-linux-gnu-gcc"),
            Arch::Arm64 => ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu-gcc"),
        };
        if arch == Arch::HOST {
            return Ok(Self { triple, cross: None });
        }
        let by_rustup = library(root, triple).is_some_and(|library| library.is_dir());
        let sysroot = match arch {
            _ if by_rustup => None,
            Arch::Arm64 => Some(setup::for_arm64(root).with_context(|| format!("no Rust library for {triple}"))?),
            Arch::Amd64 => bail!("no Rust library for {triple}; get it with `rustup target add {triple}`"),
        };
        if process::which(gcc).is_none() {
            bail!(
                "no C compiler for {triple}, expected `{gcc}`; on Debian, `apt-get install gcc-{}`",
                &gcc[..gcc.len() - 4]
            );
        }
        Ok(Self { triple, cross: Some(Cross { gcc, sysroot }) })
    }

    /// Builds all programs of the packages at once; the folder they are in.
    pub(super) fn build(&self, root: &Path, packages: &[&str], effort: Effort) -> Result<PathBuf> {
        let profile = match effort {
            Effort::Release => "image",
            Effort::Quick => "quick-image",
        };
        eprintln!("image: building {} (profile {profile}; the first time takes minutes)", packages.join(", "));
        let mut cargo = self.cargo(root);
        cargo.args(["build", "--locked", "--profile", profile, "--target", self.triple, "--bins"]);
        cargo.args(packages.iter().flat_map(|package| ["--package", package]));
        process::run(&mut cargo)?;
        Ok(demo::target(root)?.join(self.triple).join(profile))
    }

    fn cargo(&self, root: &Path) -> Command {
        let mut flags = process::rustflags(root, &["-Ctarget-feature=+crt-static"]);
        let Some(Cross { gcc, sysroot }) = &self.cross else {
            let mut cargo = process::cargo(root);
            cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags);
            return cargo;
        };
        let mut cargo = process::cargo(root);
        if let Some(sysroot) = sysroot {
            cargo = Command::new("/usr/bin/cargo");
            cargo.current_dir(root).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").env("RUSTC", "/usr/bin/rustc");
            flags.push("\x1f--sysroot=");
            flags.push(sysroot);
        }
        let variable = self.triple.replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), gcc).env(format!("CC_{variable}"), gcc);
        cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags);
        cargo
    }
}

/// Where rustup's compiler has its library for a target, whether it is there or not.
fn library(root: &Path, triple: &str) -> Option<PathBuf> {
    let sysroot = process::output(Command::new("rustc").current_dir(root).args(["--print", "sysroot"])).ok()?;
    Some(Path::new(sysroot.trim()).join("lib/rustlib").join(triple).join("lib"))
}
