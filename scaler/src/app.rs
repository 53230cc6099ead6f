//! The scaler put together: binds its ports, starts its tasks, and ends them in order.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::Stream;
use interceptor_core::window::Unit;
use proto::externalscaler::external_scaler_server::{self, ExternalScalerServer};
use runtime::{
    admin,
    metrics::Metrics,
    signal::Shutdown,
    task::{Ended, Group},
    watch::{Sources, WatchMetrics},
};
use telemetry::{Exporter, Telemetry, Traces, grpc::Spans};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tonic::transport::Server;
use tonic_reflection::server as reflection;

use crate::{
    board, collect,
    discover::{self, Admins, Change},
    health,
    incoming::{Connection, MAX_CONNECTIONS, Refused, incoming},
    metrics,
    service::{self, MAX_STREAMS, Service, Streams},
};

/// Who tells metrics and traces: the add-on's names.
const SERVICE: telemetry::Service = telemetry::Service {
    name: "keda-http-external-scaler",
    version: env!("CARGO_PKG_VERSION"),
    scope: "keda-external-scaler",
};

/// How long open calls may take after the order to end.
const GRACE: Duration = Duration::from_secs(5);
/// KEDA keeps one connection for all its `ScaledObject`s, with two streams each, and its client waits while a connection
/// has as many streams as the server allows: allow more than we ever keep open, so that it is us who refuse, in words.
const MAX_STREAMS_PER_CONNECTION: u32 = 200_000;
/// A peer whose host is gone is noticed after an interval and a timeout.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A call's reference and metadata take some hundred bytes.
const MAX_REQUEST: usize = 64 << 10;

/// Batches of changed objects that may wait; the watch then waits too.
const MAX_BATCHES: usize = 16;

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from.
    pub sources: Sources,
    /// Where KEDA calls.
    pub grpc_addr: SocketAddr,
    /// Where Prometheus scrapes.
    pub metrics_addr: Option<SocketAddr>,
    /// Where interceptors are found.
    pub admin: Admins,
    /// How often an interceptor without a stream is asked.
    pub tick: Duration,
    /// How long it is asked so before it is offered the stream again.
    pub offer_stream: Duration,
    /// Least time from a `true` on `StreamIsActive` to the `false` after it.
    pub interval: Duration,
    /// How a rate is told.
    pub unit: Unit,
    /// How this scaler names itself to interceptors.
    pub name: String,
    /// What is told to an OpenTelemetry collector.
    pub telemetry: telemetry::Config,
}

/// A scaler with its ports, that serves nobody yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    grpc: TcpListener,
    grpc_addr: SocketAddr,
    board: board::Board,
    writer: board::Writer,
    news: board::Sender,
    streams: Arc<Streams>,
    fetches: metrics::Fetches,
    watch_metrics: WatchMetrics,
    refused: Arc<Refused>,
    metrics: Option<admin::Bound>,
    telemetry: Telemetry,
}

