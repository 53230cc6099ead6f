//! Puts the agent together: binds its port, then runs its tasks until the shutdown.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use dataplane::{
    Hold, HoldError,
    count::{Count, CountConfig, CountError},
    steer::Steer,
};
use interceptor_core::index::Index;
use prometheus_client::registry::Registry;
use runtime::{
    admin, descriptors, log,
    metrics::{Exposition, Metrics},
    ready::Ready,
    signal::Shutdown,
    snapshot, task,
    watch::WatchMetrics,
};
use telemetry::Exporter;
use tokio::{net::TcpListener, sync::mpsc};

use super::{
    alone::{Alone, NAME, alone},
    backlog,
    config::Config,
    count::{self, CountMetrics, Wakes},
    hold::{self, HoldMetrics},
    pins::{Part, Pins},
    state::State,
    steer::{self, SteerMetrics},
    uncounted,
};
use crate::{
    coldstart::Signals,
    control::{
        counts::{CountsService, Edges, Publisher},
        discover::Discover,
        kernel::Kernel,
    },
    probe::{self, ProbeMetrics, Prober},
};

/// Who tells metrics.
const SERVICE: telemetry::Service =
    telemetry::Service { name: "rouse-agent", version: env!("CARGO_PKG_VERSION"), scope: "rouse-agent" };

/// Pods that have begun to listen and that the hold has not looked at yet. When it is full, what waits for further ones
/// waits for its next try.
const LISTENS: usize = 256;

/// An agent with its port, that does nothing yet.
#[derive(Debug)]
pub struct Bound {
    /// Its port, and that it is the only one of the node.
    admin: (admin::Bound, Alone),
    node: String,
    ready: Ready,
    discover: Discover,
    prober: Prober,
    publisher: Publisher,
    hold: hold::Task,
    count: count::Task,
    steer: steer::Task,
    backlog: backlog::Task,
    uncounted: uncounted::Task,
    exporter: Option<Exporter>,
}

