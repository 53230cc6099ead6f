//! A direct workload that sleeps and wakes again and again: whoever asks, and whenever, is answered.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    client::NODE,
    direct::{ask, client, with_agents},
    tenant::{App, Metric, PATIENCE, SCALING, Tenant, route, scaled_object},
};
use crate::cluster::Cluster;

/// How often the workload goes to zero and comes back, some ten seconds each; `ROUSE_FLAPS` says otherwise.
const FLAPS: usize = 20;

/// For how long nobody asks, in milliseconds: around the time at which KEDA takes the last replica away, which is some three
/// seconds until interceptors are listed, a second of cool-down and what Kubernetes takes.
const PAUSES: std::ops::Range<u64> = 2_500..9_000;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_mins(30);

/// Who asks.
enum Asker {
    /// A pod, from its network.
    Pod(PathBuf),
    /// A process of the node.
    Node,
}

/// Interceptors stand in for a workload that needs them while it is cold; clients are pods of each node, and a node itself.
pub(super) fn under_load(cluster: &Cluster) -> Result<()> {
    with_agents(cluster, flap)
}

fn flap(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "flaps")?;
    // As any pod must: kube-proxy hears a moment later than the pod that it ends.
    tenant.apply(&App::new("flaps").lingers(2).objects())?;
    let mut scaled = scaled_object("flaps", 1);
    scaled["spec"]["cooldownPeriod"] = json!(1);
    tenant.apply(&[patient_route("flaps"), scaled])?;
    tenant.condition("interceptorroute/flaps", "Ready", "True")?;
    tenant.scaled("flaps")?;
    let mut askers = vec![Asker::Node];
    for node in 1..=cluster.nodes() {
        tenant.apply(&[client(node)])?;
        let client = format!("client{node}");
        tenant.condition(&format!("pod/{client}"), "Ready", "True")?;
        askers.push(Asker::Pod(cluster.network_of(&tenant.namespace, &client)?));
    }
    published(&tenant)?;
    let address = cluster.service_address(&tenant.namespace, "flaps")?;
    let wanted = std::env::var("ROUSE_FLAPS").ok().and_then(|count| count.parse().ok()).unwrap_or(FLAPS);
    let (mut pods, mut requests, mut proxied) = (BTreeSet::new(), 0_usize, 0_usize);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let began = Instant::now();
    while pods.len() < wanted {
        ensure!(began.elapsed() < LIMIT, "{} of {wanted} flaps, {requests} requests in {LIMIT:?}", pods.len());
        let answers: Vec<Result<String>> = thread::scope(|scope| {
            let asked: Vec<_> = askers.iter().map(|asker| scope.spawn(|| one(cluster, asker, &address))).collect();
            asked.into_iter().map(|asked| asked.join().expect("no client panics")).collect()
        });
        for answer in answers {
            let answer = answer?;
            requests += 1;
            proxied += usize::from(answer.contains("x-keda-http-cold-start"));
            let pod = answer.lines().next().unwrap_or_default();
            ensure!(
                pod.starts_with("Hello from flaps-"),
                "after {} flaps and {requests} requests: {answer}",
                pods.len()
            );
            pods.insert(pod.to_owned());
        }
        // xorshift64* (Vigna, 2016): the moments differ, and are the same in each run.
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        pause(Duration::from_millis(PAUSES.start + random % (PAUSES.end - PAUSES.start)));
    }
    println!(
        "    {} pods one after the other, {requests} requests, none failed, {proxied} by way of an interceptor, in {} s",
        pods.len(),
        began.elapsed().as_secs()
    );
    tenant.asleep("flaps")?;
    published(&tenant)?;
    tenant.finish()
}

#[expect(clippy::disallowed_methods, reason = "nobody else is on this thread")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}

fn one(cluster: &Cluster, asker: &Asker, address: &str) -> Result<String> {
    match asker {
        Asker::Pod(network) => ask(network, address),
        Asker::Node => {
            let url = format!("http://{address}/");
            cluster.curl(NODE, &["--max-time", "60", "--write-out", "%{header_json}", &url])
        }
    }
}

/// A direct route whose requests may wait for longer than a connection can be held.
fn patient_route(name: &str) -> Value {
    let mut route = route(name, "flaps.e2e", Metric::Concurrency(10));
    route["spec"]["dataPath"] = json!("Direct");
    route["spec"]["timeouts"] = json!({ "readiness": "5m" });
    route
}

/// Interceptors are listed, and the status says so.
fn published(tenant: &Tenant<'_>) -> Result<()> {
    tenant.until("interceptorroute/flaps", "that interceptors are listed", SCALING, |route| {
        route["status"]["shadow"]["published"] == true
    })?;
    let selector = "--selector=endpointslice.kubernetes.io/managed-by=shadow.http.keda.sh";
    let slices = tenant.cluster.wait_for("a shadow slice", PATIENCE, || {
        let all = tenant.cluster.json(&["get", "endpointslices", "--namespace", &tenant.namespace, selector])?;
        Ok(all["items"].as_array().filter(|items| !items.is_empty()).cloned())
    })?;
    ensure!(
        slices.iter().all(|slice| slice["ports"][0]["name"] == "http"),
        "a slice joins the Service by its port's name"
    );
    Ok(())
}
