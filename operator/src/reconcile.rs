//! The loop: changes go into the world, routes that they touch into the queue, and as long as this operator leads, plans are
//! carried out, many at once but one at a time for each route. All that is decided is decided here, in one task.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    time::Duration,
};

use interceptor_core::ObjectKey;
use k8s_openapi::jiff::Timestamp;
use runtime::ready::Latch;
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    apply::{Outcome, Writer},
    metrics::{Metrics, Tried},
    object::{Subject, Workload},
    observe::Probed,
    plan::{self, Settings},
    queue::Queue,
    watch::MAX_WAITING,
    world::{Event, World},
};

/// How many routes are written at once: enough to hide the API server's latency, not enough to hurt it.
const MAX_AT_ONCE: usize = 8;

/// How long one may take: a server that does not answer must not keep others from their turn, nor a route from another try.
const MAX_JOB: Duration = Duration::from_secs(15);

/// How often workloads that no watch tells of are read again.
const REREAD: Duration = Duration::from_mins(5);

/// What a job brought.
#[derive(Debug)]
enum Done {
    Read(Subject, Workload, Probed),
    /// How it went, how long it took, and when to look again though nothing changes.
    Tried(Subject, Outcome, Duration, Option<Instant>),
}

/// Reconciles routes.
pub struct Reconciler {
    world: World,
    queue: Queue<Subject>,
    jobs: JoinSet<Done>,
    subjects: HashMap<Id, Subject>,
    writer: Writer,
    settings: Settings,
    metrics: Metrics,
    /// Whose demand has to be known.
    demanded: watch::Sender<BTreeSet<ObjectKey>>,
    leads: bool,
    /// Whether ports that statuses tell have been reserved since it leads.
    reserved: bool,
    /// Held until everything has been listed once.
    latch: Option<Latch>,
}

// === impl Reconciler ===

impl Reconciler {
    /// A reconciler that knows nothing yet.
    pub fn new(writer: Writer, settings: Settings, metrics: Metrics, latch: Latch) -> Self {
        Self {
            world: World::guarded(settings.host_guard)
                .shadowed(settings.ports.clone())
                .with_agents(settings.agents.clone()),
            demanded: watch::Sender::default(),
            queue: Queue::default(),
            jobs: JoinSet::new(),
            subjects: HashMap::new(),
            writer,
            settings,
            metrics,
            leads: false,
            reserved: false,
            latch: Some(latch),
        }
    }

    /// The routes whose demand it wants to be told of.
    pub fn demanded(&self) -> watch::Receiver<BTreeSet<ObjectKey>> {
        self.demanded.subscribe()
    }

