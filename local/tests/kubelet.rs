//! Deployments become processes: started, probed, listed, withdrawn, ended.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use interceptor_core::ObjectKey;
use local::{
    cluster::Cluster,
    kubelet::{Kubelet, Phase, PodStatus, address::Block, pod::Host},
    process::base_env,
    slices::SliceFiles,
    timeline::{Actor, Event, Timeline},
    workload::Workload,
};
use serde_json::Value;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);

struct Machine {
    dir: tempfile::TempDir,
    cluster: Cluster,
    pods: watch::Receiver<Arc<Vec<PodStatus>>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "app")
}

fn deployment(container: &str) -> Arc<Workload> {
    let yaml = format!(
        "{{ spec: {{ replicas: 0, selector: {{}}, template: {{ metadata: {{ labels: {{ app: app }} }},
            spec: {{ terminationGracePeriodSeconds: 10, containers: [{container}] }} }} }} }}"
    );
    Arc::new(Workload::parse(key(), &serde_yaml_ng::from_str(&yaml).unwrap()).unwrap())
}

const DEMO_APP: &str = "{ name: c, command: [DEMO], ports: [{ name: http, containerPort: 8000 }],
    env: [{ name: START_DELAY_MS, value: '0' }],
    readinessProbe: { httpGet: { path: /healthz, port: http }, periodSeconds: 1 } }";

fn demo_app() -> String {
    DEMO_APP.replace("DEMO", env!("CARGO_BIN_EXE_rouse-demo-app"))
}

impl Machine {
    fn start(workload: Arc<Workload>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["slices", "staging", "logs"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let cluster = Cluster::new(Timeline::default());
        let service = "{ spec: { selector: { app: app }, ports: [{ name: web, port: 80, targetPort: http }] } }";
        cluster.edit(|state| {
            state.services.insert(key(), Arc::new(serde_yaml_ng::from_str(service).unwrap()));
            state.workloads.insert(key(), workload);
            state.replicas.insert(key(), 0);
        });
        let host = Host {
            launcher: env!("CARGO_BIN_EXE_rouse-local").into(),
            logs: dir.path().join("logs"),
            env: base_env(std::env::vars_os()),
        };
        let files = SliceFiles::new(dir.path().join("slices"), dir.path().join("staging"));
        let kubelet = Kubelet::new(cluster.clone(), host, Block::claim(std::process::id()).unwrap(), files);
        let (stop, stopped) = oneshot::channel();
        let pods = kubelet.status();
        let task = runtime::task::spawn("kubelet", kubelet.run(stopped, PATIENCE));
        Self { dir, cluster, pods, stop, task }
    }

    fn scale(&self, replicas: u32) {
        self.cluster.scale(&key(), replicas, Actor::Manifest, String::new);
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&[PodStatus]) -> bool) {
        let waited = timeout(PATIENCE, self.pods.wait_for(|pods| condition(pods))).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.cluster.timeline().since(0));
    }

    fn slice(&self) -> PathBuf {
        self.dir.path().join("slices/default.app.json")
    }

    /// Addresses that are listed as ready.
    fn listed(&self) -> Vec<String> {
        ready(&fs::read_to_string(self.slice()).unwrap())
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

fn ready(text: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(text).unwrap();
    let endpoints = list["items"].as_array().unwrap().iter().flat_map(|slice| slice["endpoints"].as_array().unwrap());
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    ready.map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned()).collect()
}

fn all_ready(count: usize) -> impl Fn(&[PodStatus]) -> bool {
    move |pods| pods.len() == count && pods.iter().all(|pod| pod.phase == Phase::Ready)
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn replicas_come_and_go_with_the_number_asked_for() {
    let mut machine = Machine::start(deployment(&demo_app()));
    assert_eq!(machine.pods.borrow().len(), 0);
    machine.scale(2);
    machine.until("two pods are ready", all_ready(2)).await;
    let pods = machine.pods.borrow().to_vec();
    let addresses: Vec<String> = pods.iter().map(|pod| pod.address.to_string()).collect();
    assert_eq!(machine.listed(), addresses);
    assert_ne!(pods[0].address, pods[1].address);
    let body = get(&pods[0]).await;
    assert_eq!(body, format!("Hello from {}\n", pods[0].name), "the pod answers on its own address");
    machine.scale(1);
    machine.until("one pod is left", all_ready(1)).await;
    assert_eq!(*machine.pods.borrow()[0].name, *pods[0].name, "the younger one went");
    machine.scale(0);
    machine.until("no pod is left", <[PodStatus]>::is_empty).await;
    assert_eq!(machine.listed(), Vec::<String>::new());
    assert!(pods.iter().all(|pod| !exists(pod.pid.unwrap())));
    machine.end().await;
}

#[tokio::test]
async fn a_process_that_is_killed_is_withdrawn_and_started_again() {
    let mut machine = Machine::start(deployment(&demo_app()));
    machine.scale(1);
    machine.until("it is ready", all_ready(1)).await;
    let pid = machine.pods.borrow()[0].pid.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into().unwrap()), nix::sys::signal::SIGKILL).unwrap();
    machine.until("it is started again", |pods| pods.len() == 1 && pods[0].restarts == 1).await;
    machine.until("and ready again", all_ready(1)).await;
    assert_ne!(machine.pods.borrow()[0].pid, Some(pid));
    let events = machine.cluster.timeline().since(0);
    assert!(events.iter().any(|entry| matches!(&entry.event, Event::PodCrashed(_, how) if how.contains("SIGKILL"))));
    machine.end().await;
}

