//! The release as Helm sees it: upgraded under load, taken over from the add-on, removed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    chart, classic,
    client::Client,
    tenant::{App, Metric, SCALING, SOON, SYSTEM, Tenant, route},
};
use crate::{
    cluster::Cluster,
    e2e::release::{self, RELEASE},
};

const DEPLOYMENTS: [&str; 3] =
    ["keda-add-ons-http-interceptor", "keda-add-ons-http-external-scaler", "keda-add-ons-http-controller-manager"];
/// Kinds that the chart has objects of.
const KINDS: &str = "deployments,services,serviceaccounts,scaledobjects.keda.sh,poddisruptionbudgets,networkpolicies,\
    configmaps,roles,rolebindings,clusterroles,clusterrolebindings";

/// New settings under load: no request fails, the settings of before are kept.
pub(super) fn upgraded(cluster: &Cluster) -> Result<()> {
    let tenant = served(cluster, "upgraded")?;
    let load = Client::new(cluster, "upgraded.e2e")?.load("/slow?ms=20", 4)?;
    let chart = chart::chart(cluster)?;
    let args =
        ["upgrade", RELEASE, &chart, "--namespace", SYSTEM, "--reset-then-reuse-values", "--wait", "--timeout", "120s"];
    cluster.helm(&[&args[..], &["--set", "interceptor.extraEnvs.KEDA_HTTP_LOG_REQUESTS=true"]].concat())?;
    let deployed = cluster.json(&["get", "--namespace", SYSTEM, "deployment", DEPLOYMENTS[0]])?;
    let env =
        deployed["spec"]["template"]["spec"]["containers"][0]["env"].as_array().context("the container has env")?;
    ensure!(env.iter().any(|entry| entry["name"] == "KEDA_HTTP_LOG_REQUESTS"), "the new setting has not arrived");
    load.without_failure()?;
    cluster.helm(&["rollback", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "120s"])?;
    tenant.finish()
}

/// A Deployment of an older add-on, with the selector of its time, becomes ours by an upgrade.
pub(super) fn taken_over(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "takeover")?;
    let selector = json!({
        "app.kubernetes.io/component": "interceptor",
        "app.kubernetes.io/instance": "takeover",
        "app.kubernetes.io/managed-by": "Helm",
        "app.kubernetes.io/part-of": "keda-add-ons-http",
        "helm.sh/chart": "keda-add-ons-http-0.7.0",
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": DEPLOYMENTS[0],
            "labels": selector,
            "annotations": {
                "meta.helm.sh/release-name": "takeover",
                "meta.helm.sh/release-namespace": tenant.namespace,
            },
        },
        "spec": {
            "replicas": 0,
            "selector": { "matchLabels": selector },
            "template": {
                "metadata": { "labels": selector },
                "spec": { "containers": [{ "name": "interceptor", "image": "add-on" }] },
            },
        },
    });
    // As Helm would have made it.
    let apply = ["apply", "--server-side", "--field-manager=helm", "--namespace", &tenant.namespace, "--filename", "-"];
    cluster.fed(&apply, &deployment.to_string())?;
    let chart = chart::chart(cluster)?;
    let settings =
        ["crds.install=false", "scaler.replicas=0", "operator.replicas=0", "interceptor.scaledObject.enabled=false"];
    let mut args = vec!["upgrade", "--install", "takeover", &chart, "--namespace", &tenant.namespace];
    for setting in settings.iter().chain(&["interceptor.replicas.min=1"]) {
        args.extend(["--set", setting]);
    }
    cluster.helm(&args)?;
    cluster.rolled_out(&tenant.namespace, DEPLOYMENTS[0], SCALING)?;
    let endpoints = [
        "get",
        "endpointslices",
        "--namespace",
        &tenant.namespace,
        "--selector",
        "kubernetes.io/service-name=keda-add-ons-http-interceptor-proxy",
    ];
    cluster.wait_for("the Service to find the pods of the taken over Deployment", Duration::from_secs(20), || {
        let slices = cluster.json(&endpoints)?;
        let found = slices["items"][0]["endpoints"].as_array().is_some_and(|endpoints| !endpoints.is_empty());
        Ok(found.then_some(()))
    })?;
    cluster.helm(&["uninstall", "takeover", "--namespace", &tenant.namespace, "--wait"])?;
    tenant.finish()
}

/// Removed: nothing is left but the definitions and the routes. Installed again: the routes are served as before.
pub(super) fn removed(cluster: &Cluster) -> Result<()> {
    let tenant = served(cluster, "removed")?;
    release::uninstall(cluster)?;
    let selector =
        format!("--selector=app.kubernetes.io/part-of=keda-add-ons-http,app.kubernetes.io/instance={RELEASE}");
    cluster.wait_for("all objects of the release to go", SCALING, || {
        let left = cluster.json(&["get", KINDS, "--all-namespaces", &selector])?;
        let left: Vec<&Value> =
            left["items"].as_array().context("a list")?.iter().map(|object| &object["metadata"]["name"]).collect();
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(Some(()))
    })?;
    for kind in ["interceptorroutes", "httpscaledobjects"] {
        cluster.kubectl(&["get", "customresourcedefinition", &format!("{kind}.http.keda.sh")])?;
    }
    ensure!(!tenant.get("interceptorroute/app")?.is_null(), "the user's route is gone");
    release::install(cluster)?;
    Client::new(cluster, "removed.e2e")?.until(200, SCALING)?;
    tenant.finish()
}

/// Removed with all its routes, as the guide tells how to: not even a definition is left.
pub(super) fn removed_for_good(cluster: &Cluster) -> Result<()> {
    const DEFINITIONS: [&str; 2] = ["httpscaledobjects.http.keda.sh", "interceptorroutes.http.keda.sh"];

    let tenant = served(cluster, "for-good")?;
    tenant.apply(&App::new("classic").objects())?;
    tenant.apply(&[classic::object("classic", "classic.for-good.e2e")])?;
    tenant.condition("httpscaledobject/classic", "Ready", "True")?;
    cluster.kubectl(&[
        "delete",
        "httpscaledobjects,interceptorroutes",
        "--all",
        "--all-namespaces",
        "--timeout=60s",
    ])?;
    release::uninstall(cluster)?;
    cluster.kubectl(&[&["delete", "customresourcedefinitions", "--timeout=60s"], &DEFINITIONS[..]].concat())?;
    let resources =
        cluster.kubectl(&["api-resources", "--api-group=http.keda.sh", "--output=name", "--cached=false"])?;
    ensure!(resources.trim().is_empty(), "left: {resources}");
    release::install(cluster)?;
    tenant.finish()
}

fn served<'a>(cluster: &'a Cluster, name: &str) -> Result<Tenant<'a>> {
    let tenant = Tenant::new(cluster, name)?;
    let host = format!("{name}.e2e");
    tenant.apply(&App::new("app").replicas(2).objects())?;
    tenant.apply(&[route("app", &host, Metric::Concurrency(10))])?;
    tenant.at_least("app", 2)?;
    Client::new(cluster, &host)?.until(200, SOON)?;
    Ok(tenant)
}
