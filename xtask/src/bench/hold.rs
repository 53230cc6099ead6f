//! `cargo xtask bench hold`: how soon a client is connected to a pod once that listens, on real nodes with real KEDA: the first
//! packet held by the node's agent, beside an interceptor, waiting for kube-proxy, and losing the packet.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    bench::{
        clock::Moment,
        cluster::{ClusterArgs, Wanted},
        files, machine, plot,
        request::{self, Moments},
        summary::Spread,
    },
    cluster::{Cluster, Machine},
    e2e::release,
    process,
};

const NAMESPACE: &str = "hold";
const PROXY: &str = "keda-add-ons-http-interceptor-proxy";
const AGENTS: &str = "daemonset/keda-add-ons-http-agent";
/// The pods' node; clients are on this and on the other.
const NODE: u8 = 1;
const PORT: u16 = 8000;
/// From the start of a pod until it listens: longer than the kubelet and the agents take to list it.
const START_DELAY_MS: u64 = 400;
const PATIENCE: Duration = Duration::from_mins(2);

/// Arguments of `bench hold`.
#[derive(Args, Debug)]
pub(crate) struct HoldArgs {
    /// How many cold starts of each kind.
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Folder for the results.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// How a client gets to a pod that is not there yet.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    title: &'static str,
    /// Whether the pods have a readiness probe.
    probed: bool,
    by: By,
    /// The client's node.
    from: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The agent holds the first packet.
    Hold,
    /// An interceptor holds the request.
    Interceptor,
    /// A Service without a route: refused, and tried again, until kube-proxy has the pod.
    KubeProxy,
    /// The same Service, but packets to it are lost until the pod is listed as ready.
    Loss,
}

const WAYS: [Way; 7] = [
    Way { name: "hold", title: "held, same node", probed: false, by: By::Hold, from: 1 },
    Way { name: "hold-other", title: "held, other node", probed: false, by: By::Hold, from: 2 },
    Way { name: "hold-probed", title: "held, same node, readiness probe", probed: true, by: By::Hold, from: 1 },
    Way { name: "hold-probed-other", title: "held, other node, readiness probe", probed: true, by: By::Hold, from: 2 },
    Way { name: "interceptor", title: "through the interceptor", probed: true, by: By::Interceptor, from: 2 },
    Way { name: "kube-proxy", title: "refused until kube-proxy has the pod", probed: true, by: By::KubeProxy, from: 2 },
    Way { name: "loss", title: "first packets lost", probed: true, by: By::Loss, from: 2 },
];

/// Seconds from the pod's listening.
#[derive(Clone, Copy, Debug)]
struct Round {
    connected: f64,
    answered: f64,
}

/// Runs the bench.
pub(crate) fn run(root: &Path, args: &HoldArgs) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds 0, expected at least one");
    let disturbance = machine::disturbance();
    let install = |cluster: &Cluster| release::upgrade(cluster, &["agent.enabled=true"]);
    let measure = |cluster: &Cluster| measure(cluster, args.rounds);
    let rounds = args.cluster.measured(root, &Wanted { nodes: 2, archives: &[] }, install, measure)?;
    let page = page(&rounds, disturbance.as_deref());
    let out = root.join(&args.out);
    let json = format!("{:#}\n", json(&rounds));
    files::write(&out, [("hold.md", page.clone()), ("hold.json", json), ("hold.svg", svg(&rounds))])?;
    println!("\n{page}\nwritten to {}", out.display());
    Ok(())
}

/// All rounds of all ways, which take turns.
fn measure(cluster: &Cluster, rounds: usize) -> Result<Vec<(Way, Vec<Round>)>> {
    cluster.wait_for("an agent on each node", PATIENCE, || {
        let agents = cluster.json(&["get", "--namespace", release::NAMESPACE, AGENTS])?;
        Ok((agents["status"]["numberReady"] == cluster.nodes()).then_some(()))
    })?;
    cluster
        .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }).to_string())?;
    let mut items: Vec<Value> = [1, 2].map(client).to_vec();
    items.extend([false, true].into_iter().flat_map(workload));
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    for probed in [false, true] {
        let object = format!("scaledobject/{}", workload_name(probed));
        cluster.wait_for(&format!("KEDA to take {object} over"), PATIENCE, || {
            let object = cluster.json(&["get", "--namespace", NAMESPACE, &object])?;
            Ok(object["status"]["externalMetricNames"].is_array().then_some(()))
        })?;
    }
    let mut seen: Vec<(Way, Vec<Round>)> = WAYS.map(|way| (way, Vec::new())).to_vec();
    for round in 1..=rounds {
        for (way, rounds) in &mut seen {
            let one = one(cluster, *way).with_context(|| format!("{} in round {round}", way.name))?;
            let Round { connected, answered } = one;
            println!(
                "  round {round}  {:18} connected {:.2} ms, answered {:.2} ms",
                way.name,
                connected * 1e3,
                answered * 1e3
            );
            rounds.push(one);
        }
    }
    Ok(seen)
}

