//! `cargo xtask e2e`: Rouse where its users have it. Brings clusters up, runs what needs one, takes them down, counts.
//!
//! ```text
//! control plane (no nodes) ── api_tests: `cargo test` of everything that needs an API server
//! two nodes, KEDA ── images ── helm install ── scenarios, one by one ── helm uninstall ── down, and nothing is left
//!                                                └─ fails ──> artefacts: logs, events, objects in .rouse/e2e/<scenario>
//! ```

mod api_tests;
mod archives;
mod artefacts;
mod crash;
pub(crate) mod release;
mod scenarios;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use self::scenarios::Scenario;
use crate::{
    cluster::{Cluster, Programs},
    image::{self, Arch, Effort},
    process,
    report::{Outcome, Report},
    setup,
    test::Counts,
};

/// Where logs, events and objects of what failed go, below the repository's root.
const ARTEFACTS: &str = ".rouse/e2e";
/// What `--only` calls the tests that need no more than a control plane.
const API: &str = "api";
/// What it calls the one that kills clusters.
const CRASH: &str = "crash";
/// Where the images' archives go.
const IMAGES: &str = "target/images";

/// Arguments of `e2e`.
#[derive(Debug, clap::Args)]
pub(crate) struct E2eArgs {
    /// Leave the cluster up, with everything installed.
    #[arg(long)]
    keep: bool,
    /// The cluster is up and has everything installed, as `--keep` left it: only run scenarios.
    #[arg(long, conflicts_with = "keep")]
    installed: bool,
    /// Only these scenarios; `api` is all tests that need no more than a control plane, `crash` the one that
    /// kills clusters.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// The cluster's name.
    #[arg(long, value_name = "NAME", default_value = "e2e")]
    name: String,
}

/// `cargo xtask e2e`.
pub(crate) fn run(root: &Path, args: &E2eArgs) -> Result<()> {
    let mut run = Run { root, args, report: Report::default(), counts: Counts::default() };
    let started = Instant::now();
    run.known_names()?;
    if !process::is_root() {
        bail!("namespaces and mounts of a cluster need root");
    }
    if run.wants(CRASH) && !args.installed {
        run.crash();
    }
    if run.wants(API) && !args.installed {
        run.api_tests();
    }
    let wanted: Vec<&Scenario> = scenarios::ALL.iter().filter(|scenario| run.wants(scenario.name)).collect();
    if args.installed {
        let cluster = Cluster::find(root, &args.name.parse()?)?;
        run.each(&cluster, &wanted, &root.join(ARTEFACTS));
    } else if !wanted.is_empty() {
        run.scenarios(&wanted);
    }
    let Run { report, counts, .. } = run;
    println!("\nWhat ran, in {} s:\n{}", started.elapsed().as_secs(), report.table());
    let Counts { passed, failed, .. } = counts;
    // A step that is no test may fail too.
    let failed = failed.max(u64::from(!report.failed().is_empty()));
    println!("{passed} passed, {failed} failed");
    report.verdict()
}

struct Run<'a> {
    root: &'a Path,
    args: &'a E2eArgs,
    report: Report,
    counts: Counts,
}

impl Run<'_> {
    /// Whether `--only` does not leave it out.
    fn wants(&self, name: &str) -> bool {
        self.args.only.is_empty() || self.args.only.iter().any(|only| only == name)
    }

    fn known_names(&self) -> Result<()> {
        let names: Vec<&str> = scenarios::ALL.iter().map(|scenario| scenario.name).chain([API, CRASH]).collect();
        match self.args.only.iter().find(|only| !names.contains(&only.as_str())) {
            Some(unknown) => bail!("no scenario is called {unknown}, expected one of {}", names.join(", ")),
            None => Ok(()),
        }
    }

    /// A step that everything after it needs.
    fn needed(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> bool {
        self.report.step(name, || step().map(|()| Outcome::Passed(String::new())))
    }

    /// A test of the cluster itself.
    fn crash(&mut self) {
        let (root, name) = (self.root, format!("{}-beside", self.args.name));
        let passed = self.needed("a cluster killed half-way leaves nothing", || {
            // The one that is killed must not be found building.
            Programs::of(root)?.build_all()?;
            let beside = Cluster::up(root, &name, 0, false)?;
            let crashed = crash::run(&beside);
            Cluster::down_to_nothing(root, &name)?;
            crashed
        });
        self.counts += Counts { passed: passed.into(), failed: (!passed).into(), ..Counts::default() };
    }

    fn api_tests(&mut self) {
        let root = self.root;
        let mut counts = Counts::default();
        let name = format!("{}-api", self.args.name);
        self.report.step("tests that need a control plane", || {
            counts = api_tests::run(root, &name)?;
            Ok(counts.outcome())
        });
        // Tests filtered out and ignored are those of `cargo xtask test`.
        self.counts += Counts { ignored: 0, filtered: 0, ..counts };
    }

    fn scenarios(&mut self, wanted: &[&Scenario]) {
        let (root, name) = (self.root, self.args.name.clone());
        let artefacts = root.join(ARTEFACTS);
        let mut archives: Vec<PathBuf> = Vec::new();
        let ready = self.needed("set-up", setup::for_cluster)
            && self.needed("programs of the cluster", || Programs::of(root)?.build_all())
            && self.needed("images", || {
                archives = image::build(root, &root.join(IMAGES), Arch::HOST, Effort::Quick)?;
                emptied(&artefacts)
            })
            && self.needed("images as skopeo reads them", || archives.iter().try_for_each(|one| archives::read(one)));
        if !ready {
            return;
        }
        let mut cluster = None;
        let up = self.needed("cluster", || {
            let up = Cluster::up(root, &name, 2, true)?;
            cluster = Some(up);
            Ok(())
        });
        if let (true, Some(cluster)) = (up, &cluster) {
            self.installed(cluster, &archives, wanted, &artefacts);
        }
        if self.args.keep {
            println!("e2e: the cluster stays; `cargo xtask cluster down --name {name}` removes it");
        } else {
            self.needed("down, and nothing is left", || Cluster::down_to_nothing(root, &name));
        }
    }

    fn installed(&mut self, cluster: &Cluster, archives: &[PathBuf], wanted: &[&Scenario], artefacts: &Path) {
        let installed = self
            .needed("images loaded", || archives.iter().try_for_each(|one| cluster.load_everywhere(one)))
            && self.needed("helm install", || release::install(cluster));
        if !installed {
            artefacts::keep(cluster, &artefacts.join("install"));
            return;
        }
        self.each(cluster, wanted, artefacts);
        if !self.args.keep && !self.needed("helm uninstall", || release::uninstall(cluster)) {
            artefacts::keep(cluster, &artefacts.join("uninstall"));
        }
    }

    /// Runs the scenarios, one by one.
    fn each(&mut self, cluster: &Cluster, wanted: &[&Scenario], artefacts: &Path) {
        for scenario in wanted {
            let passed = self.report.step(&format!("scenario {}", scenario.name), || {
                (scenario.run)(cluster).map(|()| Outcome::Passed(String::new()))
            });
            self.counts += Counts { passed: passed.into(), failed: (!passed).into(), ..Counts::default() };
            if !passed {
                artefacts::keep(cluster, &artefacts.join(scenario.name));
            }
        }
    }
}

fn emptied(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    Ok(())
}
