//! The command line: which commands exist, their help page, and which file runs each. Read by `main.rs` alone.

use std::path::Path;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{bench, build_ebpf, ci, cluster, codegen, demo, e2e, fuzz, image, kernels, setup, sizes, test};

/// The page a newcomer sees. `every_command_is_on_the_help_page` keeps it complete.
const PAGE: &str = "\
Rouse's build tool. Every command may be started anywhere in the repository.

Usage: cargo xtask <COMMAND> [OPTIONS]

Start here
  demo          Watch one request wake a workload: set-up, build, then the live demo (--once: no terminal)
  test          Set-up, then every test there is, and a table of what ran and what did not

While you work
  setup         Install what this machine lacks; each thing is named before it is installed, none twice
  build-ebpf    Compile the eBPF programs to target/bpf
  codegen       Write the generated code again (--check: only compare it with what is committed)
  fuzz          Foreign bytes for what reads them, each target for a minute (TARGET, --time SECONDS)
  sizes         Check sizes and first lines of all source files against the style
  kernels       The tests that need root, in virtual machines with kernels 5.10, 6.1 and 6.12 (--only 5.10), as root
  ci            All that must pass before a commit: fmt, clippy, test, doc, deny, codegen, sizes, dependencies

With Kubernetes
  image         Write OCI images of interceptor, scaler and operator, without a Docker daemon
  cluster       up, down, status, kubectl, helm, build: a real cluster on this machine (--nodes 0|1|2, --keda), as root
  e2e           Every scenario on real nodes with real KEDA (--only NAME, --keep), as root

Measure
  bench proxy   Requests per CPU-second and latency, beside nginx and HAProxy
  bench routes  Look-up, memory, CPU and delay with 10 and with 10,000 routes
  bench coldstart
                Phases of a cold start on real nodes with real KEDA, or of another implementation's, as root

`cargo xtask <COMMAND> --help` tells more. Root is needed only to install Debian packages and for the tests and the
data plane level that use the kernel; without it all else works at data plane level `none`. Tools that are not Debian
packages go to .rouse/ in this repository, results to target/.
";

/// `cargo xtask …`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", override_help = PAGE, disable_help_subcommand = true)]
#[command(arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what this machine lacks: Debian packages, the BPF linker.
    Setup(setup::SetupArgs),
    /// Compile the eBPF programs to target/bpf.
    BuildEbpf,
    /// Write the generated code again.
    Codegen(codegen::CodegenArgs),
    /// Watch one request wake a workload.
    Demo(demo::DemoArgs),
    /// Foreign bytes for what reads them.
    Fuzz(fuzz::FuzzArgs),
    /// Check sizes and first lines of all source files against the style.
    Sizes,
    /// Set-up, then every test there is.
    Test,
    /// All that must pass before a commit.
    Ci,
    /// The tests that need root, in virtual machines with older kernels.
    Kernels(kernels::KernelsArgs),
    /// Write OCI images of our programs.
    Image(image::ImageArgs),
    /// Every scenario on real nodes with real KEDA.
    E2e(e2e::E2eArgs),
    /// A real Kubernetes on this machine.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Measure.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

impl Cli {
    /// Runs the command in the workspace at `root`.
    pub(crate) fn run(self, root: &Path) -> Result<()> {
        match self.command {
            Command::Setup(args) => setup::run(root, &args),
            Command::BuildEbpf => {
                let folder = build_ebpf::build(root)?;
                println!("build-ebpf: wrote {}", folder.display());
                Ok(())
            }
            Command::Codegen(args) => codegen::run(root, &args),
            Command::Demo(args) => {
                setup::with_ebpf(root, "demo");
                demo::run(root, &args)
            }
            Command::Fuzz(args) => fuzz::run(root, &args),
            Command::Sizes => sizes::run(root),
            Command::Test => test::run(root),
            Command::Ci => ci::run(root),
            Command::Kernels(args) => kernels::run(root, &args),
            Command::Image(args) => image::run(root, &args),
            Command::E2e(args) => e2e::run(root, &args),
            Command::Cluster(command) => cluster::run(root, command),
            Command::Bench(command) => bench::run(root, &command),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_is_on_the_help_page() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            assert!(PAGE.contains(&format!("\n  {}", command.get_name())), "{} is missing", command.get_name());
        }
    }
}
