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

/// A workload that comes and goes.
struct Workload {
    name: &'static str,
    address: String,
    pods: BTreeSet<String>,
    proxied: usize,
}

/// For one workload, which needs them while it is cold, interceptors stand in; what another is asked is held by the agents. Clients are
/// pods of each node, and a node itself.
pub(super) fn under_load(cluster: &Cluster) -> Result<()> {
    with_agents(cluster, flap)
}

fn flap(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "flaps")?;
    let mut askers = vec![Asker::Node];
    for node in 1..=cluster.nodes() {
        tenant.apply(&[client(node)])?;
        let client = format!("client{node}");
        tenant.condition(&format!("pod/{client}"), "Ready", "True")?;
        askers.push(Asker::Pod(cluster.network_of(&tenant.namespace, &client)?));
    }
    let mut workloads =
        [workload(&tenant, "patient", json!({ "readiness": "5m" }))?, workload(&tenant, "held", json!({}))?];
    let wanted = std::env::var("ROUSE_FLAPS").ok().and_then(|count| count.parse().ok()).unwrap_or(FLAPS);
    let mut requests = 0_usize;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let began = Instant::now();
    while workloads.iter().any(|workload| workload.pods.len() < wanted) {
        let pods = workloads.each_ref().map(|workload| workload.pods.len());
        ensure!(began.elapsed() < LIMIT, "{pods:?} of {wanted} flaps, {requests} requests in {LIMIT:?}");
        for (at, answer) in round(cluster, &askers, &workloads) {
            let (answer, workload) = (answer?, &mut workloads[at]);
            requests += 1;
            workload.proxied += usize::from(answer.contains("x-keda-http-cold-start"));
            let pod = answer.lines().next().unwrap_or_default();
            let is_pods = pod.starts_with(&format!("Hello from {}-", workload.name));
            ensure!(is_pods, "after {pods:?} flaps and {requests} requests: {answer}");
            workload.pods.insert(pod.to_owned());
        }
        // xorshift64* (Vigna, 2016): the moments differ, and are the same in each run.
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        pause(Duration::from_millis(PAUSES.start + random % (PAUSES.end - PAUSES.start)));
    }
    for Workload { name, pods, proxied, .. } in &workloads {
        println!("    {name}: {} pods one after the other, {proxied} requests by way of an interceptor", pods.len());
    }
    println!("    {requests} requests, none failed, in {} s", began.elapsed().as_secs());
    for Workload { name, .. } in &workloads {
        tenant.asleep(name)?;
        published(&tenant, name)?;
    }
    tenant.finish()
}

/// A workload that sleeps, whose route is direct and has these timeouts.
fn workload(tenant: &Tenant<'_>, name: &'static str, timeouts: Value) -> Result<Workload> {
    // As any pod must: kube-proxy hears a moment later than the pod that it ends.
    tenant.apply(&App::new(name).lingers(2).objects())?;
    let mut scaled = scaled_object(name, 1);
    scaled["spec"]["cooldownPeriod"] = json!(1);
    let mut route = route(name, &format!("{name}.e2e"), Metric::Concurrency(10));
    route["spec"]["dataPath"] = json!("Direct");
    route["spec"]["timeouts"] = timeouts;
    tenant.apply(&[route, scaled])?;
    tenant.condition(&format!("interceptorroute/{name}"), "Ready", "True")?;
    tenant.scaled(name)?;
    published(tenant, name)?;
    let address = tenant.cluster.service_address(&tenant.namespace, name)?;
    Ok(Workload { name, address, pods: BTreeSet::new(), proxied: 0 })
}

/// Everybody asks for everything at once; which workload answered what.
fn round(cluster: &Cluster, askers: &[Asker], workloads: &[Workload]) -> Vec<(usize, Result<String>)> {
    thread::scope(|scope| {
        let all = askers.iter().flat_map(|asker| workloads.iter().enumerate().map(move |one| (asker, one)));
        let asked: Vec<_> =
            all.map(|(asker, (at, workload))| (at, scope.spawn(|| one(cluster, asker, &workload.address)))).collect();
        asked.into_iter().map(|(at, asked)| (at, asked.join().expect("no client panics"))).collect()
    })
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

/// Interceptors are listed, and the status says so.
fn published(tenant: &Tenant<'_>, name: &str) -> Result<()> {
    tenant.until(&format!("interceptorroute/{name}"), "that interceptors are listed", SCALING, |route| {
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
