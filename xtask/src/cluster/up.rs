//! `cargo xtask cluster up`: brings a cluster up step by step, and says when each was done.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cluster::{
        build::{Module, Programs},
        handle::Cluster,
        images, netns, node, pki,
        place::{Machine, Name, Place},
        services,
        teardown::{self, Remains},
    },
    process, setup,
};

const PATIENCE: Duration = Duration::from_mins(2);
const DNS: &str = "xtask/cluster/manifests/dns.yaml";

/// Arguments of `up`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// The cluster's name: this repository can have several at a time.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) name: Name,
    /// Nodes with a kubelet: 0 is a control plane alone, where pods stay pending.
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=i64::from(pki::MOST_NODES)))]
    pub(crate) nodes: u8,
    /// Install KEDA too.
    #[arg(long)]
    pub(crate) keda: bool,
}

/// Lines with the seconds since the beginning.
struct Progress(Instant);

impl Progress {
    fn say(&self, what: &str) {
        println!("cluster: {:5.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

/// Brings it up. What is left of one that ended badly is removed first; one that runs is left alone.
pub(crate) fn run(root: &Path, args: &UpArgs) -> Result<Cluster> {
    let UpArgs { name, nodes, keda } = args;
    if !process::is_root() {
        bail!("namespaces and mounts of a cluster need root");
    }
    if *keda && *nodes == 0 {
        bail!("--keda needs a node for KEDA's pods, expected --nodes 1 or 2");
    }
    let place = Place::new(root, name);
    if !Remains::of(&place).is_nothing() {
        bail!("there is a cluster {name}, or what is left of one; `cargo xtask cluster down --name {name}` removes it");
    }
    setup::for_cluster()?;
    let programs = Programs::of(root)?;
    programs.build(modules(*nodes, *keda))?;
    let progress = Progress(Instant::now());
    fs::create_dir_all(place.folder()).with_context(|| format!("cannot make {}", place.folder().display()))?;
    pki::make(&place)?;
    netns::make(&place, *nodes)?;
    for number in 1..=*nodes {
        node::write(&place, number)?;
    }
    let cluster = Cluster::new(place, programs, *nodes);
    for machine in cluster.place().machines() {
        services::start(cluster.place(), cluster.programs(), machine)?;
    }
    progress.say("machines started");
    bring_up(&cluster, *keda, &progress).with_context(|| cluster.last_words())?;
    println!("cluster: {name} is up; `cargo xtask cluster kubectl --cluster {name} …`");
    Ok(cluster)
}

fn modules(nodes: u8, keda: bool) -> &'static [Module] {
    match (nodes, keda) {
        (0, _) => &Module::ALL[..2],
        (_, false) => &[Module::Etcd, Module::Kube, Module::Cri, Module::Coredns],
        (_, true) => &[Module::Etcd, Module::Kube, Module::Cri, Module::Coredns, Module::Keda],
    }
}

fn bring_up(cluster: &Cluster, keda: bool, progress: &Progress) -> Result<()> {
    thread::scope(|scope| {
        let loading = scope.spawn(|| load(cluster, keda, progress));
        control_plane(cluster, keda, progress)?;
        match loading.join() {
            Ok(loaded) => loaded,
            Err(_) => bail!("loading images panicked"),
        }
    })?;
    for number in 1..=cluster.nodes() {
        cluster.wait_for(&format!("node{number} to be ready"), PATIENCE, || {
            let node = cluster.json(&["get", "node", &format!("node{number}"), "--ignore-not-found"])?;
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            Ok(conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True").then_some(()))
        })?;
    }
    if cluster.nodes() > 0 {
        progress.say("nodes ready");
        cluster.rolled_out("kube-system", "coredns", PATIENCE)?;
        progress.say("name server ready");
    }
    if keda {
        cluster.await_keda()?;
        progress.say("KEDA ready");
    }
    Ok(())
}

/// Everything that can be asked of an API server before a node is ready.
fn control_plane(cluster: &Cluster, keda: bool, progress: &Progress) -> Result<()> {
    cluster.wait_for("the API server", PATIENCE, || {
        cluster.is_alive()?;
        Ok(cluster.kubectl(&["get", "--raw", "/readyz"]).ok())
    })?;
    progress.say("API server ready");
    if cluster.nodes() > 0 {
        let dns = cluster.place().root().join(DNS);
        cluster.apply(&fs::read_to_string(&dns).with_context(|| format!("cannot read {}", dns.display()))?)?;
    }
    if keda {
        cluster.install_keda()?;
    }
    // Without it no pod is admitted.
    cluster.wait_for("the default service account", PATIENCE, || {
        Ok(cluster.kubectl(&["get", "serviceaccount", "default", "--namespace", "default"]).ok())
    })?;
    progress.say("control plane ready");
    Ok(())
}

fn load(cluster: &Cluster, keda: bool, progress: &Progress) -> Result<()> {
    for number in 1..=cluster.nodes() {
        cluster.await_runtime(number, PATIENCE)?;
        for archive in images::archives(cluster.programs(), number, keda)? {
            cluster.load(number, &archive)?;
        }
    }
    if cluster.nodes() > 0 {
        progress.say("images loaded");
    }
    Ok(())
}

impl Cluster {
    /// Brings a cluster up for tests, in place of one of that name that tests left behind.
    pub(crate) fn up(root: &Path, name: &str, nodes: u8, keda: bool) -> Result<Self> {
        let name: Name = name.parse()?;
        teardown::down(&Place::new(root, &name))?;
        run(root, &UpArgs { name, nodes, keda })
    }

    /// Takes a cluster down, and fails if anything of it is left.
    pub(crate) fn down_to_nothing(root: &Path, name: &str) -> Result<()> {
        let place = Place::new(root, &name.parse()?);
        teardown::down(&place)?;
        let left = Remains::of(&place);
        if !left.is_nothing() {
            bail!("the cluster left something behind: {left:?}");
        }
        Ok(())
    }

    /// Fails when the control plane's first process has ended.
    fn is_alive(&self) -> Result<()> {
        let netns = self.place().netns(Machine::ControlPlane);
        if netns::processes(&netns).is_empty() {
            bail!("the control plane has ended");
        }
        Ok(())
    }
}
