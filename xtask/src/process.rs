//! Starting other programs: cargo without the variables `cargo run` left behind, and errors that name what was run.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command},
};

use anyhow::{Context as _, Result, bail};

/// Variables that `cargo run` sets for xtask itself. Build scripts that watch them (ring's does) would be run again
/// by each change between `cargo …` and `cargo xtask …`.
const CARGO_RUN: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];

/// `cargo` of the toolchain that built xtask, in `root`.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| CARGO_RUN.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// Flags for the compiler as `CARGO_ENCODED_RUSTFLAGS` takes them: these, and what makes the result the same wherever the
/// sources and the crates lie.
pub(crate) fn rustflags(root: &Path, flags: &[&str]) -> OsString {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let mut all = OsString::from(flags.join("\x1f"));
    // The later wins where both fit.
    for (from, to) in [(cargo.as_path(), "/cargo"), (root, "/rouse")] {
        all.push("\x1f--remap-path-prefix=");
        all.push(from);
        all.push("=");
        all.push(to);
    }
    all
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args()).map(OsStr::to_string_lossy);
    words.collect::<Vec<_>>().join(" ")
}

/// Runs the command on our terminal; an error unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs the command and returns what it wrote to standard output; its errors are part of ours.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}: {}", shown(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The program of this name on `PATH` or where Debian puts those for root.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Whether we may install packages and use the kernel.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    effective == Some("0")
}

/// A process that we started and that ends with this value: asked first, then forced.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Starts the command.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().with_context(|| format!("cannot start {}", shown(command)))?))
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// What it writes, where that is piped; once.
    pub(crate) fn output(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)) | Err(_))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        // nginx's master ends its workers on SIGTERM; SIGKILL would leave them behind.
        let asked = Command::new("kill").arg(self.0.id().to_string()).output();
        if asked.is_ok() {
            for _ in 0..100 {
                if self.has_ended() {
                    return;
                }
                std::thread::park_timeout(std::time::Duration::from_millis(20));
            }
        }
        // It ended on its own, or it does not listen: either way there is nobody to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
