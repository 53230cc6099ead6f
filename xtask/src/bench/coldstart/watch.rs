//! What a watcher of the API sees of a cold start, and when: the Deployment scaled, the pod created, its endpoint ready.

use std::{
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::workload::NAMESPACE;
use crate::{bench::clock::Moment, cluster::Cluster};

/// The first of each since the last [`Watch::forget`].
#[derive(Clone, Debug, Default)]
struct Firsts {
    decided: Option<Moment>,
    created: Option<(Moment, String)>,
    ready: Option<Moment>,
}

/// All of a cold start.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) decided: Moment,
    pub(super) created: Moment,
    pub(super) pod: String,
    pub(super) ready: Moment,
}

/// Watches until dropped.
pub(super) struct Watch {
    firsts: Arc<Mutex<Firsts>>,
    children: Vec<Child>,
}

impl Watch {
    /// Begins.
    pub(super) fn start(cluster: &Cluster) -> Result<Self> {
        let firsts = Arc::new(Mutex::new(Firsts::default()));
        let mut children = Vec::new();
        for kind in ["deployments.apps", "pods", "endpointslices.discovery.k8s.io"] {
            let mut kubectl = cluster.kubectl_command()?;
            kubectl.args(["get", kind, "--namespace", NAMESPACE, "--watch", "--output", "json"]);
            let mut child = kubectl.stdout(Stdio::piped()).spawn().context("cannot start kubectl")?;
            let printed = child.stdout.take().context("standard output is piped")?;
            let firsts = Arc::clone(&firsts);
            thread::spawn(move || {
                for object in serde_json::Deserializer::from_reader(printed).into_iter::<Value>().map_while(Result::ok)
                {
                    let now = Moment::now();
                    firsts.lock().unwrap_or_else(PoisonError::into_inner).note(&object, now);
                }
            });
            children.push(child);
        }
        Ok(Self { firsts, children })
    }

    /// Begins a round.
    pub(super) fn forget(&self) {
        *self.firsts.lock().unwrap_or_else(PoisonError::into_inner) = Firsts::default();
    }

    /// Waits until all has been seen.
    pub(super) fn wait(&self, cluster: &Cluster, patience: Duration) -> Result<Seen> {
        cluster.wait_for("the pod's endpoint to be ready", patience, || {
            let firsts = self.firsts.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Firsts { decided: Some(decided), created: Some((created, pod)), ready: Some(ready) } = firsts else {
                return Ok(None);
            };
            Ok(Some(Seen { decided, created, pod, ready }))
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It ended with the cluster, or ends now.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Firsts {
    fn note(&mut self, object: &Value, now: Moment) {
        let kind = object["kind"].as_str().unwrap_or_default();
        if kind == "Deployment" && object["spec"]["replicas"].as_u64().is_some_and(|replicas| replicas > 0) {
            self.decided.get_or_insert(now);
        }
        let going = !object["metadata"]["deletionTimestamp"].is_null();
        if kind == "Pod" && !going {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            self.created.get_or_insert((now, name));
        }
        let mut endpoints = object["endpoints"].as_array().into_iter().flatten();
        if kind == "EndpointSlice" && endpoints.any(|endpoint| endpoint["conditions"]["ready"] == true) {
            self.ready.get_or_insert(now);
        }
    }
}