#[tokio::test]
async fn the_endpoint_is_withdrawn_before_the_process_is_told_to_end() {
    // On SIGTERM it keeps what the slice says at that moment.
    let script = "trap 'cp $SLICE $SEEN; exit 0' TERM; touch $SEEN.trap; while :; do sleep 0.05; done";
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen.json");
    let placeholder = deployment("{ name: c, command: [sh] }");
    let mut machine = Machine::start(placeholder);
    let container = format!(
        "{{ name: c, command: [sh, -c, \"{script}\"], ports: [{{ name: http, containerPort: 8000 }}],
            env: [{{ name: SLICE, value: {} }}, {{ name: SEEN, value: {} }}] }}",
        machine.slice().display(),
        seen.display()
    );
    machine.cluster.edit(|state| drop(state.workloads.insert(key(), deployment(&container))));
    machine.scale(1);
    machine.until("it runs", all_ready(1)).await;
    assert_eq!(machine.listed().len(), 1);
    let trap = dir.path().join("seen.json.trap");
    let trapped = async {
        while !trap.exists() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, trapped).await.unwrap();
    machine.scale(0);
    machine.until("it has ended", <[PodStatus]>::is_empty).await;
    assert_eq!(ready(&fs::read_to_string(&seen).unwrap()), Vec::<String>::new());
    machine.end().await;
}

#[tokio::test]
async fn a_deployment_that_is_deleted_takes_its_processes_along() {
    let mut machine = Machine::start(deployment(&demo_app()));
    machine.scale(1);
    machine.until("it is ready", all_ready(1)).await;
    machine.cluster.edit(|state| {
        state.workloads.clear();
        state.replicas.clear();
    });
    machine.until("it is gone", <[PodStatus]>::is_empty).await;
    machine.end().await;
}

#[tokio::test]
async fn an_edited_template_is_rolled_out_without_a_gap() {
    let mut machine = Machine::start(deployment(&demo_app()));
    machine.scale(1);
    machine.until("it is ready", all_ready(1)).await;
    let old = machine.pods.borrow()[0].name.to_string();
    let edited = deployment(&demo_app().replace("'0'", "'1'"));
    machine.cluster.edit(|state| drop(state.workloads.insert(key(), edited)));
    machine.until("both run", |pods| pods.len() == 2).await;
    assert_eq!(machine.listed().len(), 1, "the old one serves until the new one is ready");
    machine.until("the new one has replaced it", |pods| all_ready(1)(pods) && *pods[0].name != *old).await;
    machine.end().await;
}

#[tokio::test]
async fn a_port_that_somebody_has_is_named_and_tried_again() {
    let somebody = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = somebody.local_addr().unwrap().port();
    let container = demo_app().replace("8000", &port.to_string());
    let container = container.replace("env: [", &format!("env: [{{ name: PORT, value: '{port}' }}, "));
    let mut machine = Machine::start(deployment(&container));
    machine.scale(1);
    let mut changes = machine.cluster.changes();
    let problem = "pods of Deployment default/app";
    let told = timeout(PATIENCE, changes.wait_for(|state| state.problems.contains_key(problem))).await;
    let message = told.unwrap().unwrap().problems[problem].clone();
    assert!(message.contains(&format!("port {port} is taken")), "{message}");
    drop(somebody);
    machine.until("it is started after all", all_ready(1)).await;
    assert!(machine.cluster.load().problems.is_empty());
    machine.end().await;
}

#[tokio::test]
async fn all_processes_end_with_the_kubelet() {
    let mut machine = Machine::start(deployment(&demo_app()));
    machine.scale(3);
    machine.until("all are ready", all_ready(3)).await;
    let pids: Vec<u32> = machine.pods.borrow().iter().filter_map(|pod| pod.pid).collect();
    machine.end().await;
    assert!(pids.into_iter().all(|pid| !exists(pid)));
}

async fn get(pod: &PodStatus) -> String {
    let to = local::cluster::Address { host: None, path: "/".into(), headers: Vec::new() };
    let address = (pod.address, pod.port.unwrap()).into();
    let reply = local::request::Requester::new(address).send(&to, "").await.unwrap();
    format!("{}\n", reply.line)
}
