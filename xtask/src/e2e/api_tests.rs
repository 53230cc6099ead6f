//! Tests in other crates that need an API server and nothing that runs on nodes: they are marked so, run here in the network
//! of a control plane without nodes, and none is lost.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{
    cluster::Cluster,
    e2e::{ARTEFACTS, artefacts},
    process,
    test::{Counts, marked},
};

/// Where these tests find the control plane.
const KUBECONFIG: &str = "ROUSE_TEST_KUBECONFIG";

/// Runs them all.
pub(super) fn run(root: &Path, name: &str) -> Result<Counts> {
    let tests = marked::control_plane(root)?;
    if tests.is_empty() {
        bail!("no test is marked `{}`", marked::CONTROL_PLANE);
    }
    // Of all packages, as `cargo xtask test` builds them: with other features for each choice of packages, most of what they
    // depend on would be built once more.
    let arguments = |command: &mut std::process::Command| {
        command.args(["test", "--lib", "--bins", "--tests", "--no-fail-fast"]);
    };
    // Crates come from outside; where the tests run there is none.
    let mut build = process::cargo(root);
    arguments(&mut build);
    process::run(build.arg("--no-run"))?;
    let cluster = Cluster::up(root, name, 0, false)?;
    let installed = cluster.install_keda_crds();
    let mut command = cluster.joined(&process::cargo(root));
    arguments(&mut command);
    command.args(["--offline", "--", "--ignored"]).args(&tests);
    let ran = installed.and_then(|()| crate::test::cargo_test(command.env(KUBECONFIG, cluster.place().kubeconfig())));
    if !ran.as_ref().is_ok_and(|counts| counts.failed == 0 && !counts.broken) {
        artefacts::keep(&cluster, &root.join(ARTEFACTS).join("api"));
    }
    let down = Cluster::down_to_nothing(root, name);
    let counts = ran?;
    down?;
    let expected = tests.len();
    if counts.passed + counts.failed < expected as u64 && !counts.broken {
        bail!("{expected} tests are marked, {} ran", counts.passed + counts.failed);
    }
    Ok(counts)
}
