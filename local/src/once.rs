//! The demonstration without a terminal: sends requests, checks each step from the outside, and reports.
//!
//! Nothing here makes a step happen but requests and their absence. Replicas are counted among the kernel's processes,
//! states are read from the interceptor, pods are told by their answers.

use std::{fmt, future::Future, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cold_start::{Phases, millis},
    request::{Load, Reply, RequestError, Tally},
    state::{Kernel, Route, RouteState, State},
    world::{ScaledRoute, World},
};

#[cfg(test)]
mod tests;

/// How often something that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(15);
/// No step takes longer, or it is not going to happen.
const STEP: Duration = Duration::from_secs(30);
/// Cool-down and stabilisation come on top.
const IDLE_STEP: Duration = Duration::from_mins(1);

/// What `--once` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The route; the first that is scaled, if not given.
    pub route: Option<interceptor_core::ObjectKey>,
    /// Requests at once.
    pub load: usize,
    /// What they ask for.
    pub load_path: String,
    /// How long a number of replicas must last to be called settled: longer than the HPA's sync period.
    pub settle: Duration,
}

/// The summary.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether every step happened.
    pub ok: bool,
    /// The interceptor's version.
    pub version: String,
    /// `none` or `self`.
    pub dataplane: String,
    /// Why this level.
    pub dataplane_reason: String,
    /// The route that was used.
    pub route: String,
    /// The steps that were tried, in order; the last one failed unless `ok`.
    pub steps: Vec<Step>,
    /// Where the time of the cold start went.
    pub cold_start: Option<ColdStartReport>,
    /// Most replicas at once.
    pub peak_replicas: usize,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Connections to pods, as the kernel counted them.
    pub kernel: Option<KernelReport>,
    /// How long all of it took.
    pub took_ms: u64,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// Whether it happened.
    pub ok: bool,
    /// How long it took.
    pub took_ms: u64,
    /// What was seen.
    pub detail: String,
}

/// One cold start.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ColdStartReport {
    /// Arrival to first byte.
    pub total_micros: u64,
    /// The parts.
    pub micros: Phases,
}

/// The kernel's counts.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelReport {
    /// Connections established.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// Connections refused or timed out.
    pub failed: u64,
}

/// Runs the steps one after the other.
struct Steps<'a> {
    world: &'a World,
    options: &'a Options,
    report: Report,
    progress: &'a mut (dyn FnMut(&str) + Send),
}

/// A step did not happen; the report says which and why.
struct Failed;

/// Runs all steps. Each line of progress goes to `progress`.
pub async fn run(world: &World, options: &Options, progress: &mut (dyn FnMut(&str) + Send)) -> Report {
    let started = Instant::now();
    let mut steps = Steps { world, options, report: Report::default(), progress };
    steps.report.ok = steps.all().await.is_ok();
    let mut report = steps.report;
    report.took_ms = whole_millis(started.elapsed());
    report
}

// === impl Steps ===

impl Steps<'_> {
    async fn all(&mut self) -> Result<(), Failed> {
        let world = self.world;
        let route = self.step("start", STEP, find_route(world, self.options)).await?;
        self.report.route = route.name.key.to_string();
        self.step("at zero", IDLE_STEP, at_zero(world, &route)).await?;
        self.step("held and woken", STEP, wake(world, &route)).await?;
        self.report.answered += 1;
        self.step("warm", STEP, warm(world, &route)).await?;
        self.report.answered += 1;
        self.read_state(&route).await;
        let load = Load::start(&world.requester, &route.address, &self.options.load_path, self.options.load);
        let mut peak = 0;
        let grown =
            self.step("grown under load", STEP, grow(world, &route, &load, self.options.settle, &mut peak)).await;
        self.report.peak_replicas = peak;
        self.count(&load.tally());
        drop(load);
        grown?;
        self.step("idle, back to zero", IDLE_STEP, at_zero(world, &route)).await?;
        self.step("kernel counts", STEP, counts_agree(world, &route)).await?;
        self.read_state(&route).await;
        Ok(())
    }

    /// Waits for a step, and gives up when its time is over or a process it needs has ended.
    async fn step<T: Outcome>(
        &mut self,
        name: &'static str,
        patience: Duration,
        happening: impl Future<Output = Result<T, String>>,
    ) -> Result<T, Failed> {
        let started = Instant::now();
        let world = self.world;
        let result = tokio::select! {
            result = timeout(patience, happening) => {
                let late = |_elapsed| Err(format!("it did not happen within {} s{}", patience.as_secs(), complaints(world)));
                result.unwrap_or_else(late)
            }
            broken = process_ended(world) => Err(broken),
        };
        let detail = match &result {
            Ok(outcome) => outcome.detail(),
            Err(why) => why.clone(),
        };
        let step = Step { name, ok: result.is_ok(), took_ms: whole_millis(started.elapsed()), detail };
        (self.progress)(&step.to_string());
        self.report.steps.push(step);
        result.map_err(|_why| Failed)
    }

    fn count(&mut self, tally: &Tally) {
        self.report.answered += tally.answered;
        self.report.failed += tally.failed;
    }

    async fn read_state(&mut self, route: &ScaledRoute) {
        let Ok(state) = self.world.state.fetch().await else { return };
        let entries = self.world.cluster.timeline().since(0);
        let key = &route.name.key;
        let ours = |cold: &&crate::state::ColdStart| cold.namespace == key.namespace() && cold.name == key.name();
        let phases = state.cold_starts.iter().find(ours).and_then(|cold| self.world.explain(cold, &entries));
        if let Some(micros) = phases.filter(|_| self.report.cold_start.is_none()) {
            (self.progress)(&format!("  where the time went: {micros}"));
            self.report.cold_start = Some(ColdStartReport { total_micros: micros.total(), micros });
        }
        if let Some(Kernel { opened, closed, failed, .. }) = ours_of(&state, route).and_then(|route| route.kernel) {
            self.report.kernel = Some(KernelReport { opened, closed, failed });
        }
        self.report.version = state.version;
        self.report.dataplane = state.dataplane.level;
        self.report.dataplane_reason = state.dataplane.reason;
    }
}

