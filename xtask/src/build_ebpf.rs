//! Builds the eBPF programs for the BPF target and puts the objects into `target/bpf`, where `dataplane`'s build script
//! finds them. Needs no network once the crates are there, and leaves the workspace's lock file and target alone.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::process;

/// Where the objects are put, below the workspace's root.
pub(crate) const FOLDER: &str = "target/bpf";
/// Where set-up puts tools that are not Debian packages, below the workspace's root.
pub(crate) const TOOLS: &str = ".rouse/tools";
/// What Debian's set-up needs.
pub(crate) const PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "cargo-web"];

const PACKAGE: &str = "interceptor-ebpf";
/// The package's programs, one object each. `dataplane`'s build script has the same list.
const OBJECTS: [&str; 5] = ["own", "count", "hold", "queue", "steer"];
/// Apart from the folder of the objects, which a build script watches.
const TARGET_DIR: &str = "target/bpf-build";
const TARGET: &str = "bpfel-unknown-none";
/// `--btf`: socket storage maps need type information; it is made of the debug information.
const RUSTFLAGS: [&str; 3] = ["-Clinker=bpf-linker", "-Clink-arg=--btf", "-Cdebuginfo=2"];
/// The caller's own build settings, which are for the host.
const FOREIGN: [&str; 9] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler that can build `core` for the BPF target, and the linker.
#[derive(Debug)]
pub(crate) struct Toolchain {
    cargo: Vec<OsString>,
    rustc: Option<PathBuf>,
    bpf_linker: PathBuf,
}

/// What is not there, in one line with how to get it.
#[derive(Debug)]
pub(crate) struct Missing(String);

// === impl Toolchain ===

impl Toolchain {
    /// Looks for one: rustup's nightly with `rust-src` first, then Debian's `rustc-web`.
    pub(crate) fn find(root: &Path) -> Result<Self, Missing> {
        let compiler = Self::rustup().or_else(Self::debian);
        let linker = bpf_linker(root);
        match (compiler, linker) {
            (Some((cargo, rustc)), Some(bpf_linker)) => Ok(Self { cargo, rustc, bpf_linker }),
            (compiler, linker) => {
                let mut parts = Vec::new();
                if compiler.is_none() {
                    parts.push(format!(
                        "a compiler with its library's source (`rustup toolchain install nightly --component rust-src`, or \
                         on Debian `apt-get install {}`)",
                        PACKAGES.join(" ")
                    ));
                }
                if linker.is_none() {
                    parts.push("bpf-linker (`cargo install bpf-linker`)".to_owned());
                }
                let parts = parts.join(" and ");
                Err(Missing(format!(
                    "no eBPF programs: missing {parts}; `cargo xtask setup` installs both where it can"
                )))
            }
        }
    }

    fn rustup() -> Option<(Vec<OsString>, Option<PathBuf>)> {
        let sysroot = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
        has_library_source(&sysroot).then(|| (["rustup", "run", "nightly", "cargo"].map(OsString::from).to_vec(), None))
    }

    fn debian() -> Option<(Vec<OsString>, Option<PathBuf>)> {
        let (cargo, rustc) = (Path::new("/usr/bin/cargo"), Path::new("/usr/bin/rustc"));
        let sysroot = output(Command::new(rustc).args(["--print", "sysroot"]))?;
        (cargo.exists() && has_library_source(&sysroot)).then(|| (vec![cargo.into()], Some(rustc.to_owned())))
    }

    fn command(&self, root: &Path) -> anyhow::Result<Command> {
        let Self { cargo, rustc, bpf_linker } = self;
        let mut command = Command::new(&cargo[0]);
        command.args(&cargo[1..]);
        for name in FOREIGN {
            command.env_remove(name);
        }
        if let Some(rustc) = rustc {
            command.env("RUSTC", rustc);
        }
        let folder = bpf_linker.parent().context("bpf-linker's path has a folder")?.to_owned();
        let path = env::var_os("PATH").unwrap_or_default();
        command.env("PATH", env::join_paths([folder].into_iter().chain(env::split_paths(&path)))?);
        // Building `core` is an unstable feature of cargo, also where the compiler is a stable one.
        command
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", process::rustflags(root, &RUSTFLAGS))
            .current_dir(root)
            .stdin(Stdio::null());
        Ok(command)
    }
}

// === impl Missing ===

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Whether all objects have been built.
pub(crate) fn built(root: &Path) -> bool {
    OBJECTS.iter().all(|object| root.join(FOLDER).join(object).is_file())
}

/// Builds the programs and returns the objects' folder. The error is a [`Missing`] when the toolchain is not there.
pub(crate) fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let toolchain = Toolchain::find(root)?;
    let target_dir = root.join(TARGET_DIR);
    let status = toolchain
        .command(root)?
        .args(["build", "--release", "--locked", "--package", PACKAGE, "--target", TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        .status()
        .with_context(|| format!("could not start {}", toolchain.cargo[0].display()))?;
    if !status.success() {
        bail!("the eBPF programs did not build: {status}, expected the compiler's messages above");
    }
    let folder = root.join(FOLDER);
    for object in OBJECTS {
        install(&target_dir.join(TARGET).join("release").join(object), &folder.join(object))?;
    }
    Ok(folder)
}

/// Puts a copy of `from` at `to` in one step, and leaves `to` alone when it is the same, so that nothing is rebuilt for it.
fn install(from: &Path, to: &Path) -> anyhow::Result<()> {
    let new = fs::read(from).with_context(|| format!("could not read {}", from.display()))?;
    match fs::read(to) {
        Ok(old) if old == new => return Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("could not read {}", to.display()));
        }
        _ => {}
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    }
    let partial = to.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&partial, &new).with_context(|| format!("could not write {}", partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("could not put {} in place", to.display()))
}

fn bpf_linker(root: &Path) -> Option<PathBuf> {
    let own = root.join(TOOLS).join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    [own].into_iter().chain(env::split_paths(&path)).map(|folder| folder.join("bpf-linker")).find(|file| file.is_file())
}

fn has_library_source(sysroot: &str) -> bool {
    Path::new(sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
}

/// What a command prints, if it is there and succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("rouse-xtask-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_object_that_did_not_change_is_left_alone() {
        let folder = Folder::new("install");
        let (from, to) = (folder.0.join("built"), folder.0.join("bpf/object"));
        fs::write(&from, "one").unwrap();
        install(&from, &to).unwrap();
        let first = fs::metadata(&to).unwrap().modified().unwrap();
        install(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), first);
        fs::write(&from, "two").unwrap();
        install(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 1, "nothing partial is left");
    }

    #[test]
    fn a_linker_among_our_own_tools_comes_first() {
        let folder = Folder::new("linker");
        let own = folder.0.join(TOOLS).join("bin");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("bpf-linker"), "").unwrap();
        assert_eq!(bpf_linker(&folder.0), Some(own.join("bpf-linker")));
    }

    #[test]
    fn what_is_missing_is_one_line() {
        assert!(!has_library_source("/nonexistent"));
        assert_eq!(output(&mut Command::new("/nonexistent/rustc")), None);
        if let Err(missing) = Toolchain::find(Path::new("/nonexistent")) {
            assert_eq!(missing.to_string().lines().count(), 1);
        }
    }
}