/// Why a scaler could not start.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A port can't be had.
    #[error("{variable}: cannot listen on {addr}")]
    Bind {
        /// Which says what port.
        variable: &'static str,
        /// The port.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Traces can't be told.
    #[error("cannot set up OpenTelemetry as the variables OTEL_… say")]
    Telemetry(#[from] telemetry::TracesError),
}

/// The scaler ended without being asked to.
#[derive(Debug, Error)]
pub enum RunError {
    /// A part that others rely on ended.
    #[error("the scaler cannot go on")]
    Task(#[source] Ended),
}

/// Binds all ports and starts nothing. Must be called within a runtime.
pub async fn build(config: Config) -> Result<Bound, BuildError> {
    let (writer, news, board) = board::channel(config.unit);
    let streams = Arc::new(Streams::new(MAX_STREAMS));
    let refused = Arc::new(Refused::default());
    let mut registry = Metrics::new(SERVICE.name, SERVICE.version);
    let fetches = metrics::register(registry.registry(), board.clone(), Arc::clone(&streams), Arc::clone(&refused));
    let watch_metrics = WatchMetrics::register(registry.registry());
    let exposition = registry.into_exposition();
    let telemetry = Telemetry {
        metrics: config.telemetry.metrics.clone().map(|to| Exporter::new(to, &exposition, SERVICE)),
        traces: config.telemetry.traces.map(|protocol| Traces::new(protocol, SERVICE)).transpose()?,
    };
    let metrics = match config.metrics_addr {
        Some(addr) => {
            let bound = admin::Server::new().metrics(&exposition).bind(addr).await;
            Some(bound.map_err(|source| BuildError::Bind { variable: "OTEL_PROM_EXPORTER_PORT", addr, source })?)
        }
        None => None,
    };
    let addr = config.grpc_addr;
    let failed = |source| BuildError::Bind { variable: "KEDA_HTTP_SCALER_PORT", addr, source };
    let grpc = TcpListener::bind(addr).await.map_err(failed)?;
    let grpc_addr = grpc.local_addr().map_err(failed)?;
    Ok(Bound {
        config,
        grpc,
        grpc_addr,
        board,
        writer,
        news,
        streams,
        fetches,
        watch_metrics,
        refused,
        metrics,
        telemetry,
    })
}

// === impl Bound ===

impl Bound {
    /// Where KEDA calls.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where Prometheus scrapes, if it may.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(admin::Bound::addr)
    }

    /// What the scaler knows.
    pub fn board(&self) -> board::Board {
        self.board.clone()
    }

    /// Serves until `shutdown` is requested.
    ///
    /// Not cancel safe: dropped, every task and connection ends at once.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        let (changes, watched) = mpsc::channel(MAX_BATCHES);
        let mut group = Group::new();
        group.spawn("watch", discover::watch(self.config.sources.clone(), self.watch_metrics.clone(), changes));
        self.serve(group, watched, shutdown).await
    }

    /// Serves until `shutdown` is requested, with the objects that `changes` brings instead of those of the sources.
    ///
    /// Not cancel safe: dropped, every task and connection ends at once.
    pub async fn run_with(self, changes: mpsc::Receiver<Vec<Change>>, shutdown: Shutdown) -> Result<(), RunError> {
        self.serve(Group::new(), changes, shutdown).await
    }

    async fn serve(
        self,
        mut group: Group,
        changes: mpsc::Receiver<Vec<Change>>,
        mut shutdown: Shutdown,
    ) -> Result<(), RunError> {
        let metrics_addr = self.metrics_addr().map(tracing::field::display);
        tracing::info!(grpc_addr = %self.grpc_addr, metrics_addr, "scaler is serving");
        let Self {
            config,
            grpc,
            grpc_addr: _,
            board,
            writer,
            news,
            streams,
            fetches,
            watch_metrics: _,
            refused,
            metrics,
            telemetry,
        } = self;
        let Config {
            sources: _,
            grpc_addr: _,
            metrics_addr: _,
            admin,
            tick,
            offer_stream,
            interval,
            unit: _,
            name,
            telemetry: _,
        } = config;
        let (addresses_tx, addresses) = watch::channel(BTreeMap::new());
        let admin_service = admin.interceptors.service.to_string();
        group.spawn("board", writer.run());
        group.spawn("discover", discover::run(changes, admin, news.clone(), addresses_tx));
        group.spawn("account", collect::account(board.clone(), tick, fetches.clone()));
        group.spawn(
            "collect",
            collect::supervise(addresses, news, collect::Config { name, tick, offer_stream }, fetches),
        );
        if let Some(metrics) = metrics {
            group.spawn("metrics", metrics.serve());
        }
        if let Some(metrics) = telemetry.metrics.clone() {
            group.spawn("metrics to the collector", metrics.run());
        }
        let config = service::Config { interval, admin_service };
        let service = Service::new(board.clone(), config, streams, shutdown.clone());
        let spans = Spans::new(telemetry.traces.as_ref().map(Traces::tracer));
        answer(&mut group, incoming(grpc, MAX_CONNECTIONS, refused), (service, spans), board, &shutdown);
        tokio::select! {
            // First, because the gRPC server ends on the same request.
            biased;
            () = shutdown.requested() => {}
            ended = group.ended() => return Err(RunError::Task(ended)),
        }
        // The gRPC server ends when its calls have; the other tasks never do.
        if tokio::time::timeout(GRACE, group.ended()).await.is_err() {
            tracing::warn!(seconds = GRACE.as_secs(), "calls were still open and are cut");
        }
        telemetry.finish().await;
        tracing::info!("scaler has ended");
        Ok(())
    }
}

/// Starts the gRPC server, which ends when its calls have after `shutdown` was requested.
fn answer(
    group: &mut Group,
    incoming: impl Stream<Item = io::Result<Connection>> + Send + 'static,
    (service, spans): (Service, Spans),
    board: board::Board,
    shutdown: &Shutdown,
) {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    group.spawn("health", health::run(board, reporter, shutdown.clone()));
    let mut closing = shutdown.clone();
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .layer(spans)
        .add_service(ExternalScalerServer::new(service).max_decoding_message_size(MAX_REQUEST))
        .add_service(health_service)
        .add_service(reflection().build_v1().expect("our own descriptors are valid"))
        .add_service(reflection().build_v1alpha().expect("our own descriptors are valid"))
        .serve_with_incoming_shutdown(incoming, async move { closing.requested().await });
    group.spawn("grpc", server);
}

/// Of what is served here; the descriptors hold the counts stream too, which interceptors serve.
fn reflection() -> reflection::Builder<'static> {
    reflection::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(external_scaler_server::SERVICE_NAME)
        .with_service_name("grpc.health.v1.Health")
}
