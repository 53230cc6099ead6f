//! Every file of `examples/cluster` is applied, and every host that it names is asked.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{
    client::Client,
    tenant::{PATIENCE, Tenant},
};
use crate::cluster::Cluster;

const FOLDER: &str = "examples/cluster";

/// Applied as they are; each host is answered with 200.
pub(super) fn all_work(cluster: &Cluster) -> Result<()> {
    let folder = cluster.place().root().join(FOLDER);
    let mut files = fs::read_dir(&folder)
        .with_context(|| format!("cannot list {FOLDER}"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.sort();
    ensure!(!files.is_empty(), "{FOLDER} is empty");
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.file_stem().and_then(|name| name.to_str()).context("a file's name is text")?;
        works(cluster, name, &text).with_context(|| format!("{FOLDER}/{name}.yaml"))?;
    }
    Ok(())
}

fn works(cluster: &Cluster, name: &str, manifests: &str) -> Result<()> {
    let tenant = Tenant::new(cluster, &format!("x-{name}"))?;
    tenant.apply_text(manifests)?;
    for kind in ["interceptorroutes", "httpscaledobjects"] {
        let routes = cluster.json(&["get", kind, "--namespace", &tenant.namespace])?;
        for route in routes["items"].as_array().map_or(&[][..], Vec::as_slice) {
            let name = route["metadata"]["name"].as_str().context("objects have names")?;
            tenant.condition(&format!("{kind}/{name}"), "Ready", "True")?;
            // By the operator or by the file, under the route's name in each of them.
            tenant.scaled(name)?;
            let host = route["spec"]["hosts"][0].as_str().or(route["spec"]["rules"][0]["hosts"][0].as_str());
            let path = route["spec"]["rules"][0]["paths"][0]["value"].as_str();
            let client = Client::new(cluster, host.context("the route names a host")?)?;
            match path {
                // gRPC
                Some(path) => {
                    let said = client.call(&format!("{path}/Check"))?;
                    ensure!(said.contains("grpc-status: 0"), "the call failed: {said}");
                }
                None => drop(client.until(200, PATIENCE)?),
            }
        }
    }
    tenant.finish()
}
