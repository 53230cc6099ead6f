//! What scenarios work with: a namespace of their own with apps and routes in it, and how far these have come.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Where KEDA and Rouse run.
pub(super) const SYSTEM: &str = "keda";
/// The Service that clients are sent to.
pub(super) const PROXY: &str = "keda-add-ons-http-interceptor-proxy";
/// What one step may take: pods start within a second here, but the machine may have other work.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);
/// What needs no pod and no timer: far longer than it takes, far shorter than any period of a resync.
pub(super) const SOON: Duration = Duration::from_secs(10);
/// What KEDA and the autoscaler may take together: the latter looks every 15 seconds.
pub(super) const SCALING: Duration = Duration::from_mins(2);

const DEMO: &str = "docker.io/rouse/demo-app:0.1.0";
/// Where apps listen.
pub(super) const PORT: u16 = 8000;

/// A namespace that goes with the scenario, once that has passed; after a failure it stays, to be looked at.
#[derive(Debug)]
pub(super) struct Tenant<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) namespace: String,
}

/// A Deployment of the demo's workload and its Service, port 80.
#[derive(Clone, Debug)]
pub(super) struct App {
    name: String,
    image: &'static str,
    replicas: u32,
    start_delay_ms: u64,
    probe: Value,
    probe_period: u32,
    protocol: Option<&'static str>,
    linger: u32,
}

/// How a route's demand is measured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Metric {
    /// Requests in flight for each replica.
    Concurrency(u32),
    /// Requests per second for each replica, over a window of five seconds.
    Rate(u32),
}

impl<'a> Tenant<'a> {
    /// Makes the namespace, empty.
    pub(super) fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let namespace = format!("e2e-{name}");
        cluster.kubectl(&["delete", "namespace", "--ignore-not-found", &namespace])?;
        cluster.kubectl(&["create", "namespace", &namespace])?;
        Ok(Self { cluster, namespace })
    }

    /// Applies objects in this namespace.
    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.apply_text(&list.to_string())
    }

    /// Applies manifests in this namespace.
    pub(super) fn apply_text(&self, manifests: &str) -> Result<()> {
        let args = ["apply", "--server-side", "--force-conflicts", "--namespace", &self.namespace, "--filename", "-"];
        self.cluster.fed(&args, manifests).map(drop)
    }

    /// Replaces parts of an object.
    pub(super) fn patch(&self, object: &str, patch: &Value) -> Result<()> {
        let patch = patch.to_string();
        self.cluster
            .kubectl(&["patch", "--namespace", &self.namespace, object, "--type=merge", "--patch", &patch])
            .map(drop)
    }

    /// An object of this namespace; null if there is none.
    pub(super) fn get(&self, object: &str) -> Result<Value> {
        self.cluster.json(&["get", "--namespace", &self.namespace, "--ignore-not-found", object])
    }

    /// Waits until an object looks as it should; tells how it looked last otherwise.
    pub(super) fn until(
        &self,
        object: &str,
        what: &str,
        patience: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = self.cluster.wait_for(&format!("{what} of {object} in {}", self.namespace), patience, || {
            last = self.get(object)?;
            Ok(fits(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("{object} has spec {} and status {}", last["spec"], last["status"]))
    }

    /// Waits for a condition of an object.
    pub(super) fn condition(&self, object: &str, kind: &str, status: &str) -> Result<Value> {
        let object = self.until(object, &format!("condition {kind}={status}"), PATIENCE, |object| {
            condition(object, kind).is_some_and(|condition| condition["status"] == status)
        })?;
        condition(&object, kind).cloned().context("the condition was there")
    }

    /// Waits until the ScaledObject of this name is what KEDA acts upon.
    pub(super) fn scaled(&self, name: &str) -> Result<()> {
        let object = format!("scaledobject/{name}");
        self.condition(&object, "Ready", "True")?;
        // Until KEDA has written the name of the metric, it drops what is pushed to it.
        self.until(&object, "metric names", PATIENCE, |object| {
            object["status"]["externalMetricNames"].as_array().is_some_and(|names| !names.is_empty())
        })
        .map(drop)
    }

    /// Replicas that a Deployment shall have.
    pub(super) fn replicas(&self, name: &str) -> Result<u64> {
        let deployment = self.get(&format!("deployment/{name}"))?;
        Ok(deployment["spec"]["replicas"].as_u64().unwrap_or_default())
    }

    /// Waits until a Deployment has at least so many ready pods.
    pub(super) fn at_least(&self, name: &str, count: u64) -> Result<()> {
        self.until(&format!("deployment/{name}"), &format!("{count} ready replicas"), SCALING, |deployment| {
            deployment["status"]["readyReplicas"].as_u64().is_some_and(|ready| ready >= count)
        })
        .map(drop)
    }

    /// Waits until a Deployment sleeps: none is wanted, and none is left.
    pub(super) fn asleep(&self, name: &str) -> Result<()> {
        self.until(&format!("deployment/{name}"), "no replica", SCALING, |deployment| {
            deployment["spec"]["replicas"] == 0 && deployment["status"]["replicas"].as_u64().unwrap_or_default() == 0
        })
        .map(drop)
    }

    /// Removes the namespace; whoever comes next need not wait for the last of its pods.
    pub(super) fn finish(self) -> Result<()> {
        self.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).map(drop)
    }
}

impl App {
    /// Asleep, ready as soon as it listens, which is at once.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: DEMO,
            replicas: 0,
            start_delay_ms: 0,
            probe: json!({ "httpGet": { "path": "/healthz", "port": "http" } }),
            probe_period: 1,
            protocol: None,
            linger: 0,
        }
    }

    /// gRPC's own test server instead of the demo's workload.
    pub(super) fn grpc_server(self) -> Self {
        let probe = json!({ "tcpSocket": { "port": "http" } });
        Self { image: Cluster::GRPC_SERVER, probe, protocol: Some("kubernetes.io/h2c"), ..self }
    }

    /// Gets requests without TLS, however they came.
    pub(super) fn never_encrypted(self) -> Self {
        Self { protocol: Some("http"), ..self }
    }

    /// Runs so many pods from the start.
    pub(super) fn replicas(self, replicas: u32) -> Self {
        Self { replicas, ..self }
    }

    /// Listens only after this time, and is probed so often.
    pub(super) fn slow_start(self, start_delay_ms: u64, probe_period: u32) -> Self {
        Self { start_delay_ms, probe_period, ..self }
    }

    /// Is ready from the moment that it runs.
    pub(super) fn unprobed(self) -> Self {
        Self { probe: Value::Null, ..self }
    }

    /// Goes on for so many seconds once it is to end: until then somebody may not know yet that it does.
    pub(super) fn lingers(self, linger: u32) -> Self {
        Self { linger, ..self }
    }

    /// Its objects.
    pub(super) fn objects(&self) -> [Value; 2] {
        let Self { name, image, replicas, start_delay_ms, probe, probe_period, protocol, linger } = self;
        let mut probe = probe.clone();
        if !probe.is_null() {
            probe["periodSeconds"] = json!(probe_period);
        }
        let mut port = json!({ "name": "http", "port": 80, "targetPort": "http" });
        if let Some(protocol) = protocol {
            port["appProtocol"] = json!(protocol);
        }
        // The demo's workload is told by its environment, gRPC's server by its arguments.
        let args = if *image == DEMO { json!([]) } else { json!([format!("--port={PORT}")]) };
        let mut container = json!({
            "name": "app",
            "args": args,
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "env": [
                // Both families.
                { "name": "POD_IP", "value": "::" },
                { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                { "name": "PORT", "value": PORT.to_string() },
                { "name": "START_DELAY_MS", "value": start_delay_ms.to_string() },
            ],
            "ports": [{ "name": "http", "containerPort": PORT }],
            "readinessProbe": probe,
        });
        if *linger > 0 {
            container["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": linger } } });
        }
        let deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": name },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": name } },
                "template": {
                    "metadata": { "labels": { "app": name } },
                    "spec": { "terminationGracePeriodSeconds": 5, "containers": [container] },
                },
            },
        });
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name },
            "spec": { "selector": { "app": name }, "ports": [port] },
        });
        [deployment, service]
    }
}