/// One cold start.
fn one(cluster: &Cluster, way: Way) -> Result<Round> {
    let name = workload_name(way.probed);
    cluster.wait_for("the workload to sleep", PATIENCE, || {
        let pods = cluster.json(&["get", "pods", "--namespace", NAMESPACE, "--selector", &format!("app={name}")])?;
        let deployment = cluster.json(&["get", "deployment", name, "--namespace", NAMESPACE])?;
        let none = pods["items"].as_array().is_some_and(Vec::is_empty);
        Ok((none && deployment["spec"]["replicas"] == 0).then_some(()))
    })?;
    let plain = format!("{name}-plain");
    let service = match way.by {
        By::Hold => cluster.service_address(NAMESPACE, name)?,
        By::Interceptor => cluster.service_address(release::NAMESPACE, PROXY)?,
        By::KubeProxy | By::Loss => cluster.service_address(NAMESPACE, &plain)?,
    };
    let port = if way.by == By::Interceptor { 8080 } else { 80 };
    let to = SocketAddr::new(service.parse().context("a Service's address")?, port);
    let loss = (way.by == By::Loss).then(|| Loss::begin(cluster, way.from, to)).transpose()?;
    // Somebody else wakes what is reached without us.
    let waking = match way.by {
        By::KubeProxy | By::Loss => {
            let proxy = cluster.service_address(release::NAMESPACE, PROXY)?.parse().context("a Service's address")?;
            Some(ask(cluster.beside(Machine::Node(2)), SocketAddr::new(proxy, 8080), &host(name), false)?)
        }
        By::Hold | By::Interceptor => None,
    };
    let network = cluster.network_of(NAMESPACE, &format!("client{}", way.from))?;
    let asking = ask(Cluster::within(&network), to, &host(name), way.by == By::KubeProxy)?;
    if let Some(loss) = loss {
        loss.until_ready(&plain)?;
    }
    let Moments { connected, sent: _, answered } = answer(asking)?;
    if let Some(waking) = waking {
        answer(waking)?;
    }
    let log =
        cluster.kubectl(&["logs", "--namespace", NAMESPACE, "--selector", &format!("app={name}"), "--tail=-1"])?;
    let listening =
        log.lines().find(|line| line.contains("listening")).context("the pod does not say that it listens")?;
    let listening = Moment::parse_date(listening)
        .with_context(|| format!("expected a line that begins with a date, not {listening}"))?;
    Ok(Round { connected: connected.since(listening), answered: answered.since(listening) })
}

fn ask(mut within: Command, to: SocketAddr, host: &str, retry: bool) -> Result<Child> {
    within.arg(std::env::current_exe().context("cannot find this program")?);
    within.args(["bench", "request", &to.to_string(), host]).args(retry.then_some("--retry"));
    within.stdout(Stdio::piped()).spawn().context("cannot start a client")
}

fn answer(client: Child) -> Result<Moments> {
    let output = client.wait_with_output()?;
    ensure!(output.status.success(), "the client ended with {}", output.status);
    request::parse(&String::from_utf8_lossy(&output.stdout))
}

/// Packets to an address are lost on a node until this is over.
struct Loss<'a> {
    cluster: &'a Cluster,
    node: u8,
}

impl<'a> Loss<'a> {
    fn begin(cluster: &'a Cluster, node: u8, of: SocketAddr) -> Result<Self> {
        let loss = Self { cluster, node };
        loss.nft(&format!(
            "add table ip rouse_bench; add chain ip rouse_bench lost {{ type filter hook prerouting priority raw; }}; \
             add rule ip rouse_bench lost ip daddr {} tcp dport {} drop",
            of.ip(),
            of.port()
        ))?;
        Ok(loss)
    }

    /// Ends it once a pod of the Service is listed as ready.
    fn until_ready(self, service: &str) -> Result<()> {
        let label = format!("kubernetes.io/service-name={service}");
        self.cluster.wait_for("the pod's endpoint to be ready", PATIENCE, || {
            let slices =
                self.cluster.json(&["get", "endpointslices", "--namespace", NAMESPACE, "--selector", &label])?;
            let mut endpoints = slices["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|slice| slice["endpoints"].as_array())
                .flatten();
            Ok(endpoints.any(|endpoint| endpoint["conditions"]["ready"] == true).then_some(()))
        })
    }

    fn nft(&self, text: &str) -> Result<()> {
        process::run(self.cluster.beside(Machine::Node(self.node)).args(["nft", text]))
    }
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.nft("delete table ip rouse_bench") {
            eprintln!("bench: {error:#}");
        }
    }
}

fn workload_name(probed: bool) -> &'static str {
    if probed { "probed" } else { "bare" }
}

fn host(name: &str) -> String {
    format!("{name}.hold.example")
}

fn container(name: &str, delay: u64) -> Value {
    json!({
        "name": "app",
        "image": format!("docker.io/rouse/demo-app:{}", env!("CARGO_PKG_VERSION")),
        "imagePullPolicy": "IfNotPresent",
        "env": [
            { "name": "POD_IP", "value": "0.0.0.0" },
            { "name": "POD_NAME", "value": name },
            { "name": "PORT", "value": PORT.to_string() },
            { "name": "START_DELAY_MS", "value": delay.to_string() },
        ],
        "ports": [{ "name": "http", "containerPort": PORT }],
    })
}

