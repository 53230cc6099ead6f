//! Requests that go to Services by their names, which the cluster's name server knows, instead of to pods.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    client::{Client, NODE},
    tenant::{App, Metric, PORT, SOON, SYSTEM, Tenant, route, scaled_object},
};
use crate::{cluster::Cluster, e2e::release};

/// Pods of the interceptors.
const INTERCEPTORS: &str = "--selector=app.kubernetes.io/component=interceptor";

/// A Service with an address of its own, and one whose name stands for its pods, which none had before they were woken.
const APPS: [&str; 2] = ["virtual", "headless"];

/// Cold and warm, by the address that the name server gives, and not by those of pods.
pub(super) fn by_name(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "by-name")?;
    for name in APPS {
        let [deployment, mut service] = App::new(name).objects();
        let mut route = route(name, &format!("{name}.e2e"), Metric::Concurrency(10));
        if name == "headless" {
            service["spec"]["clusterIP"] = json!("None");
            // Nobody translates ports behind such a name.
            service["spec"]["ports"][0]["port"] = json!(PORT);
            route["spec"]["target"]["port"] = json!(PORT);
        }
        tenant.apply(&[deployment, service])?;
        tenant.apply(&[route, scaled_object(name, 1)])?;
    }
    release::upgrade(cluster, &["interceptor.extraEnvs.KEDA_HTTP_DIRECT_POD_ROUTING=false"])?;
    let passed = APPS.iter().try_for_each(|name| served(&tenant, name));
    // Also after a failure: what comes next expects the defaults.
    release::install(cluster)?;
    passed?;
    tenant.finish()
}

fn served(tenant: &Tenant<'_>, name: &str) -> Result<()> {
    let cluster = tenant.cluster;
    tenant.scaled(name)?;
    tenant.asleep(name)?;
    let client = Client::new(cluster, &format!("{name}.e2e"))?;
    let cold = client.succeeds("/")?;
    ensure!(cold.body.contains(&format!("{name}-")), "no pod answered: {}", cold.body);
    ensure!(cold.cold_start == "true", "the first request was no cold start: {:?}", cold.cold_start);
    let warm = client.succeeds("/")?;
    ensure!(warm.body.contains(&format!("{name}-")), "no pod answered: {}", warm.body);
    // Requests all the time, so that the pod stays.
    let load = client.load("/", 2)?;
    let looked = is_found_by_name(tenant, name);
    let seen = load.without_failure();
    looked.and(seen)?;
    // And again, when the name stood for something already.
    tenant.asleep(name)?;
    client.succeeds("/").map(drop)
}

/// Whether every interceptor sends to what the name stands for.
fn is_found_by_name(tenant: &Tenant<'_>, name: &str) -> Result<()> {
    let cluster = tenant.cluster;
    let expected = addresses(tenant, name)?;
    let args = ["get", "pods", "--namespace", SYSTEM, INTERCEPTORS, "--field-selector=status.phase=Running"];
    for interceptor in cluster.json(&args)?["items"].as_array().context("a list of pods")? {
        if !interceptor["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        let address = interceptor["status"]["podIP"].as_str().context("a running pod has an address")?;
        let mut last = Value::Null;
        let found = cluster.wait_for(&format!("{name} by its name in /state of {address}"), SOON, || {
            last = endpoints(cluster, address, &tenant.namespace, name)?;
            Ok((last == expected).then_some(()))
        });
        found.with_context(|| format!("its endpoints are {last}, expected {expected}"))?;
    }
    Ok(())
}

/// What the name stands for while a pod is ready.
fn addresses(tenant: &Tenant<'_>, name: &str) -> Result<Value> {
    let service = tenant.get(&format!("service/{name}"))?;
    let own = service["spec"]["clusterIP"].as_str().context("a Service has an address, or says that it has none")?;
    if own != "None" {
        return Ok(json!([format!("{own}:80")]));
    }
    let selector = format!("--selector=app={name}");
    let pods = tenant.cluster.json(&["get", "pods", "--namespace", &tenant.namespace, &selector])?;
    let addresses = pods["items"].as_array().context("a list of pods")?.iter();
    Ok(addresses.filter_map(|pod| pod["status"]["podIP"].as_str()).map(|ip| json!(format!("{ip}:{PORT}"))).collect())
}

/// Where an interceptor sends requests of a route.
fn endpoints(cluster: &Cluster, interceptor: &str, namespace: &str, name: &str) -> Result<Value> {
    let state = cluster.curl(NODE, &["--fail", "--max-time", "10", &format!("http://{interceptor}:9090/state")])?;
    let state: Value = serde_json::from_str(&state).context("/state is JSON")?;
    let routes = state["routes"].as_array().context("/state has routes")?;
    let route = routes.iter().find(|route| route["name"] == name && route["namespace"] == namespace);
    Ok(route.context("the route is known")?["upstream"]["endpoints"].clone())
}
