//! The workload of the bench: a Deployment at zero, its Service, route and ScaledObject; nothing that is ours alone.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Its namespace.
pub(super) const NAMESPACE: &str = "bench";
/// The host it answers for.
pub(super) const HOST: &str = "bench.example";
const NAME: &str = "sleeper";
const PORT: u16 = 8000;

/// Makes it, and waits until KEDA has taken it over.
pub(super) fn apply(cluster: &Cluster, start_delay: u64, probe_period: u32) -> Result<()> {
    cluster
        .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }).to_string())?;
    let items = [deployment(start_delay, probe_period), service(), route(), scaled_object(probe_period)];
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    cluster.wait_for("KEDA to take the workload over", Duration::from_mins(1), || {
        let object = cluster.json(&["get", "scaledobject", NAME, "--namespace", NAMESPACE])?;
        let ready = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = ready.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
        Ok((ready && object["status"]["externalMetricNames"].is_array()).then_some(()))
    })
}

/// Waits until it has no pod and no endpoint.
pub(super) fn await_sleep(cluster: &Cluster, patience: Duration) -> Result<()> {
    cluster.wait_for("the workload to sleep", patience, || {
        let pods = cluster.json(&["get", "pods", "--namespace", NAMESPACE])?;
        let deployment = cluster.json(&["get", "deployment", NAME, "--namespace", NAMESPACE])?;
        let none = pods["items"].as_array().is_some_and(Vec::is_empty);
        Ok((none && deployment["spec"]["replicas"] == 0).then_some(()))
    })
}

fn metadata() -> Value {
    json!({ "name": NAME, "namespace": NAMESPACE })
}

fn deployment(start_delay: u64, probe_period: u32) -> Value {
    let container = json!({
        "name": "app",
        "image": format!("docker.io/rouse/demo-app:{}", env!("CARGO_PKG_VERSION")),
        "env": [
            { "name": "POD_IP", "value": "0.0.0.0" },
            { "name": "PORT", "value": PORT.to_string() },
            { "name": "START_DELAY_MS", "value": start_delay.to_string() },
        ],
        "ports": [{ "name": "http", "containerPort": PORT }],
        "readinessProbe": { "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": probe_period },
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(),
        "spec": {
            "replicas": 0,
            "selector": { "matchLabels": { "app": NAME } },
            "template": {
                "metadata": { "labels": { "app": NAME } },
                "spec": { "terminationGracePeriodSeconds": 1, "containers": [container] },
            },
        },
    })
}

fn service() -> Value {
    let spec = json!({ "selector": { "app": NAME }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] });
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata(), "spec": spec })
}

fn route() -> Value {
    json!({
        "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute", "metadata": metadata(),
        "spec": {
            "target": { "service": NAME, "port": 80 },
            "rules": [{ "hosts": [HOST] }],
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
        },
    })
}

fn scaled_object(probe_period: u32) -> Value {
    let trigger = json!({
        "type": "external-push",
        "metadata": {
            "scalerAddress": "keda-add-ons-http-external-scaler.keda:9090",
            "interceptorRoute": NAME,
        },
    });
    json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata(),
        "spec": {
            "scaleTargetRef": { "name": NAME },
            // Rarely, so that what wakes it is the push.
            "pollingInterval": 5,
            // Not before the kubelet has seen what the interceptors may have seen sooner.
            "cooldownPeriod": 2 * probe_period + 1,
            "minReplicaCount": 0,
            "maxReplicaCount": 3,
            "triggers": [trigger],
        },
    })
}