/// A pod to connect from.
fn client(node: u8) -> Value {
    let name = format!("client{node}");
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "nodeName": format!("node{node}"), "containers": [container(&name, 0)] },
    })
}

/// A Deployment at zero, a Service with a route, one without, and a ScaledObject.
fn workload(probed: bool) -> [Value; 5] {
    let name = workload_name(probed);
    let metadata = |name: &str| json!({ "name": name, "namespace": NAMESPACE });
    let mut container = container(name, START_DELAY_MS);
    if probed {
        container["readinessProbe"] = json!({ "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 1 });
    }
    let service = |service: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(service),
            "spec": { "selector": { "app": name }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
        })
    };
    let trigger = json!({
        "type": "external-push",
        "metadata": { "scalerAddress": "keda-add-ons-http-external-scaler.keda:9090", "interceptorRoute": name },
    });
    [
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(name),
            "spec": {
                "replicas": 0, "selector": { "matchLabels": { "app": name } },
                "template": {
                    "metadata": { "labels": { "app": name } },
                    "spec": {
                        "nodeName": format!("node{NODE}"), "terminationGracePeriodSeconds": 1, "containers": [container],
                    },
                },
            },
        }),
        service(name),
        service(&format!("{name}-plain")),
        json!({
            "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute", "metadata": metadata(name),
            "spec": {
                "dataPath": "Direct", "target": { "service": name, "port": 80 }, "rules": [{ "hosts": [host(name)] }],
                "scalingMetric": { "concurrency": { "targetValue": 10 } },
            },
        }),
        json!({
            "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata(name),
            "spec": {
                "scaleTargetRef": { "name": name }, "pollingInterval": 1, "cooldownPeriod": 2,
                "minReplicaCount": 0, "maxReplicaCount": 1, "triggers": [trigger],
            },
        }),
    ]
}

fn spreads(rounds: &[Round]) -> Option<(Spread, Spread)> {
    let connected = Spread::of(rounds.iter().map(|round| round.connected * 1e3))?;
    Some((connected, Spread::of(rounds.iter().map(|round| round.answered * 1e3))?))
}

fn page(seen: &[(Way, Vec<Round>)], disturbance: Option<&str>) -> String {
    let mut page = format!("# Hold bench\n\nMachine: {}.\n\n", machine::describe());
    // Writing to a String cannot fail.
    let _ = writeln!(
        page,
        "{} cold starts of each kind through KEDA on two nodes, in turn; the pod listens {START_DELAY_MS} ms after its start, and its \
         readiness probe, if it has one, asks every second. Milliseconds from the pod's own log line that it listens, which it writes \
         after it does: median (least to greatest). A client of the interceptor is connected to that, long before.\n",
        seen.iter().map(|(_, rounds)| rounds.len()).max().unwrap_or_default(),
    );
    page.push_str("| | `connect()` returns | first byte |\n|---|---|---|\n");
    for (way, rounds) in seen {
        let Some((connected, answered)) = spreads(rounds) else { continue };
        let shown = |Spread { median, min, max }: Spread| format!("{median:.2} ({min:.2}–{max:.2})");
        let connected = if way.by == By::Interceptor { "–".to_owned() } else { shown(connected) };
        let _ = writeln!(page, "| {} | {connected} | {} |", way.title, shown(answered));
    }
    if let Some(disturbance) = disturbance {
        let _ = writeln!(page, "\n- {disturbance}");
    }
    page
}

fn json(seen: &[(Way, Vec<Round>)]) -> Value {
    let ways = seen.iter().map(|(way, rounds)| {
        let rounds = rounds.iter().map(
            |Round { connected, answered }| json!({ "connectedMs": connected * 1e3, "answeredMs": answered * 1e3 }),
        );
        json!({ "way": way.name, "rounds": rounds.collect::<Value>() })
    });
    json!({ "machine": machine::describe(), "startDelayMs": START_DELAY_MS, "ways": ways.collect::<Value>() })
}

fn svg(seen: &[(Way, Vec<Round>)]) -> String {
    let rows = seen.iter().filter_map(|(way, rounds)| Some((way.title.to_owned(), spreads(rounds)?.1)));
    plot::ranges("First byte since the pod listens: least to greatest, and median", "ms", &rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_the_interceptor_is_not_said_to_be_connected_to_the_pod() {
        let round = |connected, answered| Round { connected, answered };
        let seen = [(WAYS[0], vec![round(0.0005, 0.001), round(0.0007, 0.002)]), (WAYS[4], vec![round(-0.5, 0.002)])];
        let page = page(&seen, Some("It was busy."));
        assert!(page.contains("| held, same node | 0.60 (0.50–0.70) | 1.50 (1.00–2.00) |"), "{page}");
        assert!(page.contains("| through the interceptor | – | 2.00 (2.00–2.00) |"), "{page}");
        assert!(page.ends_with("- It was busy.\n"), "{page}");
    }
}
