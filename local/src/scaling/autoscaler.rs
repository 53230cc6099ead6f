//! One loop a ScaledObject: listens to `StreamIsActive`, polls, and asks the decisions of `keda` and `hpa`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use interceptor_core::ObjectKey;
use runtime::task;
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, MissedTickBehavior, interval, interval_at, sleep},
};

use super::{
    client::{ClientError, Dialer, ScalerClient, Spec},
    hpa::{Hpa, Metric, Observation},
    keda::{Activity, Memory, Retry},
    scaled::{ScaledWorkload, Trigger},
};
use crate::{
    cluster::Cluster,
    kubelet::{Phase, PodStatus},
    timeline::{Actor, Event},
};

/// Signals that may wait: more than one means the same as one.
const MAX_SIGNALS: usize = 4;

/// What all loops share.
#[derive(Clone, Debug)]
pub struct Autoscaler {
    /// Where replicas are asked for.
    pub cluster: Cluster,
    /// The way to scalers.
    pub dialer: Dialer,
    /// How many replicas are ready.
    pub pods: watch::Receiver<Arc<Vec<PodStatus>>>,
    /// How often the HPA decides; 15 seconds in a cluster.
    pub sync: Duration,
    /// The zero of all times.
    pub start: Instant,
}

/// One ScaledObject's loop.
struct Loop {
    shared: Autoscaler,
    config: watch::Receiver<Arc<ScaledWorkload>>,
    memory: Memory,
    hpa: Hpa,
}

/// A trigger that can be asked.
struct Source {
    client: ScalerClient,
    specs: Vec<Spec>,
}

/// A loop's handle: dropping it ends the loop.
struct Running {
    config: watch::Sender<Arc<ScaledWorkload>>,
    task: AbortHandle,
}

/// Ends a task with its owner.
struct Abort(AbortHandle);

// === impl Autoscaler ===

