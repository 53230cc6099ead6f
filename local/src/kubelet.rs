//! A tiny kubelet: keeps as many local processes as each Deployment asks for, and publishes their endpoints.
//!
//! ```text
//! cluster state ─► plan ─► start / withdraw ─► EndpointSlice files ─► then SIGTERM
//!                            ▲ reports
//!            one task a pod: process, probe, back-off
//! ```

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use interceptor_core::ObjectKey;
use runtime::task;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use self::{
    address::Block,
    plan::{Plan, Seen, plan},
    pod::{Host, Report, Reporter, Spec},
};
use crate::{
    cluster::{Cluster, State},
    slices::{Backend, SliceFiles, slices},
    timeline::{self, Event, unix_micros},
    workload::Workload,
};

pub mod address;
pub mod backoff;
pub mod expand;
pub mod plan;
pub mod pod;
pub mod probe;

/// Reports that may wait for the kubelet; pods wait when it is full.
const MAX_REPORTS: usize = 256;

/// When a pod that could not be started is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What is told about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Its Deployment.
    pub workload: ObjectKey,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its first container port.
    pub port: Option<u16>,
    /// How it is.
    pub phase: Phase,
    /// The process, while one runs.
    pub pid: Option<u32>,
    /// How often the process was started again.
    pub restarts: u32,
    /// When the pod was made, in microseconds since 1970.
    pub since: u64,
}

/// How a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its process is being started or does not pass its probe yet.
    Starting,
    /// It gets requests.
    Ready,
    /// Its process ended by itself and waits to be started again.
    Crashed(String),
    /// It was asked to end.
    Ending,
}

/// The pods of this machine.
#[derive(Debug)]
pub struct Kubelet {
    cluster: Cluster,
    host: Host,
    block: Block,
    files: SliceFiles,
    pods: BTreeMap<u64, Pod>,
    next: u64,
    /// A pod could not be started for want of an address or a port.
    blocked: bool,
    reports: mpsc::Receiver<(Arc<str>, Report)>,
    reporting: mpsc::Sender<(Arc<str>, Report)>,
    status: watch::Sender<Arc<Vec<PodStatus>>>,
}

#[derive(Debug)]
struct Pod {
    spec: Spec,
    phase: Phase,
    pid: Option<u32>,
    restarts: u32,
    since: u64,
    stop: Option<oneshot::Sender<()>>,
}

// === impl Kubelet ===

impl Kubelet {
    /// Nothing runs yet.
    pub fn new(cluster: Cluster, host: Host, block: Block, files: SliceFiles) -> Self {
        let (reporting, reports) = mpsc::channel(MAX_REPORTS);
        let status = watch::Sender::default();
        Self { cluster, host, block, files, pods: BTreeMap::new(), next: 1, blocked: false, reports, reporting, status }
    }

    /// Tells of pods.
    pub fn status(&self) -> watch::Receiver<Arc<Vec<PodStatus>>> {
        self.status.subscribe()
    }