/// Why an agent could not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The port can't be listened on.
    #[error("cannot listen on {addr} for admin (ROUSE_AGENT_PORT)")]
    Bind {
        /// The port.
        addr: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another agent runs on this node.
    #[error(
        "another agent runs on this node, and each would hold and count what the other does: \
         it has the name @{NAME} in the node's network (ss --unix --listening --processes)"
    )]
    Second(#[source] io::Error),
    /// Connections can't be held, and that is required.
    #[error("connections cannot be held, which is required")]
    Hold(#[source] HoldError),
    /// What pods take can't be counted, and that is required.
    #[error("requests to pods cannot be counted, which is required")]
    Count(#[source] CountError),
    /// A part that everything relies on ended.
    #[error(transparent)]
    Task(#[from] task::Ended),
}

/// Binds the port and starts nothing else. Must be called within the runtime.
pub async fn build(config: Config) -> Result<Bound, AgentError> {
    // Whatever keeps it from starting must do so before it gives the kernel anything.
    let (alone, listener) = place(config.admin).await?;
    let opened = Opened::new(&config)?;
    let Config { admin: addr, log, sources, node, holds, interceptors, steering: which, metrics, .. } = config;
    let ready = Ready::new();
    let edges = Arc::new(Edges::default());
    // All that is held is counted on one thread.
    let index = Index::new(1, Arc::clone(&edges) as _);
    let (writer, reader) = snapshot::channel(index.snapshot());
    let mut registry = Metrics::new("rouse-agent", env!("CARGO_PKG_VERSION"));
    let probe_metrics = ProbeMetrics::register(registry.registry());
    let (prober, asked, verdicts) = probe::channel(reader.clone(), probe_metrics);
    let watch_metrics = WatchMetrics::register(registry.registry());
    // Nodes have nothing to do with what is reached by a name.
    let (_, found) = mpsc::channel(1);
    let mut discover =
        Discover::new((sources, watch_metrics), (verdicts, found), index, writer, &ready, registry.registry());
    let pins = pins(&opened, registry.registry());
    let Opened { holding, steering, counting } = opened;
    let run = counting.as_ref().ok().map(Count::run);
    let count_metrics = CountMetrics::register(registry.registry());
    let (listens, listening) = mpsc::channel(LISTENS);
    let wakes = Wakes { edges: Arc::clone(&edges), hold: listens, prober: asked };
    let namespaces = discover.follow_namespaces();
    let interceptors = discover.follow(interceptors);
    let origins = (interceptors.clone(), namespaces.clone());
    let count = count::Task::new((counting, pins.clone()), reader.clone(), origins, wakes, count_metrics);
    CountMetrics::register_routes(registry.registry(), reader.clone(), count.taken());
    let counted = (count.seen(), count.report(), count.taken());
    let uncounted = uncounted::Task::new(node.clone(), counted, registry.registry());
    let backlog = backlog::Task::new(node.clone(), reader.clone(), registry.registry());
    let hold_metrics = HoldMetrics::register(registry.registry());
    let hold = hold::Task::new(
        node.clone(),
        (holding.map_err(|error| error.to_string()), holds),
        reader.clone(),
        (listening, namespaces, count.seen()),
        hold_metrics,
    );
    let steer_metrics = SteerMetrics::register(registry.registry());
    let steer = steer::Task::new((steering, pins.clone()), which, reader.clone(), interceptors, steer_metrics);
    let state = State {
        node: node.clone(),
        ready: ready.clone(),
        reader: reader.clone(),
        problems: discover.problems(),
        hold: hold.report(),
        count: count.report(),
        taken: count.taken(),
        steer: steer.report(),
        backlog: backlog.report(),
        uncounted: uncounted.report(),
        pins,
    };
    let kernel = Kernel::of_pods(reader.clone(), count.taken(), backlog.waiting(), uncounted.report().upstreams);
    let publisher = Publisher::of_run(run, edges, reader, kernel, Signals::default());
    let exposition = registry.into_exposition();
    let exporter = metrics.map(|config| Exporter::new(config, &exposition, SERVICE));
    let server = server(log.as_ref(), (&ready, &exposition), state, &publisher);
    let admin = (server.at(listener).map_err(|source| AgentError::Bind { addr, source })?, alone);
    Ok(Bound { admin, node, ready, discover, prober, publisher, hold, count, steer, backlog, uncounted, exporter })
}

/// The node's only agent's place, and its port.
async fn place(admin: SocketAddr) -> Result<(Alone, TcpListener), AgentError> {
    let alone = alone(NAME).await.map_err(AgentError::Second)?;
    let listener = TcpListener::bind(admin).await.map_err(|source| AgentError::Bind { addr: admin, source })?;
    Ok((alone, listener))
}

/// What the kernel has taken, each with why not if it has not.
struct Opened {
    holding: Result<Hold, HoldError>,
    steering: Result<(Steer, PathBuf), String>,
    counting: Result<Count, CountError>,
}

/// What of it outlives the agent.
fn pins(opened: &Opened, registry: &mut Registry) -> Pins {
    let Opened { holding, steering, counting } = opened;
    let pins = Pins::register(registry);
    if let Ok(hold) = holding {
        pins.tell(Part::Hold, hold.not_pinned());
    }
    if let Ok((steer, _)) = steering {
        pins.tell(Part::Steer, steer.not_pinned());
    }
    if let Ok(count) = counting {
        pins.tell(Part::Count, count.not_pinned());
    }
    pins
}

/// What is served at the agent's port.
fn server(
    log: Option<&log::Handle>,
    (ready, exposition): (&Ready, &Exposition),
    state: State,
    publisher: &Publisher,
) -> admin::Server {
    let grpc = tonic::service::Routes::new(CountsService::server(publisher)).prepare();
    let server = admin::Server::new().probes(ready).metrics(exposition);
    let server = server.path("/state", move |_| state.respond()).grpc(grpc);
    match log {
        Some(log) => server.log(log),
        None => server,
    }
}

// === impl Opened ===

impl Opened {
    /// Gives the kernel its programs. Fails by what it refuses if that is required.
    fn new(config: &Config) -> Result<Self, AgentError> {
        // Links on every counted pod's cgroup and on every device are held open.
        descriptors::raise();
        let (bpffs, cgroup_root) = (config.bpffs.as_deref(), config.cgroup_root.as_deref());
        let holding = Hold::open(bpffs, config.holds.hooks);
        if config.required
            && let Err(error) = holding
        {
            return Err(AgentError::Hold(error));
        }
        let steering = steer::open(config.steering, bpffs, cgroup_root);
        let counting = Count::open(CountConfig {
            node: config.node.clone(),
            cgroup_root: config.cgroup_root.clone(),
            bpffs: config.bpffs.clone(),
            limits: None,
        });
        // Holding needs fewer rights: who gives no more of them has said that it is enough.
        if config.required
            && let Err(error @ (CountError::Object(_) | CountError::Load { .. })) = counting
        {
            return Err(AgentError::Count(error));
        }
        Ok(Self { holding, steering, counting })
    }
}

// === impl Bound ===

impl Bound {
    /// Where probes, counts, state and metrics are served.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.0.addr()
    }

    /// Serves until `shutdown` is requested.
    pub async fn run(self, mut shutdown: Shutdown) -> Result<(), AgentError> {
        let Self { admin, node, ready, discover, prober, publisher, hold, count, steer, backlog, uncounted, exporter } =
            self;
        let (admin, alone) = admin;
        let holds = hold.report().load().off.map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"));
        let counts = count.report().load().off.map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"));
        let steers = steer.report().load().off.map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"));
        let (version, admin_addr) = (env!("CARGO_PKG_VERSION"), admin.addr());
        tracing::info!(version, node, admin = %admin_addr, holds, counts, steers, "agent starts");
        let complete = discover.complete();
        let mut tasks = task::Group::new();
        tasks.spawn("admin", admin.serve());
        tasks.spawn("discover", discover.run());
        tasks.spawn("probe", prober.run());
        tasks.spawn("counts", publisher.run());
        tasks.spawn("hold", hold.run());
        tasks.spawn("steer", steer.run(complete.clone()));
        tasks.spawn("count", count.run(complete));
        tasks.spawn("uncounted", uncounted.run());
        tasks.spawn("backlog", backlog.run());
        if let Some(exporter) = exporter.clone() {
            tasks.spawn("metrics to the collector", exporter.run());
        }
        let ended = tokio::select! {
            () = shutdown.requested() => None,
            ended = tasks.ended() => Some(ended),
        };
        if let Some(ended) = &ended {
            tracing::error!(error = %ended, "shutting down because a part has failed");
        }
        ready.set_draining();
        if let Some(exporter) = exporter {
            exporter.flush().await;
        }
        drop(tasks);
        drop(alone);
        tracing::info!("agent ends");
        ended.map_or(Ok(()), |ended| Err(ended.into()))
    }
}