    /// Runs for as long as `changes` come.
    ///
    /// Cancel safe: dropped, writes that are under way may or may not happen, and the next operator starts from there.
    pub async fn run(
        mut self,
        mut changes: mpsc::Receiver<Event>,
        mut leads: watch::Receiver<bool>,
    ) -> Result<(), Infallible> {
        let mut batch = Vec::new();
        let mut reread = tokio::time::interval(REREAD);
        loop {
            self.start();
            let due = self.due();
            tokio::select! {
                taken = changes.recv_many(&mut batch, MAX_WAITING) => {
                    if taken == 0 {
                        return Ok(());
                    }
                    self.take(batch.drain(..));
                }
                Some(joined) = self.jobs.join_next_with_id(), if !self.jobs.is_empty() => self.joined(joined),
                Ok(()) = leads.changed() => {
                    let leads = *leads.borrow_and_update();
                    self.lead(leads);
                }
                _ = reread.tick() => {
                    self.world.forget_unwatched();
                    self.enqueue();
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    fn take(&mut self, events: impl Iterator<Item = Event>) {
        self.world.advance(Instant::now());
        self.world.apply(events);
        if self.world.is_synced()
            && let Some(latch) = self.latch.take()
        {
            tracing::info!("everything is listed");
            latch.release();
        }
        self.demand();
        self.enqueue();
    }

    /// Whoever does not lead need not know.
    fn demand(&self) {
        let wanted = if self.leads { self.world.demanded() } else { BTreeSet::new() };
        self.demanded.send_if_modified(|known| {
            let differs = *known != wanted;
            *known = wanted;
            differs
        });
    }

    fn lead(&mut self, leads: bool) {
        if leads == self.leads {
            return;
        }
        self.leads = leads;
        self.reserved = false;
        self.metrics.lead(leads);
        self.world.advance(Instant::now());
        self.world.forget_demand();
        self.demand();
        if leads {
            // What another leader left may be anything.
            let now = Instant::now();
            for subject in self.world.subjects() {
                self.queue.push(subject, now);
            }
        } else {
            self.queue.clear();
        }
    }

    fn enqueue(&mut self) {
        let dirty = self.world.take_dirty();
        if self.leads {
            let now = Instant::now();
            for subject in dirty {
                self.queue.push(subject, now);
            }
        }
        self.metrics.waiting(self.queue.len());
        self.metrics.ports(self.world.ports());
    }

    fn may_start(&self) -> bool {
        self.leads && self.latch.is_none() && self.jobs.len() < MAX_AT_ONCE
    }

    /// When something has to be started; never while nothing may be.
    fn due(&self) -> Option<Instant> {
        self.queue.next().filter(|_| self.may_start())
    }

    /// Starts what is due.
    fn start(&mut self) {
        if self.may_start() && !std::mem::replace(&mut self.reserved, true) {
            self.world.advance(Instant::now());
            self.world.reserve_ports();
        }
        while self.may_start() {
            let now = Instant::now();
            let Some(subject) = self.queue.pop(now) else { break };
            if let Some(workload) = self.world.unread(&subject) {
                let writer = self.writer.clone();
                self.spawn(subject.clone(), async move {
                    let probed = timeout(MAX_JOB, writer.read_probe(&workload)).await;
                    let probed = probed.unwrap_or(Probed::Unreadable);
                    Done::Read(subject, workload, probed)
                });
                continue;
            }
            self.world.advance(now);
            let Some(observed) = self.world.observe(&subject) else {
                self.queue.done(subject, false, now);
                continue;
            };
            let at = Timestamp::now();
            let again = observed.again;
            let plan = plan::plan(&observed, &self.settings, at);
            if plan.is_empty() {
                self.metrics.tried(&subject, Tried::Success, Duration::ZERO);
                self.queue.done(subject.clone(), false, now);
                self.look_again(subject, again);
                continue;
            }
            let writer = self.writer.clone();
            self.spawn(subject.clone(), async move {
                let outcome = timeout(MAX_JOB, writer.carry_out(&observed, plan, at)).await;
                let outcome = outcome.unwrap_or_else(|_elapsed| Outcome {
                    failure: Some(format!("the API server does not answer within {} s", MAX_JOB.as_secs())),
                    ..Outcome::default()
                });
                Done::Tried(subject, outcome, now.elapsed(), again)
            });
        }
        self.metrics.waiting(self.queue.len());
        self.metrics.working(self.jobs.len());
    }

    fn spawn(&mut self, subject: Subject, job: impl Future<Output = Done> + Send + 'static) {
        let handle = self.jobs.spawn(job);
        self.subjects.insert(handle.id(), subject);
    }

    fn joined(&mut self, joined: Result<(Id, Done), JoinError>) {
        match joined {
            Ok((id, done)) => {
                self.subjects.remove(&id);
                self.done(done);
            }
            Err(error) => {
                let Some(subject) = self.subjects.remove(&error.id()) else { return };
                tracing::error!(route = %subject.key, kind = subject.kind_name(), %error, "a job panicked");
                self.metrics.tried(&subject, Tried::Error, Duration::ZERO);
                self.queue.done(subject, true, Instant::now());
            }
        }
    }

    fn done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Read(subject, workload, probed) => {
                self.world.learn(workload, probed);
                self.queue.done(subject.clone(), false, now);
                self.queue.push(subject, now);
            }
            Done::Tried(subject, outcome, took, again) => {
                let Outcome { items, failure } = outcome;
                self.world.refresh(items);
                let tried = if failure.is_some() { Tried::Error } else { Tried::Success };
                self.metrics.tried(&subject, tried, took);
                if let Some(error) = &failure {
                    tracing::warn!(route = %subject.key, kind = subject.kind_name(), error, "cannot reconcile");
                }
                self.queue.done(subject.clone(), failure.is_some(), now);
                self.look_again(subject, again);
            }
        }
        self.enqueue();
    }

    fn look_again(&mut self, subject: Subject, again: Option<Instant>) {
        if let Some(again) = again.filter(|_| self.leads) {
            self.queue.push(subject, again);
        }
    }
}

#[cfg(test)]
mod tests {
    use interceptor_core::{index::HostGuard, route::RouteKind};
    use kube::{Client, client::Body};
    use runtime::ready::Ready;
    use serde_json::json;

    use super::*;
    use crate::{
        object::Object,
        world::{Item, Kind},
    };

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_not_answered_is_tried_again() {
        let (asked, mut requests) = mpsc::channel(MAX_WAITING);
        let nobody = tower::service_fn(move |request: http::Request<Body>| {
            asked.try_send(request.uri().path().to_owned()).expect("few requests");
            std::future::pending::<Result<http::Response<Body>, std::io::Error>>()
        });
        let writer = Writer::new(Client::new(nobody, "n"), "operator".to_owned());
        let scaler_address = "scaler:9090".to_owned();
        let settings = Settings { scaler_address, host_guard: HostGuard::Off, ports: 20_000..=20_009, agents: None };
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let reconciler = Reconciler::new(writer, settings, metrics, Ready::new().latch("watch"));
        let (changes, events) = mpsc::channel(MAX_WAITING);
        let (leads_tx, leads) = watch::channel(false);
        runtime::task::spawn("reconcile", reconciler.run(events, leads));
        leads_tx.send_replace(true);
        let route = json!({"metadata": {"namespace": "n", "name": "r"}, "spec": {"target": {"service": "web", "port": 80},
            "rules": [], "scalingMetric": {"concurrency": {"targetValue": 1}}}});
        let route = Object::read(RouteKind::InterceptorRoute, &serde_json::from_value(route).unwrap()).unwrap();
        for kind in Kind::ALWAYS {
            changes.send(Event::All(kind, Vec::new())).await.unwrap();
        }
        changes.send(Event::Put(Item::Route(Box::new(route)))).await.unwrap();
        let first = requests.recv().await.unwrap();
        assert!(first.ends_with("/interceptorroutes/r/status"), "{first}");
        let at = Instant::now();
        assert_eq!(timeout(4 * MAX_JOB, requests.recv()).await.expect("another try"), Some(first));
        assert!(at.elapsed() >= MAX_JOB);
    }
}
