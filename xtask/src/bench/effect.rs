//! `cargo xtask bench effect`: how soon one more route is in effect on a real cluster, from the moment at which a watcher of the API
//! is told of it to the interceptor's first answer.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{self, BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    bench::{
        clock::Moment,
        cluster::{ClusterArgs, Wanted},
        files, machine,
        probe::Client,
        summary::Spread,
    },
    cluster::{Cluster, Machine},
    e2e::release,
};

const NAMESPACE: &str = "effect";
const INTERCEPTORS: &str = "app.kubernetes.io/component=interceptor";
const ROUTES: &str = "/apis/http.keda.sh/v1beta1/namespaces/effect/interceptorroutes?watch=1";
const PATIENCE: Duration = Duration::from_mins(2);

/// Arguments of `bench effect`.
#[derive(Args, Debug)]
pub(crate) struct EffectArgs {
    /// How many routes are added one by one.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// How many there are before.
    #[arg(long, default_value_t = 100)]
    routes: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Folder for the results.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// Runs the bench.
pub(crate) fn run(root: &Path, args: &EffectArgs) -> Result<()> {
    let disturbance = machine::disturbance();
    let install = |cluster: &Cluster| release::upgrade(cluster, &[]);
    let wanted = Wanted { nodes: 1, archives: &[] };
    let delays = args.cluster.measured(root, &wanted, install, |cluster| measure(cluster, args))?;
    let mut sorted = delays.clone();
    sorted.sort_by(f64::total_cmp);
    let spread = Spread::of(delays.iter().copied()).context("no route was added")?;
    let p99 = sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)];
    let page = page(args, spread, p99, disturbance.as_deref());
    let json = json!({ "machine": machine::describe(), "routes": args.routes, "delaysMs": delays });
    let out = root.join(&args.out);
    files::write(&out, [("effect.md", page.clone()), ("effect.json", format!("{json:#}\n"))])?;
    println!("\n{page}\nwritten to {}", out.display());
    Ok(())
}

/// Milliseconds of each change.
fn measure(cluster: &Cluster, args: &EffectArgs) -> Result<Vec<f64>> {
    cluster
        .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }).to_string())?;
    let before = (0..args.routes).map(|number| route(&format!("before-{number}")));
    let items: Vec<Value> = workload().into_iter().chain(before).collect();
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    cluster.rolled_out(NAMESPACE, "app", PATIENCE)?;
    let pods = cluster.json(&["get", "pods", "--namespace", release::NAMESPACE, "--selector", INTERCEPTORS])?;
    let address = pods["items"][0]["status"]["podIP"].as_str().context("no interceptor")?;
    let to = SocketAddr::new(address.parse().context("a pod's address")?, 8080);
    let mut asking = Asking::start(cluster, to)?;
    if let Some(last) = args.routes.checked_sub(1) {
        asking.until_routed(&format!("before-{last}"), || Ok(()))?;
    }
    let told = Told::start(cluster)?;
    (0..args.changes)
        .map(|number| {
            let name = format!("more-{number}");
            let routed = asking
                .until_routed(&name, || cluster.apply(&route(&name).to_string()))
                .with_context(|| name.clone())?;
            let told = told.wait(cluster, &name)?;
            Ok(routed.since(told) * 1e3)
        })
        .collect()
}

/// A client in the node's network.
struct Asking {
    child: Child,
    hosts: ChildStdin,
    routed: BufReader<ChildStdout>,
}