/// What a step found.
trait Outcome {
    fn detail(&self) -> String;
}

impl Outcome for String {
    fn detail(&self) -> String {
        self.clone()
    }
}

impl Outcome for () {
    fn detail(&self) -> String {
        String::new()
    }
}

impl Outcome for ScaledRoute {
    fn detail(&self) -> String {
        format!("{} {} scales Deployment {}", self.name.kind, self.name.key, self.scaled.workload)
    }
}

/// The interceptor is ready and knows the route.
async fn find_route(world: &World, options: &Options) -> Result<ScaledRoute, String> {
    loop {
        let mut routes = world.scaled_routes().into_iter();
        let route = routes.find(|route| options.route.as_ref().is_none_or(|wanted| route.name.key == *wanted));
        if let (Some(route), Ok(state)) = (route, world.state.fetch().await)
            && state.ready
            && ours_of(&state, &route).is_some()
        {
            return Ok(route);
        }
        sleep(LOOK).await;
    }
}

/// No process, no endpoint, no request.
async fn at_zero(world: &World, route: &ScaledRoute) -> Result<String, String> {
    loop {
        if world.replica_processes(&route.scaled.workload).is_empty()
            && route_state(world, route).await.is_some_and(|seen| is_cold(&seen))
        {
            return Ok("no replica process, no endpoint, no request in flight".to_owned());
        }
        sleep(LOOK).await;
    }
}

fn is_cold(route: &Route) -> bool {
    route.state == RouteState::Cold && route.upstream.endpoints.is_empty() && route.in_flight == 0
}

/// One request at zero is held, wakes one replica and is answered.
async fn wake(world: &World, route: &ScaledRoute) -> Result<String, String> {
    let request = world.requester.send(&route.address, "");
    let seen_held = async {
        loop {
            if route_state(world, route).await.is_some_and(|route| route.held > 0 && route.in_flight > 0) {
                return;
            }
            sleep(LOOK).await;
        }
    };
    tokio::pin!(request);
    tokio::select! {
        biased;
        () = seen_held => {}
        reply = &mut request => return Err(format!("it was answered without having been held: {}", told(&reply))),
    }
    let reply = request.await;
    let replicas = world.replica_processes(&route.scaled.workload).len();
    match &reply {
        Ok(answer) if answer.status.is_success() && answer.cold == Some(true) && replicas > 0 => Ok(format!(
            "held, 0 → {replicas} replica, {} after {}, X-KEDA-HTTP-Cold-Start: true, {:?}",
            answer.status.as_u16(),
            millis(whole_micros(answer.took)),
            answer.line
        )),
        _ => Err(format!(
            "expected a success with X-KEDA-HTTP-Cold-Start: true, got {}, {replicas} replicas",
            told(&reply)
        )),
    }
}

