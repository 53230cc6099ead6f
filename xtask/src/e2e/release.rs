//! The chart in the cluster: installed and removed by Helm.

use std::{path::Path, time::Duration};

use anyhow::Result;

use crate::cluster::Cluster;

/// The Helm release's name.
pub(crate) const RELEASE: &str = "http-add-on";
/// Where it is installed: beside KEDA, as the add-on is.
pub(crate) const NAMESPACE: &str = "keda";
const CHART: &str = "charts/http-add-on";
/// What the scenarios need to be other than the chart's defaults.
const VALUES: &str = "xtask/cluster/manifests/values.yaml";
const PATIENCE: Duration = Duration::from_mins(3);

/// Installs the chart and waits until all of it is ready.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    upgrade(cluster, &[])
}

/// Installs or changes it, with further values (`name=value`).
pub(crate) fn upgrade(cluster: &Cluster, values: &[&str]) -> Result<()> {
    let root = cluster.place().root();
    let (chart, file) = (root.join(CHART), root.join(VALUES));
    let (chart, file) = (chart.to_string_lossy(), file.to_string_lossy());
    let timeout = format!("{}s", PATIENCE.as_secs());
    let mut args = vec!["upgrade", "--install", RELEASE, &chart, "--namespace", NAMESPACE, "--values", &file];
    args.extend(values.iter().flat_map(|value| ["--set", *value]));
    args.extend(["--wait", "--timeout", &timeout]);
    cluster.helm(&args).map(drop)
}

/// Installs another chart under the same name.
pub(crate) fn install_chart(cluster: &Cluster, chart: &Path, values: Option<&Path>) -> Result<()> {
    let timeout = format!("{}s", PATIENCE.as_secs());
    let chart = chart.to_string_lossy();
    let values = values.map(Path::to_string_lossy);
    let mut args = vec!["install", RELEASE, &chart, "--namespace", NAMESPACE, "--wait", "--timeout", &timeout];
    args.extend(values.iter().flat_map(|values| ["--values", values]));
    cluster.helm(&args).map(drop)
}

/// Removes it and waits until it is gone.
pub(crate) fn uninstall(cluster: &Cluster) -> Result<()> {
    let timeout = format!("{}s", PATIENCE.as_secs());
    cluster
        .helm(&["uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout", &timeout])
        .map(drop)
}
