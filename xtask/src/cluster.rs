//! `cargo xtask cluster`: a real Kubernetes on this machine, in namespaces that lead nowhere else.
//!
//! ```text
//! up ── build (Go modules, once) ── pki ── netns ──> services: starts each machine ──> machine (inside: mounts, its programs)
//!        control_plane, node: what runs where          └─ images, dns, keda: what runs in pods
//! down ── teardown: finds by name, ends, removes
//! ```

mod build;
mod cgroups;
mod control_plane;
mod handle;
mod images;
mod keda;
mod machine;
mod mounts;
mod netns;
mod node;
mod pki;
mod place;
mod services;
mod status;
mod teardown;
mod up;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};
use clap::Subcommand;

use self::{build::Module, teardown::Remains};
pub(crate) use self::{
    build::Programs,
    handle::Cluster,
    node::ProxyMode,
    place::{Machine, Name, Place, hex},
    up::UpArgs,
};
use crate::process;

/// What one may do with a cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Build the cluster's programs from their Go modules, once; `up` does it too.
    Build(BuildArgs),
    /// Bring a cluster up.
    Up(UpArgs),
    /// End a cluster, whatever state it is in, and remove all of it.
    Down(Which),
    /// What runs, and where.
    Status(StatusArgs),
    /// kubectl on a cluster: `cargo xtask cluster kubectl get pods -A`.
    Kubectl(ToolArgs),
    /// Helm on a cluster: `cargo xtask cluster helm list -A`.
    Helm(ToolArgs),
    /// The first process of a machine; started by `up` alone.
    #[command(hide = true)]
    Machine {
        /// What the machine is made of.
        plan: PathBuf,
    },
}

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// With caches of Go that are removed on the way: a third of the disk space, for machines that build once.
    #[arg(long)]
    small: bool,
}

/// Which cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Which {
    /// The cluster's name: this repository can have several at a time.
    #[arg(long, value_name = "NAME", default_value = "main")]
    name: Name,
}

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    which: Which,
    /// As JSON, with the paths of namespaces and kubeconfig.
    #[arg(long)]
    json: bool,
}

/// Arguments of `kubectl` and `helm`.
#[derive(Debug, clap::Args)]
pub(crate) struct ToolArgs {
    /// The cluster's name; before the tool's own arguments.
    #[arg(long = "cluster", value_name = "NAME", default_value = "main")]
    name: Name,
    /// The tool's own arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Runs one of the commands.
pub(crate) fn run(root: &Path, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Build(BuildArgs { small }) => {
            let programs = Programs::of(root)?;
            if small { programs.build_all_small() } else { programs.build_all() }?;
            println!("cluster: all programs are built");
            Ok(())
        }
        ClusterCommand::Up(args) => up::run(root, &args).map(drop),
        ClusterCommand::Down(Which { name }) => down(&Place::new(root, &name)),
        ClusterCommand::Status(StatusArgs { which: Which { name }, json }) => {
            status::run(&Place::new(root, &name), json);
            Ok(())
        }
        ClusterCommand::Kubectl(ToolArgs { name, args }) => {
            tool(Cluster::find(root, &name)?.kubectl_command()?.args(args))
        }
        ClusterCommand::Helm(ToolArgs { name, args }) => {
            let cluster = Cluster::find(root, &name)?;
            cluster.programs().build(&[Module::Tools])?;
            tool(cluster.helm_command()?.args(args))
        }
        ClusterCommand::Machine { plan } => machine::run(&plan),
    }
}

/// Becomes the tool, so that its exit code is ours.
fn tool(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    bail!("cannot start {}: {}", process::shown(command), command.exec())
}

fn down(place: &Place) -> Result<()> {
    let found = teardown::down(place)?;
    if found.is_nothing() {
        println!("cluster: {} is not there", place.name());
        return Ok(());
    }
    let Remains { processes, namespaces, cgroups, folder: _ } = found;
    println!(
        "cluster: {} is gone: {processes} processes, {namespaces} network namespaces, {cgroups} cgroups",
        place.name()
    );
    Ok(())
}
