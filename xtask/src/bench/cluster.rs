//! The cluster of the benches that need one: brought up with images of this tree, and taken down.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::{
    cluster::Cluster,
    image::{self, Arch, Effort},
    setup,
};

/// Which cluster, and how long it lives.
#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    /// Images without link-time optimisation, built in a fraction of the time.
    #[arg(long)]
    quick: bool,
    /// The cluster's name.
    #[arg(long, value_name = "NAME", default_value = "bench")]
    name: String,
    /// Leave the cluster up; a second run with the same name uses it as it is.
    #[arg(long)]
    keep: bool,
}

/// What a new cluster gets.
pub(crate) struct Wanted<'a> {
    /// How many nodes.
    pub(crate) nodes: u8,
    /// Archives of images, besides ours.
    pub(crate) archives: &'a [PathBuf],
}

impl ClusterArgs {
    /// Measures on a cluster in which what is to be measured has been installed.
    pub(crate) fn measured<T>(
        &self,
        root: &Path,
        wanted: &Wanted<'_>,
        install: impl FnOnce(&Cluster) -> Result<()>,
        measure: impl FnOnce(&Cluster) -> Result<T>,
    ) -> Result<T> {
        setup::for_cluster()?;
        let name = self.name.parse()?;
        let cluster = match Cluster::find(root, &name) {
            Ok(cluster) if self.keep => cluster,
            _ => self.up(root, wanted, install)?,
        };
        let measured = measure(&cluster);
        if !self.keep {
            Cluster::down_to_nothing(root, &self.name)?;
        }
        measured
    }

    fn up(
        &self,
        root: &Path,
        Wanted { nodes, archives }: &Wanted<'_>,
        install: impl FnOnce(&Cluster) -> Result<()>,
    ) -> Result<Cluster> {
        let effort = if self.quick { Effort::Quick } else { Effort::Release };
        let ours = image::build(root, &root.join("target/images"), Arch::HOST, effort)?;
        let cluster = Cluster::up(root, &self.name, *nodes, true)?;
        cluster.programs().build_all()?;
        let others = archives.iter().map(|archive| root.join(archive));
        ours.into_iter().chain(others).try_for_each(|archive| cluster.load_everywhere(&archive))?;
        install(&cluster)?;
        Ok(cluster)
    }
}
