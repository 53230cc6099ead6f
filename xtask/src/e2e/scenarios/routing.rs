//! Routes that change while requests come: another host, another port name, two routes for one host, nobody who wakes up.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    client::Client,
    tenant::{App, Metric, PATIENCE, SOON, Tenant, condition, route, scaled_object},
};
use crate::cluster::Cluster;

/// A route's host is edited: requests for the new one are answered, those for the old one are not any more.
pub(super) fn edited_live(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "edited")?;
    tenant.apply(&App::new("app").replicas(1).objects())?;
    tenant.apply(&[route("app", "before.e2e", Metric::Concurrency(10))])?;
    tenant.at_least("app", 1)?;
    Client::new(cluster, "before.e2e")?.until(200, SOON)?;
    tenant.patch("interceptorroute/app", &json!({ "spec": { "rules": [{ "hosts": ["after.e2e"] }] } }))?;
    Client::new(cluster, "after.e2e")?.until(200, SOON)?;
    Client::new(cluster, "before.e2e")?.until(404, SOON)?;
    tenant.finish()
}

/// A Service's port gets another name while requests come: the route names its number, so none may fail.
pub(super) fn port_renamed(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "renamed")?;
    tenant.apply(&App::new("app").replicas(1).objects())?;
    tenant.apply(&[route("app", "renamed.e2e", Metric::Concurrency(10))])?;
    tenant.at_least("app", 1)?;
    let client = Client::new(cluster, "renamed.e2e")?;
    client.until(200, SOON)?;
    let load = client.load("/", 2)?;
    for name in ["web", "http", "www"] {
        tenant.patch(
            "service/app",
            &json!({ "spec": { "ports": [{ "name": name, "port": 80, "targetPort": "http" }] } }),
        )?;
        cluster.wait_for(&format!("an EndpointSlice whose port is called {name}"), PATIENCE, || {
            let args = [
                "get",
                "endpointslices",
                "--namespace",
                &tenant.namespace,
                "--selector=kubernetes.io/service-name=app",
            ];
            let slices = cluster.json(&args)?;
            Ok((slices["items"][0]["ports"][0]["name"] == name).then_some(()))
        })?;
        client.succeeds("/")?;
    }
    load.without_failure()?;
    tenant.finish()
}

/// Two routes in two namespaces claim one host: one wins, the other says so and whom it lost to, and takes over when it can.
pub(super) fn one_host_twice(cluster: &Cluster) -> Result<()> {
    let older = Tenant::new(cluster, "host-a")?;
    let younger = Tenant::new(cluster, "host-b")?;
    for (tenant, name) in [(&older, "first"), (&younger, "second")] {
        tenant.apply(&App::new(name).replicas(1).objects())?;
        tenant.at_least(name, 1)?;
    }
    older.apply(&[route("first", "shared.e2e", Metric::Concurrency(10))])?;
    older.condition("interceptorroute/first", "Ready", "True")?;
    next_second(cluster)?;
    younger.apply(&[route("second", "shared.e2e", Metric::Concurrency(10))])?;
    let told = younger.until("interceptorroute/second", "a condition that names the winner", PATIENCE, |object| {
        let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        conditions
            .iter()
            .any(|condition| condition["message"].as_str().is_some_and(|text| text.contains("e2e-host-a/first")))
    })?;
    ensure!(condition(&told, "Ready").is_some_and(|ready| ready["status"] != "True"), "the loser says it is ready");
    let client = Client::new(cluster, "shared.e2e")?;
    let answer = client.until(200, SOON)?;
    ensure!(answer.body.contains("first-"), "the younger route took the requests: {}", answer.body);
    cluster.kubectl(&["delete", "--namespace", &older.namespace, "interceptorroute/first"])?;
    younger.condition("interceptorroute/second", "Ready", "True")?;
    cluster.wait_for("the younger route to take over", SOON, || {
        Ok(client.get("/")?.body.contains("second-").then_some(()))
    })?;
    older.finish()?;
    younger.finish()
}

/// Kubernetes notes whole seconds, and the older of two objects is the one that was made in an earlier one.
fn next_second(cluster: &Cluster) -> Result<()> {
    let now = || -> Result<u64> { Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()) };
    let begun = now()?;
    cluster.wait_for("the next second", SOON, || Ok((now()? > begun).then_some(())))
}

/// No pod ever gets ready: the fallback answers when the time for that is up.
pub(super) fn fallback(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "fallback")?;
    let [mut never, service] = App::new("never").objects();
    // Listens on another port than the one it is asked on.
    never["spec"]["template"]["spec"]["containers"][0]["env"][2]["value"] = json!("9");
    tenant.apply(&[never, service])?;
    tenant.apply(&App::new("sorry").replicas(1).objects())?;
    let mut sleepy = route("never", "fallback.e2e", Metric::Concurrency(10));
    sleepy["spec"]["coldStart"] = json!({ "fallback": { "service": { "name": "sorry", "port": 80 } } });
    sleepy["spec"]["timeouts"] = json!({ "readiness": "2s" });
    tenant.apply(&[sleepy, scaled_object("never", 1)])?;
    tenant.at_least("sorry", 1)?;
    tenant.scaled("never")?;
    let answer = Client::new(cluster, "fallback.e2e")?.succeeds("/")?;
    ensure!(answer.body.contains("sorry-"), "the fallback did not answer: {}", answer.body);
    ensure!(answer.took >= Duration::from_secs(2), "the fallback answered before the time was up: {:?}", answer.took);
    tenant.finish()
}