impl Asking {
    fn start(cluster: &Cluster, to: SocketAddr) -> Result<Self> {
        let mut command = cluster.beside(Machine::Node(1));
        command.arg(std::env::current_exe().context("cannot find this program")?);
        command.args(["bench", "routed", &to.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start a client")?;
        let hosts = child.stdin.take().context("standard input is piped")?;
        let routed = BufReader::new(child.stdout.take().context("standard output is piped")?);
        Ok(Self { child, hosts, routed })
    }

    /// Asks for a route's host again and again while something is done; when it was answered.
    fn until_routed(&mut self, name: &str, meanwhile: impl FnOnce() -> Result<()>) -> Result<Moment> {
        writeln!(self.hosts, "{}", host(name))?;
        meanwhile()?;
        let mut line = String::new();
        self.routed.read_line(&mut line)?;
        Moment::parse(line.trim()).with_context(|| format!("expected a moment, not {line:?}"))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // It ended by itself, or ends now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `cargo xtask bench routed`: asks for each host that it reads until that is routed, and prints when that was.
pub(crate) fn ask(to: SocketAddr) -> Result<()> {
    let mut client = Client::connect(to)?;
    for host in io::stdin().lines() {
        client.until_routed(&host?, PATIENCE)?;
        println!("{}", Moment::now().seconds());
    }
    Ok(())
}

/// When the API first told of each route.
struct Told {
    firsts: Arc<Mutex<HashMap<String, Moment>>>,
    watching: Child,
}

impl Told {
    fn start(cluster: &Cluster) -> Result<Self> {
        let mut kubectl = cluster.kubectl_command()?;
        let mut watching =
            kubectl.args(["get", "--raw", ROUTES]).stdout(Stdio::piped()).spawn().context("cannot start kubectl")?;
        let events = BufReader::new(watching.stdout.take().context("standard output is piped")?);
        let firsts = Arc::new(Mutex::new(HashMap::new()));
        let told = Arc::clone(&firsts);
        thread::spawn(move || {
            for line in events.lines().map_while(Result::ok) {
                let now = Moment::now();
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(name) = event["object"]["metadata"]["name"].as_str() {
                    told.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_insert(now);
                }
            }
        });
        Ok(Self { firsts, watching })
    }

    fn wait(&self, cluster: &Cluster, name: &str) -> Result<Moment> {
        cluster.wait_for("the watch to tell", PATIENCE, || {
            Ok(self.firsts.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied())
        })
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // It ended with the cluster, or ends now.
        let _ = self.watching.kill();
        let _ = self.watching.wait();
    }
}

fn host(name: &str) -> String {
    format!("{name}.effect.example")
}

fn route(name: &str) -> Value {
    json!({
        "apiVersion": "http.keda.sh/v1beta1", "kind": "InterceptorRoute",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "target": { "service": "app", "port": 80 }, "rules": [{ "hosts": [host(name)] }],
            "scalingMetric": { "concurrency": { "targetValue": 10 } },
        },
    })
}

/// A Deployment that always runs, and its Service.
fn workload() -> [Value; 2] {
    let metadata = json!({ "name": "app", "namespace": NAMESPACE });
    let container = json!({
        "name": "app",
        "image": format!("docker.io/rouse/demo-app:{}", env!("CARGO_PKG_VERSION")),
        "imagePullPolicy": "IfNotPresent",
        "env": [{ "name": "POD_IP", "value": "0.0.0.0" }, { "name": "PORT", "value": "8000" }],
        "ports": [{ "name": "http", "containerPort": 8000 }],
        "readinessProbe": { "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 1 },
    });
    let labels = json!({ "app": "app" });
    [
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": { "containers": [container] } },
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": { "selector": labels, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
        }),
    ]
}

fn page(args: &EffectArgs, spread: Spread, p99: f64, disturbance: Option<&str>) -> String {
    let mut page = format!("# Effect bench\n\nMachine: {}.\n\n", machine::describe());
    let Spread { median, min, max } = spread;
    // Writing to a String cannot fail.
    let _ = writeln!(
        page,
        "{} routes added one by one to {} on a cluster of one node, while a client asks one interceptor for the new one all the time. \
         From the moment at which a watcher of the API (`kubectl get --raw`) was told of the route to the first answer; it may be told \
         later than the interceptor.\n\n| median | least | 99 of 100 | greatest |\n|---|---|---|---|\n\
         | {median:.2} ms | {min:.2} ms | {p99:.2} ms | {max:.2} ms |",
        args.changes, args.routes,
    );
    if let Some(disturbance) = disturbance {
        let _ = writeln!(page, "\n- {disturbance}");
    }
    page
}