impl Autoscaler {
    /// Keeps one loop for each ScaledObject there is. Never ends; dropping the future ends all loops.
    pub async fn run(self) {
        let mut running: BTreeMap<ObjectKey, Running> = BTreeMap::new();
        let mut changes = self.cluster.changes();
        loop {
            let state = Arc::clone(&changes.borrow_and_update());
            running.retain(|key, _| state.scaled.contains_key(key));
            for (key, scaled) in &state.scaled {
                match running.get(key) {
                    Some(known) => known.update(scaled),
                    None => drop(running.insert(key.clone(), self.start_loop(scaled))),
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn start_loop(&self, scaled: &Arc<ScaledWorkload>) -> Running {
        let (config, receiver) = watch::channel(Arc::clone(scaled));
        let memory = Memory::new(self.start.elapsed());
        let one = Loop { shared: self.clone(), config: receiver, memory, hpa: Hpa::default() };
        Running { config, task: task::spawn("autoscaler", one.run()).abort_handle() }
    }

    fn replicas(&self, workload: &ObjectKey) -> Option<u32> {
        self.cluster.load().replicas.get(workload).copied()
    }

    fn ready(&self, workload: &ObjectKey) -> u32 {
        let pods = self.pods.borrow();
        let ready = pods.iter().filter(|pod| pod.workload == *workload && pod.phase == Phase::Ready).count();
        u32::try_from(ready).unwrap_or(u32::MAX)
    }
}

// === impl Running ===

impl Running {
    fn update(&self, scaled: &Arc<ScaledWorkload>) {
        self.config.send_if_modified(|old| {
            let changed = **old != **scaled;
            if changed {
                *old = Arc::clone(scaled);
            }
            changed
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl Loop ===

impl Loop {
    async fn run(mut self) {
        loop {
            let scaled = Arc::clone(&self.config.borrow_and_update());
            self.follow(&scaled).await;
        }
    }

    /// Until the ScaledObject changes.
    async fn follow(&mut self, scaled: &ScaledWorkload) {
        let mut sources = self.sources(scaled);
        let (signal, mut signals) = mpsc::channel(MAX_SIGNALS);
        let streams: Vec<Abort> = scaled
            .triggers
            .iter()
            .zip(&sources)
            .filter(|(trigger, _)| trigger.push)
            .map(|(_, source)| self.open_stream(scaled, source.client.clone(), signal.clone()))
            .collect();
        let mut poll = interval(scaled.polling);
        let mut sync = interval_at(Instant::now() + self.shared.sync, self.shared.sync);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                changed = self.config.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    break;
                }
                Some(()) = signals.recv() => self.wake(scaled),
                _ = poll.tick() => self.poll(scaled, &mut sources).await,
                _ = sync.tick() => self.balance(scaled, &mut sources).await,
            }
        }
        drop(streams);
    }

    fn sources(&self, scaled: &ScaledWorkload) -> Vec<Source> {
        let connect = |trigger: &Trigger| match self.shared.dialer.client(scaled, trigger) {
            Ok(client) => Some(Source { client, specs: Vec::new() }),
            Err(error) => {
                self.complain(scaled, Some(&error));
                None
            }
        };
        scaled.triggers.iter().filter_map(connect).collect()
    }

    fn open_stream(&self, scaled: &ScaledWorkload, client: ScalerClient, signal: mpsc::Sender<()>) -> Abort {
        let (key, workload) = (scaled.key.clone(), scaled.workload.clone());
        let shared = self.shared.clone();
        // Repeated while demand lasts; only at zero does it tell when a wake began.
        let note = move || {
            if shared.replicas(&workload) == Some(0) {
                shared.cluster.timeline().add(Event::Signal { scaled: key.clone() });
            }
        };
        Abort(task::spawn("stream", listen(client, signal, note)).abort_handle())
    }

    /// `StreamIsActive` said true.
    fn wake(&mut self, scaled: &ScaledWorkload) {
        self.decide(scaled, Activity::Active, || "a request is waiting".to_owned());
    }

    /// KEDA's polling interval: metrics' specs and activity.
    async fn poll(&mut self, scaled: &ScaledWorkload, sources: &mut [Source]) {
        let (mut active, mut error) = (false, None);
        for source in sources {
            match source.poll().await {
                Ok(result) => active |= result,
                Err(failed) => error = Some(failed),
            }
        }
        self.complain(scaled, error.as_ref());
        let activity = match (active, error) {
            (true, _) => Activity::Active,
            (false, None) if !scaled.triggers.is_empty() => Activity::Inactive,
            (false, _) => Activity::Unknown,
        };
        let idle = self.memory.last_active().map(|at| self.now().saturating_sub(at));
        self.decide(scaled, activity, || match idle {
            _ if activity == Activity::Active => "it is active".to_owned(),
            Some(idle) => format!("idle for {:.1} s", idle.as_secs_f64()),
            None => "never active".to_owned(),
        });
    }

    fn decide(&mut self, scaled: &ScaledWorkload, activity: Activity, why: impl FnOnce() -> String) {
        let now = self.now();
        let Some(current) = self.shared.replicas(&scaled.workload) else { return };
        if let Some(to) = self.memory.decide(now, activity, current, &scaled.limits) {
            self.shared.cluster.scale(&scaled.workload, to, Actor::Keda, why);
        }
    }

    /// The HPA's sync period.
    async fn balance(&mut self, scaled: &ScaledWorkload, sources: &mut [Source]) {
        if self.shared.replicas(&scaled.workload).unwrap_or(0) == 0 {
            return;
        }
        let mut metrics: Vec<Option<Metric>> = Vec::new();
        for source in sources {
            source.read(&mut metrics).await;
        }
        // Read again: the calls above took time, and KEDA may have gone to zero meanwhile.
        let Some(current) = self.shared.replicas(&scaled.workload) else { return };
        let ready = self.shared.ready(&scaled.workload);
        let seen = Observation { current, ready, metrics: &metrics, bounds: scaled.limits.bounds() };
        if let Some(to) = self.hpa.decide(self.now(), seen, &scaled.behavior) {
            self.shared.cluster.scale(&scaled.workload, to, Actor::Hpa, || explain(&metrics));
        }
    }

    fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    fn complain(&self, scaled: &ScaledWorkload, error: Option<&ClientError>) {
        self.shared.cluster.problem(&format!("ScaledObject {}", scaled.key), error.map(ToString::to_string));
    }
}

/// Keeps a stream open, notes and passes on each `true`.
async fn listen(client: ScalerClient, signal: mpsc::Sender<()>, note: impl Fn()) {
    let mut retry = Retry::default();
    loop {
        let clean = match client.stream().await {
            Err(_unreachable) => false,
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(message)) if message.result => {
                        note();
                        // Full means that the loop has signals to act on already.
                        let _ = signal.try_send(());
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break true,
                    Err(_broken) => break false,
                }
            },
        };
        sleep(retry.after(clean)).await;
    }
}

fn explain(metrics: &[Option<Metric>]) -> String {
    let one = |metric: &Metric| format!("metric {:.1}, target {}", metric.value, metric.target);
    metrics.iter().flatten().map(one).collect::<Vec<_>>().join("; ")
}

// === impl Source ===

impl Source {
    /// Learns the specs, which may have changed, and the activity.
    async fn poll(&mut self) -> Result<bool, ClientError> {
        self.specs = self.client.specs().await?;
        self.client.is_active().await
    }

    /// Reads the metrics; `None` for one that has no value.
    async fn read(&mut self, metrics: &mut Vec<Option<Metric>>) {
        if self.specs.is_empty() {
            metrics.push(None);
        }
        for spec in &self.specs {
            metrics.push(self.client.metric(spec).await.ok());
        }
    }
}
