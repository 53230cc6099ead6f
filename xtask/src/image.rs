//! `cargo xtask image`: OCI images of our programs, without a Docker daemon: one static program in each, and nothing else.

pub(crate) mod archive;
mod target;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use self::{
    archive::{Image, NONROOT},
    target::Target,
};
use crate::setup;

/// Where images come from, as names of the chart's values say it.
const REGISTRY: &str = "docker.io/rouse";
/// No image may be larger; without link-time optimisation they are, by a third.
const LARGEST: u64 = 30 << 20;
const LARGEST_QUICK: u64 = 40 << 20;

/// A program and its image.
#[derive(Clone, Copy, Debug)]
struct Part {
    package: &'static str,
    program: &'static str,
    /// Name of the image, and of its archive.
    image: &'static str,
    /// Path in the image.
    path: &'static str,
    title: &'static str,
}

const PARTS: [Part; 4] = [
    Part {
        package: "interceptor-user",
        program: "interceptor",
        image: "http-add-on-interceptor",
        path: "/interceptor",
        title: "Rouse's interceptor: holds requests while their workload wakes",
    },
    Part {
        package: "scaler",
        program: "scaler",
        image: "http-add-on-scaler",
        path: "/scaler",
        title: "Rouse's scaler: tells KEDA how many requests there are",
    },
    Part {
        package: "operator",
        program: "operator",
        image: "http-add-on-operator",
        path: "/operator",
        title: "Rouse's operator: keeps ScaledObjects and statuses in step with routes",
    },
    Part {
        package: "local",
        program: "rouse-demo-app",
        image: "demo-app",
        path: "/rouse-demo-app",
        title: "Rouse's demonstration workload",
    },
];

/// For which processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// `x86_64`.
    Amd64,
    /// aarch64.
    Arm64,
}

/// How well the programs are optimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// As they are shipped.
    Release,
    /// Nearly as fast, in a fraction of the time.
    Quick,
}

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// Folder for the archives, one an image.
    #[arg(long, value_name = "FOLDER", default_value = "target/images")]
    out: PathBuf,
    /// For which processors; this machine's if not given.
    #[arg(long)]
    arch: Option<Arch>,
    /// Without link-time optimisation: nearly as fast, in a fraction of the time.
    #[arg(long)]
    quick: bool,
}

// === impl Arch ===

impl Arch {
    /// This machine's.
    pub(crate) const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// In Go's words, as images name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// `cargo xtask image`.
pub(crate) fn run(root: &Path, args: &ImageArgs) -> Result<()> {
    let ImageArgs { out, arch, quick } = args;
    let effort = if *quick { Effort::Quick } else { Effort::Release };
    build(root, &root.join(out), arch.unwrap_or(Arch::HOST), effort).map(drop)
}

/// Builds the programs and writes their images; the archives' paths.
pub(crate) fn build(root: &Path, out: &Path, arch: Arch, effort: Effort) -> Result<Vec<PathBuf>> {
    let target = Target::find(root, arch)?;
    setup::with_ebpf(root, "image");
    let programs = target.build(root, &PARTS.map(|part| part.package), effort)?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let largest = if effort == Effort::Quick { LARGEST_QUICK } else { LARGEST };
    PARTS.iter().map(|part| part.write(&programs, (out, arch), largest)).collect()
}

impl Part {
    fn write(&self, programs: &Path, (out, arch): (&Path, Arch), largest: u64) -> Result<PathBuf> {
        let Self { package: _, program, image, path, title } = self;
        let version = env!("CARGO_PKG_VERSION");
        let label = |name, value: &str| (name, value.to_owned());
        let contents = Image {
            reference: format!("{REGISTRY}/{image}:{version}"),
            arch: arch.name(),
            entrypoint: vec![(*path).to_owned()],
            user: NONROOT,
            labels: vec![
                label("org.opencontainers.image.title", title),
                label("org.opencontainers.image.version", version),
                label("org.opencontainers.image.licenses", "Apache-2.0"),
            ],
            files: vec![(programs.join(program), (*path).to_owned())],
        };
        let to = out.join(format!("{image}-{}.tar", arch.name()));
        let written = contents.write(&to)?;
        let (size, reference) = (written.size, &contents.reference);
        if size > largest {
            bail!("{reference} has {} MiB, expected at most {}", size >> 20, largest >> 20);
        }
        println!("image: {reference} {} {} MiB {}", written.digest, size >> 20, to.display());
        Ok(to)
    }
}
