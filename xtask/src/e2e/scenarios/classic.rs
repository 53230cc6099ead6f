//! One HTTPScaledObject from its creation to its deletion: the operator writes its ScaledObject, tells its condition, cleans up.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    client::Client,
    tenant::{App, PATIENCE, Tenant},
};
use crate::cluster::Cluster;

/// Created, found to be ready, woken, edited, deleted.
pub(super) fn http_scaled_object(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "classic")?;
    tenant.apply(&App::new("classic").objects())?;
    tenant.apply(&[object("classic", "classic.e2e")])?;
    tenant.condition("httpscaledobject/classic", "Ready", "True")?;
    tenant.scaled("classic")?;
    let scaled = tenant.get("scaledobject/classic")?;
    ensure!(scaled["metadata"]["labels"]["team"] == "e2e", "labels were not copied: {}", scaled["metadata"]);
    let owner = &scaled["metadata"]["ownerReferences"][0];
    ensure!(owner["kind"] == "HTTPScaledObject" && owner["name"] == "classic", "the ScaledObject's owner is {owner}");
    tenant.asleep("classic")?;
    let client = Client::new(cluster, "classic.e2e")?;
    ensure!(client.succeeds("/")?.cold_start == "true", "the first answer was no cold start");
    tenant.patch("httpscaledobject/classic", &json!({ "spec": { "replicas": { "max": 2 } } }))?;
    tenant.until("scaledobject/classic", "maxReplicaCount 2", PATIENCE, |object| {
        object["spec"]["maxReplicaCount"] == 2
    })?;
    cluster
        .kubectl(&["delete", "--namespace", &tenant.namespace, "httpscaledobject/classic", "--timeout=30s"])
        .context("its finalizer must not hold it")?;
    tenant.until("scaledobject/classic", "deletion", PATIENCE, Value::is_null)?;
    client.until(404, PATIENCE)?;
    tenant.finish()
}

/// An HTTPScaledObject for one host, whose workload and Service have its name.
pub(super) fn object(name: &str, host: &str) -> Value {
    json!({
        "apiVersion": "http.keda.sh/v1alpha1",
        "kind": "HTTPScaledObject",
        "metadata": { "name": name, "labels": { "team": "e2e" } },
        "spec": {
            "hosts": [host],
            "scaleTargetRef": {
                "apiVersion": "apps/v1", "kind": "Deployment", "name": name, "service": name, "port": 80,
            },
            "replicas": { "min": 0, "max": 3 },
            "scaledownPeriod": 5,
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
        },
    })
}
