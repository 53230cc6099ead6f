//! Puts the interceptor together: binds all sockets, then runs workers and the control side until the shutdown.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    num::NonZeroUsize,
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use interceptor_core::index::Index;
use runtime::{
    admin,
    drain::{self, Outcome, Phase},
    metrics::Exposition,
    ready::Ready,
    signal::Shutdown,
    snapshot::{self, Reader},
    task,
    watch::WatchMetrics,
};
use socket2::{Domain, Protocol, Socket, Type};
use telemetry::{Exporter, Telemetry, Traces};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::Config,
    control::{
        counts::{CountsService, Edges, Publisher},
        discover::Discover,
        kernel::Kernel,
        queue,
        secrets::Secrets,
        state::State,
    },
    encryption::{self, Files, Opened, TlsError},
    entrances::{self, Entrances},
    memory,
    metrics::Metrics,
    names::Names,
    probe::{self, ProbeMetrics, Prober},
    rt, server,
    worker::{Shared, Worker},
};

/// Connections that the kernel keeps for a worker that has not accepted them yet.
const BACKLOG: i32 = 4096;

/// Who tells metrics and traces: the add-on's names.
const SERVICE: telemetry::Service = telemetry::Service {
    name: "keda-http-interceptor",
    version: env!("CARGO_PKG_VERSION"),
    scope: "keda-interceptor-proxy",
};

/// How long background tasks may take to end after the last request.
const JOIN_GRACE: Duration = Duration::from_secs(1);

/// An interceptor with all its sockets, that serves nobody yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    ports: Ports,
    tls: Option<Arc<rustls::ServerConfig>>,
    certificates: Option<Files>,
    entered: Vec<entrances::Receiver>,
    control: Control,
    drain: (drain::Drain, drain::Watch),
}

/// The ports that settings name.
#[derive(Debug)]
struct Ports {
    proxy: SocketAddr,
    listeners: Vec<Listeners>,
    encrypted: Option<SocketAddr>,
    admin: admin::Bound,
    metrics: Option<admin::Bound>,
}

/// What one worker accepts clients on.
#[derive(Debug)]
struct Listeners {
    plain: StdListener,
    encrypted: Option<StdListener>,
}

/// What runs beside the workers.
#[derive(Debug)]
struct Control {
    ready: Ready,
    reader: Reader,
    shared: Arc<Shared>,
    discover: Discover,
    prober: Prober,
    names: Names,
    publisher: Publisher,
    kernel: Kernel,
    entrances: Entrances,
    telemetry: Telemetry,
}