/// The next request is not held.
async fn warm(world: &World, route: &ScaledRoute) -> Result<String, String> {
    let reply = world.requester.send(&route.address, "").await;
    match &reply {
        Ok(answer) if answer.status.is_success() && answer.cold == Some(false) => Ok(format!(
            "{} after {}, X-KEDA-HTTP-Cold-Start: false",
            answer.status.as_u16(),
            millis(whole_micros(answer.took))
        )),
        _ => Err(format!("expected a success with X-KEDA-HTTP-Cold-Start: false, got {}", told(&reply))),
    }
}

/// Load makes more than one replica, the number lasts, and every one of them answers.
async fn grow(
    world: &World,
    route: &ScaledRoute,
    load: &Load,
    settle: Duration,
    peak: &mut usize,
) -> Result<String, String> {
    let workload = &route.scaled.workload;
    let mut lasting: Option<(usize, Instant)> = None;
    loop {
        let tally = load.tally();
        if let Some(failure) = tally.failure {
            return Err(format!("a request under load failed: {failure}"));
        }
        let running = world.replica_processes(workload).len();
        *peak = (*peak).max(running);
        let wanted = world.cluster.load().replicas.get(workload).copied().unwrap_or(0);
        let listed = route_state(world, route).await.map_or(0, |route| route.upstream.endpoints.len());
        let agreed = running == usize::try_from(wanted).unwrap_or(usize::MAX) && listed == running;
        lasting = lasting
            .filter(|(count, _)| agreed && *count == running)
            .or_else(|| agreed.then(|| (running, Instant::now())));
        let settled = lasting.is_some_and(|(_, since)| since.elapsed() >= settle);
        if running > 1 && settled && tally.pods.len() == running {
            return Ok(format!(
                "1 → {running} replicas, {} requests answered by {running} pods, none failed",
                tally.answered
            ));
        }
        sleep(LOOK).await;
    }
}

/// The data plane saw connections, if it says that it counts them.
async fn counts_agree(world: &World, route: &ScaledRoute) -> Result<String, String> {
    loop {
        let Ok(state) = world.state.fetch().await else {
            sleep(LOOK).await;
            continue;
        };
        if state.dataplane.level == "none" {
            return Ok(format!("data plane level none: {}", state.dataplane.reason));
        }
        let kernel = ours_of(&state, route).and_then(|route| route.kernel).unwrap_or_default();
        // Pods are gone: whatever was opened is closed.
        if kernel.opened > 0 && kernel.opened == kernel.closed {
            return Ok(format!("the kernel saw {} connections to pods open and close", kernel.opened));
        }
        sleep(LOOK).await;
    }
}

async fn route_state(world: &World, route: &ScaledRoute) -> Option<Route> {
    ours_of(&world.state.fetch().await.ok()?, route).cloned()
}

fn ours_of<'a>(state: &'a State, route: &ScaledRoute) -> Option<&'a Route> {
    state.route(route.name.key.namespace(), route.name.key.name())
}

/// Until a process that is needed has ended.
async fn process_ended(world: &World) -> String {
    loop {
        if let Some(broken) = world.broken() {
            return broken;
        }
        sleep(LOOK).await;
    }
}

/// What the parts complain about, to go with a step that did not happen.
fn complaints(world: &World) -> String {
    let state = world.cluster.load();
    let all: Vec<String> = state.problems.iter().map(|(object, message)| format!("; {object}: {message}")).collect();
    all.concat()
}

fn told(reply: &Result<Reply, RequestError>) -> String {
    match reply {
        Ok(reply) => {
            let cold = reply.cold.map_or("missing".to_owned(), |cold| cold.to_string());
            format!("status {} (X-KEDA-HTTP-Cold-Start: {cold}) {:?}", reply.status.as_u16(), reply.line)
        }
        Err(error) => error.to_string(),
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn whole_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

// === impl Step ===

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.ok { "✔" } else { "✘" };
        let seconds = Duration::from_millis(self.took_ms).as_secs_f64();
        write!(f, "{mark} {:<20} {seconds:>5.1} s  {}", self.name, self.detail)
    }
}

// === impl Report ===

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::from_millis(self.took_ms).as_secs_f64();
        let happened = self.steps.iter().filter(|step| step.ok).count();
        if self.ok {
            write!(f, "All {happened} steps happened in {seconds:.1} s")?;
        } else {
            let failed = self.steps.iter().find(|step| !step.ok).map_or("start", |step| step.name);
            write!(f, "FAILED at \"{failed}\" after {seconds:.1} s")?;
        }
        write!(f, ": {} requests answered, {} failed, ", self.answered, self.failed)?;
        write!(f, "{} replicas at most, data plane {}", self.peak_replicas, self.dataplane)
    }
}