    /// Runs until `stop` fires, then ends all pods, which takes `patience` at most.
    ///
    /// Not cancel safe: dropping the future kills all pods.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>, patience: Duration) {
        let mut changes = self.cluster.changes();
        loop {
            let state = Arc::clone(&changes.borrow_and_update());
            self.reconcile(&state);
            tokio::select! {
                _ = changes.changed() => {}
                report = self.reports.recv() => self.take(report),
                // Whoever has the port may have let it go.
                () = sleep(RETRY), if self.blocked => {}
                _ = &mut stop => break,
            }
        }
        let state = State::default();
        self.reconcile(&state);
        let all_gone = async {
            while !self.pods.is_empty() {
                let report = self.reports.recv().await;
                self.take(report);
                self.publish(&state);
            }
        };
        // What is left is killed when its task is dropped with the runtime.
        let _ = timeout(patience, all_gone).await;
    }

    fn reconcile(&mut self, state: &State) {
        self.blocked = false;
        let mut ending = Vec::new();
        for (key, workload) in &state.workloads {
            let desired = state.replicas.get(key).copied().unwrap_or(0);
            let seen: Vec<Seen> =
                self.living(|pod| pod.spec.workload.key == *key).map(|pod| pod.seen(workload)).collect();
            let Plan { start, stop } = plan(&seen, usize::try_from(desired).unwrap_or(usize::MAX));
            ending.extend(stop);
            self.start(workload, start);
        }
        let orphans = self.living(|pod| !state.workloads.contains_key(&pod.spec.workload.key));
        ending.extend(orphans.map(|pod| Arc::clone(&pod.spec.name)).collect::<Vec<_>>());
        let stops: Vec<_> = ending.iter().filter_map(|name| self.withdraw(name)).collect();
        self.publish(state);
        // Only now: a pod that is told to end must no longer be an endpoint.
        for stop in stops {
            // The task is gone only if it has ended by itself, and its report is on the way.
            let _ = stop.send(());
        }
    }

    fn living(&self, which: impl Fn(&Pod) -> bool) -> impl Iterator<Item = &Pod> {
        self.pods.values().filter(move |pod| pod.phase != Phase::Ending && which(pod))
    }

    fn start(&mut self, workload: &Arc<Workload>, count: usize) {
        let ports: Vec<u16> = workload.template.ports.iter().map(|port| port.number).collect();
        let object = format!("pods of Deployment {}", workload.key);
        for _ in 0..count {
            let address = match self.block.take(&ports) {
                Ok(address) => address,
                Err(error) => {
                    self.cluster.problem(&object, Some(error.to_string()));
                    self.blocked = true;
                    return;
                }
            };
            let number = self.next;
            self.next += 1;
            let name: Arc<str> = format!("{}-{:04x}-{number}", workload.key.name(), revision(workload)).into();
            let spec = Spec::new(Arc::clone(&name), address, Arc::clone(workload), &self.host);
            let (stop, stopped) = oneshot::channel();
            let reporter = Reporter::new(name, self.reporting.clone());
            task::spawn("pod", pod::live(spec.clone(), stopped, reporter));
            let pod =
                Pod { spec, phase: Phase::Starting, pid: None, restarts: 0, since: unix_micros(), stop: Some(stop) };
            self.pods.insert(number, pod);
        }
        if count > 0 {
            self.cluster.problem(&object, None);
        }
    }

    fn withdraw(&mut self, name: &str) -> Option<oneshot::Sender<()>> {
        let pod = self.pods.values_mut().find(|pod| *pod.spec.name == *name)?;
        pod.phase = Phase::Ending;
        let event = Event::PodStopping(pod.named());
        self.cluster.timeline().add(event);
        pod.stop.take()
    }

    fn take(&mut self, report: Option<(Arc<str>, Report)>) {
        let Some((name, report)) = report else { return };
        let Some((&number, pod)) = self.pods.iter_mut().find(|(_, pod)| pod.spec.name == name) else { return };
        let timeline = self.cluster.timeline();
        match report {
            Report::Started(pid) => {
                pod.restarts += u32::from(matches!(pod.phase, Phase::Crashed(_)));
                pod.pid = Some(pid);
                pod.turn(Phase::Starting);
                timeline.add(Event::PodStarted(pod.named()));
            }
            Report::Ready(ready) => {
                pod.turn(if ready { Phase::Ready } else { Phase::Starting });
                let named = pod.named();
                timeline.add(if ready { Event::PodReady(named) } else { Event::PodUnready(named) });
            }
            Report::Crashed(how) => {
                pod.pid = None;
                pod.turn(Phase::Crashed(how.clone()));
                timeline.add(Event::PodCrashed(pod.named(), how));
            }
            Report::Gone => {
                timeline.add(Event::PodGone(pod.named()));
                let address = pod.spec.address;
                self.pods.remove(&number);
                self.block.give_back(address);
            }
        }
    }

    /// Writes the slices and tells of the pods.
    fn publish(&mut self, state: &State) {
        let backends: Vec<Backend<'_>> = self.pods.values().map(Pod::backend).collect();
        let wanted = state.services.iter().map(|(key, service)| (key.clone(), slices(key, service, &backends)));
        let wanted = wanted.filter(|(_, slices)| !slices.is_empty()).collect();
        let failed = self.files.write(wanted).err();
        self.cluster.problem("EndpointSlices", failed.map(|error| format!("cannot be written: {error}")));
        let status: Vec<PodStatus> = self.pods.values().map(Pod::status).collect();
        self.status.send_if_modified(|old| {
            let changed = **old != status;
            if changed {
                *old = Arc::new(status);
            }
            changed
        });
    }
}

// === impl Pod ===

impl Pod {
    /// Moves on, but never back from the end.
    fn turn(&mut self, phase: Phase) {
        if self.phase != Phase::Ending {
            self.phase = phase;
        }
    }

    fn named(&self) -> timeline::Pod {
        timeline::Pod { workload: self.spec.workload.key.clone(), name: Arc::clone(&self.spec.name) }
    }

    fn seen(&self, workload: &Workload) -> Seen {
        let number = self.spec.name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let fresh = self.spec.workload.template == workload.template;
        Seen { name: Arc::clone(&self.spec.name), number, fresh, ready: self.phase == Phase::Ready }
    }

    fn backend(&self) -> Backend<'_> {
        Backend {
            name: &self.spec.name,
            namespace: self.spec.workload.key.namespace(),
            template: &self.spec.workload.template,
            address: self.spec.address,
            ready: self.phase == Phase::Ready,
            terminating: self.phase == Phase::Ending,
        }
    }

    fn status(&self) -> PodStatus {
        PodStatus {
            name: Arc::clone(&self.spec.name),
            workload: self.spec.workload.key.clone(),
            address: self.spec.address,
            port: self.spec.workload.template.ports.first().map(|port| port.number),
            phase: self.phase.clone(),
            pid: self.pid,
            restarts: self.restarts,
            since: self.since,
        }
    }
}

/// A short name for the template, as a ReplicaSet has one.
fn revision(workload: &Workload) -> u16 {
    let mut hasher = DefaultHasher::new();
    workload.template.hash(&mut hasher);
    let [a, b, ..] = hasher.finish().to_be_bytes();
    u16::from_be_bytes([a, b])
}
