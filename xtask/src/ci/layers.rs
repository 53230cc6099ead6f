//! Dependencies point one way: each of our crates only to those below it, and the core to few of others.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process;

/// Our crates from the bottom up. Crates of one layer do not know each other.
const LAYERS: [&[&str]; 8] = [
    &["interceptor-common"],
    &["interceptor-core", "interceptor-ebpf"],
    &["api", "proto"],
    &["runtime", "dataplane"],
    &["telemetry", "tls"],
    &["interceptor-user", "scaler", "operator"],
    &["local"],
    &["integration"],
];

/// All that the core may depend on, directly or not: types of HTTP, maps and hashes. No async, no sockets, no clock.
const CORE: [&str; 21] = [
    "archery",
    "bytemuck",
    "bytes",
    "equivalent",
    "foldhash",
    "http",
    "imbl",
    "imbl-sized-chunks",
    "interceptor-common",
    "interceptor-core",
    "itoa",
    "proc-macro2",
    "quote",
    "rand_core",
    "rand_xoshiro",
    "safe_arch",
    "syn",
    "thiserror",
    "thiserror-impl",
    "unicode-ident",
    "wide",
];

/// Fails with the first dependencies that point the wrong way.
pub(crate) fn run(root: &Path) -> Result<()> {
    let metadata = process::output(process::cargo(root).args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata is no JSON")?;
    let mut wrong = wrong_way(&edges(&metadata));
    let tree = ["tree", "--package", "interceptor-core", "--edges", "normal", "--prefix", "none", "--format", "{lib}"];
    let tree = process::output(process::cargo(root).args(tree))?;
    wrong.extend(strangers(&tree));
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    println!("dependency direction: as it should be");
    Ok(())
}

/// Which crate depends on which, not counting tests and build scripts.
fn edges(metadata: &Value) -> Vec<(&str, &str)> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let edges = packages.iter().flat_map(|package| {
        let name = package["name"].as_str().unwrap_or_default();
        let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
        let normal = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
        normal.filter_map(move |dependency| Some((name, dependency["name"].as_str()?)))
    });
    edges.collect()
}

fn wrong_way(edges: &[(&str, &str)]) -> Vec<String> {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let wrong = edges.iter().filter(|(from, to)| match (layer(from), layer(to)) {
        (Some(from), Some(to)) => to >= from,
        // A tool of ours that depends on a product would be built with all of it.
        (None, Some(_)) => true,
        (_, None) => false,
    });
    wrong.map(|(from, to)| format!("{from} depends on {to}, expected only crates below it")).collect()
}

fn strangers(tree: &str) -> Vec<String> {
    let names: BTreeSet<String> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).map(|name| name.replace('_', "-")).collect();
    let known: BTreeSet<String> = CORE.iter().map(|name| name.replace('_', "-")).collect();
    names
        .difference(&known)
        .map(|name| format!("interceptor-core depends on {name}, which is not on its list"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_upwards_or_sideways_is_named() {
        let edges = [("runtime", "api"), ("api", "runtime"), ("api", "proto"), ("xtask", "local"), ("api", "serde")];
        let expected = [
            "api depends on runtime, expected only crates below it",
            "api depends on proto, expected only crates below it",
            "xtask depends on local, expected only crates below it",
        ];
        assert_eq!(wrong_way(&edges), expected);
    }

    #[test]
    fn the_core_may_not_know_tokio() {
        let complaints = strangers("interceptor_core\nhttp\ntokio\nhttp (*)\n");
        assert_eq!(complaints, ["interceptor-core depends on tokio, which is not on its list"]);
    }
}