/// An InterceptorRoute for one host.
pub(super) fn route(name: &str, host: &str, metric: Metric) -> Value {
    let metric = match metric {
        Metric::Concurrency(target) => json!({ "concurrency": { "targetValue": target } }),
        Metric::Rate(target) => {
            json!({ "requestRate": { "targetValue": target, "window": "5s", "granularity": "1s" } })
        }
    };
    json!({
        "apiVersion": "http.keda.sh/v1beta1",
        "kind": "InterceptorRoute",
        "metadata": { "name": name },
        "spec": {
            "target": { "service": name, "port": 80 },
            "rules": [{ "hosts": [host] }],
            "scalingMetric": metric,
        },
    })
}

/// The ScaledObject that a user would write for it, with short times.
pub(super) fn scaled_object(name: &str, max: u32) -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": { "name": name },
        "spec": {
            "scaleTargetRef": { "name": name },
            "pollingInterval": 1,
            "cooldownPeriod": 3,
            "minReplicaCount": 0,
            "maxReplicaCount": max,
            "triggers": [{
                "type": "external-push",
                "metadata": {
                    "scalerAddress": format!("keda-add-ons-http-external-scaler.{SYSTEM}:9090"),
                    "interceptorRoute": name,
                },
            }],
        },
    })
}

/// A condition of an object's status.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Restarts a Deployment's pods and waits until all are new and ready.
pub(super) fn roll(cluster: &Cluster, deployment: &str) -> Result<()> {
    let object = format!("deployment/{deployment}");
    cluster.kubectl(&["rollout", "restart", "--namespace", SYSTEM, &object])?;
    cluster.rolled_out(SYSTEM, deployment, SCALING)
}
