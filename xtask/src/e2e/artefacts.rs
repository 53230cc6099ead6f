//! What somebody needs who was not there when a scenario failed: logs, events and objects, in one folder.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::cluster::Cluster;

/// Kinds of objects that are kept.
const KINDS: &str = "nodes,pods,deployments,replicasets,daemonsets,services,endpointslices,horizontalpodautoscalers,\
leases,scaledobjects.keda.sh,interceptorroutes.http.keda.sh,httpscaledobjects.http.keda.sh";

/// Keeps them. It is a failure's second half: what cannot be had is said and no more.
pub(crate) fn keep(cluster: &Cluster, folder: &Path) {
    match write(cluster, folder) {
        Ok(()) => eprintln!("e2e: logs, events and objects are in {}", folder.display()),
        Err(error) => eprintln!("e2e: cannot keep logs, events and objects: {error:#}"),
    }
}

fn write(cluster: &Cluster, folder: &Path) -> Result<()> {
    let pods = folder.join("pods");
    fs::create_dir_all(&pods).with_context(|| format!("cannot make {}", folder.display()))?;
    let kept = |name: &str, args: &[&str]| {
        let text = cluster.kubectl(args).unwrap_or_else(|error| format!("{error:#}\n"));
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    kept("overview.txt", &["get", KINDS, "--all-namespaces", "--output", "wide", "--ignore-not-found"])?;
    kept("objects.yaml", &["get", KINDS, "--all-namespaces", "--output", "yaml", "--ignore-not-found"])?;
    kept("events.txt", &["get", "events", "--all-namespaces", "--sort-by", ".metadata.creationTimestamp"])?;
    kept("pods.txt", &["describe", "pods", "--all-namespaces"])?;
    let all = cluster.json(&["get", "pods", "--all-namespaces"])?;
    for pod in all["items"].as_array().into_iter().flatten() {
        let text = |name: &str| pod["metadata"][name].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let args = ["logs", "--namespace", &namespace, &name, "--all-containers", "--timestamps"];
        for (suffix, more) in [("", None), (".previous", Some("--previous"))] {
            let args: Vec<&str> = args.into_iter().chain(more).collect();
            if let Ok(log) = cluster.kubectl(&args)
                && !log.is_empty()
            {
                fs::write(pods.join(format!("{namespace}.{name}{suffix}.log")), log)?;
            }
        }
    }
    for entry in fs::read_dir(cluster.place().logs())?.flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    Ok(())
}