/// Why an interceptor could not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A port can't be listened on.
    #[error("cannot listen on {addr} for {purpose}")]
    Bind {
        /// What the port is for.
        purpose: &'static str,
        /// The port.
        addr: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Certificates, keys or their settings can't be used.
    #[error("cannot set up TLS as the variables KEDA_HTTP_PROXY_TLS_… and KEDA_HTTP_TLS_… say")]
    Tls(#[source] TlsError),
    /// Traces can't be told.
    #[error("cannot set up OpenTelemetry as the variables OTEL_… say")]
    Telemetry(#[source] telemetry::TracesError),
    /// The level of the data plane that was required is not to be had.
    #[error("data plane level is required, and not to be had")]
    Dataplane(#[source] dataplane::OpenError),
    /// A worker's thread can't be started.
    #[error("cannot start a worker")]
    Worker(#[source] io::Error),
    /// A part that everything relies on ended.
    #[error(transparent)]
    Task(#[from] task::Ended),
}

/// Binds all sockets and starts nothing else. Must be called within the control runtime.
pub async fn build(config: Config) -> Result<Bound, AppError> {
    let (proxy, plain) = listeners("proxy", config.proxy, config.workers)?;
    let (encrypted, over_tls) = match config.encrypted {
        Some(addr) => listeners("TLS proxy", addr, config.workers).map(|(addr, all)| (Some(addr), all))?,
        None => (None, Vec::new()),
    };
    let mut over_tls = over_tls.into_iter();
    let listeners = plain.into_iter().map(|plain| Listeners { plain, encrypted: over_tls.next() }).collect();
    let Opened { server: tls, resolver, upstreams, files } =
        encryption::open(config.tls.clone()).map_err(AppError::Tls)?;
    let ready = Ready::new();
    let edges = Arc::new(Edges::default());
    let index = Index::new(config.workers.get(), Arc::clone(&edges) as _)
        .through_services(!config.proxying.direct_pods)
        .guarded(config.host_guard);
    let (writer, reader) = snapshot::channel(index.snapshot());
    let kernel = Kernel::open(config.dataplane.clone(), reader.clone()).map_err(AppError::Dataplane)?;
    let mut registry = runtime::metrics::Metrics::new(SERVICE.name, SERVICE.version);
    let metrics = Arc::new(Metrics::register(registry.registry()));
    let probe_metrics = ProbeMetrics::register(registry.registry());
    let (prober, probing, verdicts) = probe::channel(reader.clone(), probe_metrics);
    let traces = config.telemetry.traces.map(|protocol| Traces::new(protocol, SERVICE));
    let traces = traces.transpose().map_err(AppError::Telemetry)?;
    let identities = upstreams.identities().clone();
    let shared = Shared::new(config.proxying.clone(), upstreams, metrics, probing, traces.as_ref().map(Traces::tracer));
    let shared = Arc::new(shared);
    let watch_metrics = WatchMetrics::register(registry.registry());
    let sources = (config.sources.clone(), watch_metrics);
    let (names, found) = Names::new(reader.clone(), registry.registry());
    let provider = Arc::new(config.tls.provider().clone());
    let secrets = Secrets::new(config.secrets.clone(), provider, (resolver, identities), registry.registry());
    let discover = Discover::new(sources, (verdicts, found), index, writer, &ready, registry.registry());
    let discover = discover.with_secrets(secrets);
    let (entrances, entered) = Entrances::new(config.workers.get(), reader.clone(), &ready, registry.registry());
    let state = State {
        entrances: entrances.report(),
        ready: ready.clone(),
        reader: reader.clone(),
        kernel: kernel.clone(),
        problems: discover.problems(),
        shared: Arc::clone(&shared),
        workers: config.workers,
    };
    state.clone().register(registry.registry());
    let publisher = Publisher::new(edges, reader.clone(), kernel.clone(), shared.cold_starts.signals());
    let exposition = registry.into_exposition();
    let exporter = config.telemetry.metrics.clone().map(|config| Exporter::new(config, &exposition, SERVICE));
    let telemetry = Telemetry { metrics: exporter, traces };
    let admin = bind_admin(&config, &ready, &exposition, state, &publisher).await?;
    let metrics = match config.metrics {
        Some(addr) => Some(bind("metrics", admin::Server::new().metrics(&exposition), addr).await?),
        None => None,
    };
    let drain = drain::channel();
    let control = Control { ready, reader, shared, discover, prober, names, publisher, kernel, entrances, telemetry };
    let ports = Ports { proxy, listeners, encrypted, admin, metrics };
    Ok(Bound { config, ports, tls, certificates: files, entered, control, drain })
}

async fn bind_admin(
    config: &Config,
    ready: &Ready,
    exposition: &Exposition,
    state: State,
    publisher: &Publisher,
) -> Result<admin::Bound, AppError> {
    let queue_reader = state.reader.clone();
    let grpc = tonic::service::Routes::new(CountsService::server(publisher)).prepare();
    let server = admin::Server::new()
        .probes(ready)
        .metrics(exposition)
        .path("/queue", move |_| queue::respond(&queue_reader))
        .path("/state", move |_| state.respond())
        .grpc(grpc);
    let server = match &config.log {
        Some(log) => server.log(log),
        None => server,
    };
    bind("admin", server, config.admin).await
}

async fn bind(purpose: &'static str, server: admin::Server, addr: SocketAddr) -> Result<admin::Bound, AppError> {
    server.bind(addr).await.map_err(|source| AppError::Bind { purpose, addr, source })
}

// === impl Bound ===

impl Bound {
    /// Where clients connect.
    pub fn proxy_addr(&self) -> SocketAddr {
        self.ports.proxy
    }

    /// Where clients with TLS connect, if any may.
    pub fn encrypted_addr(&self) -> Option<SocketAddr> {
        self.ports.encrypted
    }

    /// Where probes, counts and state are served.
    pub fn admin_addr(&self) -> SocketAddr {
        self.ports.admin.addr()
    }

    /// Where metrics are served for Prometheus, if they are.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.ports.metrics.as_ref().map(admin::Bound::addr)
    }

    /// Serves until `shutdown` is requested and all requests have ended, or the drain's time is over.
    ///
    /// Not cancel safe: dropping the future leaves the workers running without a control side.
    pub async fn run(self, mut shutdown: Shutdown) -> Result<Outcome, AppError> {
        let Self { config, ports, tls, certificates, entered, control, drain: (drain, watch) } = self;
        let Ports { proxy, listeners, encrypted, admin, metrics } = ports;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            %proxy,
            tls = encrypted.map(tracing::field::display),
            admin = %admin.addr(),
            metrics = metrics.as_ref().map(|metrics| tracing::field::display(metrics.addr())),
            workers = listeners.len(),
            dataplane = control.kernel.level(),
            why = control.kernel.reason(),
            "interceptor starts"
        );
        let Control { ready, reader, shared, discover, prober, names, publisher, kernel, entrances, telemetry } =
            control;
        let tls = tls.map(TlsAcceptor::from);
        let clients = listeners.into_iter().zip(entered).collect();
        let workers = start_workers(clients, tls.as_ref(), &shared, &reader, &watch)?;
        let mut tasks = task::Group::new();
        tasks.spawn("entrances", entrances.run(watch));
        tasks.spawn("admin", admin.serve());
        if let Some(metrics) = metrics {
            tasks.spawn("metrics", metrics.serve());
        }
        tasks.spawn("discover", discover.run());
        tasks.spawn("probe", prober.run());
        tasks.spawn("names", names.run());
        tasks.spawn("counts", publisher.run());
        tasks.spawn("kernel", kernel.run());
        tasks.spawn("memory", memory::follow(reader));
        if let Some(metrics) = telemetry.metrics.clone() {
            tasks.spawn("metrics to the collector", metrics.run());
        }
        if let Some(certificates) = certificates {
            tasks.spawn("certificates", certificates.run(Arc::clone(&shared.metrics)));
        }
        let ended = tokio::select! {
            () = shutdown.requested() => None,
            ended = tasks.ended() => Some(ended),
        };
        if let Some(ended) = &ended {
            tracing::error!(error = %ended, "shutting down because a part has failed");
        }
        ready.set_draining();
        drain.start();
        tracing::info!(delay = ?config.shutdown_delay, "draining: clients are told to go");
        tokio::time::sleep(config.shutdown_delay).await;
        tracing::info!(timeout = ?config.drain_timeout, "listeners close, requests in flight may finish");
        let outcome = drain.finish(config.drain_timeout).await;
        join(workers).await;
        telemetry.finish().await;
        tracing::info!(?outcome, "interceptor ends");
        drop(tasks.join(JOIN_GRACE));
        ended.map_or(Ok(outcome), |ended| Err(ended.into()))
    }
}

/// A running worker, and its end.
struct Running {
    thread: thread::JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

fn start_workers(
    clients: Vec<(Listeners, entrances::Receiver)>,
    tls: Option<&TlsAcceptor>,
    shared: &Arc<Shared>,
    reader: &Reader,
    watch: &drain::Watch,
) -> Result<Vec<Running>, AppError> {
    let start = |(id, clients)| {
        let (shared, reader, watch, tls) = (Arc::clone(shared), reader.clone(), watch.clone(), tls.cloned());
        let (end, ended) = oneshot::channel();
        let main = move || async move {
            run_worker(Worker::new(id, shared, reader, watch), clients, tls).await;
            // Nobody listens when the control side is gone already.
            let _ = end.send(());
        };
        let thread = rt::spawn_worker(id, main).map_err(AppError::Worker)?;
        Ok(Running { thread, ended })
    };
    clients.into_iter().enumerate().map(start).collect()
}

async fn run_worker(
    worker: Rc<Worker>,
    (listeners, entered): (Listeners, entrances::Receiver),
    tls: Option<TlsAcceptor>,
) {
    let Listeners { plain, encrypted } = listeners;
    let listen = |listener: StdListener| {
        TcpListener::from_std(listener).inspect_err(|error| tracing::error!(%error, "worker cannot use its listener"))
    };
    let (Ok(plain), Ok(encrypted)) = (listen(plain), encrypted.map(listen).transpose()) else { return };
    task::spawn_local("sweep", Rc::clone(&worker).sweep_loop());
    let mut tunnels = worker.tunnel_watch();
    let mut accepting = vec![task::spawn_local("accept", server::accept_loop(Rc::clone(&worker), plain, None))];
    accepting.push(task::spawn_local("entered", server::serve_loop(Rc::clone(&worker), entered)));
    if let Some(listener) = encrypted {
        accepting.push(task::spawn_local("accept-tls", server::accept_loop(Rc::clone(&worker), listener, tls)));
    }
    worker.end().await;
    // Listeners are closed once the loops have ended; tunnels end by themselves when they are cut.
    for accepting in accepting {
        let _ = accepting.await;
    }
    tunnels.reached(Phase::Cut).await;
}

async fn join(workers: Vec<Running>) {
    for Running { thread, ended } in workers {
        // The sender is dropped when the worker panicked.
        let _ = ended.await;
        if thread.join().is_err() {
            tracing::error!("worker panicked");
        }
    }
}

/// One listener per worker on the same port: the kernel spreads connections over them.
fn listeners(
    purpose: &'static str,
    addr: SocketAddr,
    workers: NonZeroUsize,
) -> Result<(SocketAddr, Vec<StdListener>), AppError> {
    let error = |source| AppError::Bind { purpose, addr, source };
    let first = listen(addr).map_err(error)?;
    let addr = first.local_addr().map_err(error)?;
    let mut all = vec![first];
    for _ in 1..workers.get() {
        all.push(listen(addr).map_err(error)?);
    }
    Ok((addr, all))
}

fn listen(addr: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // What it accepts inherits it, on Linux, which saves a call for each connection. Without it a small response may wait for the
    // acknowledgement of the one before.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    #[test]
    fn accepted_connections_inherit_that_small_responses_do_not_wait() {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(listener.accept().unwrap().0.nodelay().unwrap());
    }
}
