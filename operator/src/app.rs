//! The operator put together: binds its ports, starts its tasks, and ends them in order.

use std::{io, net::SocketAddr, time::Duration};

use http::StatusCode;
use interceptor_core::ObjectKey;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use runtime::{
    admin::{self, reply},
    metrics,
    ready::Ready,
    signal::Shutdown,
    task::{Ended, Group},
    watch::{ApiError, api_client},
};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::{
    apply::Writer,
    demand,
    lease::{Candidate, Terms},
    metrics::Metrics,
    plan::Settings,
    reconcile::Reconciler,
    secure::{self, Security, SecurityError},
    watch::{self as watching, Scope},
    world::Kind,
};

/// How long giving the lease back may take after the order to end.
const GRACE: Duration = Duration::from_secs(5);

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the Kubernetes API is found.
    pub kube: kube::Config,
    /// What plans depend on.
    pub settings: Settings,
    /// How the lease is kept; without it the operator acts always.
    pub lease: Option<Terms>,
    /// Where Prometheus scrapes.
    pub metrics_addr: Option<SocketAddr>,
    /// How metrics are kept from others.
    pub security: Security,
    /// Where probes are answered.
    pub health_addr: Option<SocketAddr>,
    /// The namespace of the scaler and of the lease.
    pub namespace: String,
    /// The only namespace that is watched, if it is one.
    pub watch_namespace: Option<String>,
    /// How this operator names itself.
    pub name: String,
    /// The interceptors' Service.
    pub interceptors: ObjectKey,
}

/// An operator with its ports, that does nothing yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    ready: Ready,
    metrics: Metrics,
    metrics_server: Option<secure::Bound>,
    health_server: Option<admin::Bound>,
}

/// A port can't be had.
#[derive(Debug, Error)]
pub enum BindError {
    /// That of probes.
    #[error("--health-probe-bind-address: cannot listen on {addr}")]
    Health {
        /// Which port.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// That of metrics.
    #[error(transparent)]
    Metrics(#[from] SecurityError),
}

/// The operator ended without being asked to.
#[derive(Debug, Error)]
pub enum RunError {
    /// There is no way to the API server.
    #[error(transparent)]
    Client(#[from] ApiError),
    /// A part that others rely on ended.
    #[error("the operator cannot go on")]
    Task(#[source] Ended),
}

/// Binds all ports and starts nothing. Must be called within a runtime.
pub async fn build(config: Config) -> Result<Bound, BindError> {
    let mut registry = metrics::Metrics::new("keda-http-operator", env!("CARGO_PKG_VERSION"));
    let metrics = Metrics::register(registry.registry());
    let exposition = registry.into_exposition();
    let ready = Ready::new();
    let ok = |_: &_| reply::text(StatusCode::OK, "ok");
    let health = admin::Server::new().probes(&ready).path("/healthz", ok);
    let health_server = match config.health_addr {
        Some(addr) => Some(health.bind(addr).await.map_err(|source| BindError::Health { addr, source })?),
        None => None,
    };
    let metrics_server = match config.metrics_addr {
        Some(addr) => Some(secure::bind(addr, &config.security, exposition).await?),
        None => None,
    };
    Ok(Bound { config, ready, metrics, metrics_server, health_server })
}

// === impl Bound ===

impl Bound {
    /// Where Prometheus scrapes, if it may.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_server.as_ref().map(secure::Bound::addr)
    }

    /// Where probes are answered, if they are.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health_server.as_ref().map(admin::Bound::addr)
    }

    /// Runs until `shutdown` is requested.
    ///
    /// Not cancel safe: dropped, the lease is not given back and runs out.
    pub async fn run(self, mut shutdown: Shutdown) -> Result<(), RunError> {
        let health_addr = self.health_addr().map(tracing::field::display);
        let metrics_addr = self.metrics_addr().map(tracing::field::display);
        let namespace = self.config.watch_namespace.as_deref().unwrap_or("all");
        tracing::info!(health_addr, metrics_addr, namespace, "operator is starting");
        let Self { config, ready, metrics, metrics_server, health_server } = self;
        let Config { kube, settings, lease, namespace, watch_namespace, name, interceptors, .. } = config;
        let client = api_client(&kube)?;
        let latch = ready.latch("watch");
        let mut group = Group::new();
        if let Some(server) = health_server {
            group.spawn("probes", server.serve());
        }
        if let Some(server) = metrics_server {
            group.spawn("metrics", server.serve(client.clone()));
        }
        let (changes_tx, changes) = mpsc::channel(watching::MAX_WAITING);
        let scope = Scope { namespace: watch_namespace, interceptors, agents: settings.agents.clone() };
        for kind in Kind::watched(settings.host_guard) {
            let (client, changes) = (client.clone(), changes_tx.clone());
            group.spawn("watch", watching::watch(kind, client, scope.clone(), changes));
        }
        let (leads_tx, leads) = watch::channel(false);
        let writer = Writer::new(client.clone(), name.clone());
        let scaler = settings.scaler_address.clone();
        let reconciler = Reconciler::new(writer, settings, metrics, latch);
        let demanded = reconciler.demanded();
        group.spawn("demand", async move { demand::follow(scaler, demanded, changes_tx).await.map(drop) });
        group.spawn("reconcile", reconciler.run(changes, leads));
        let elected = lease.is_some();
        if let Some(terms) = lease {
            let identity = format!("{name}_{:x}", Timestamp::now().as_nanosecond());
            let candidate = Candidate::new(Api::namespaced(client, &namespace), identity, terms);
            group.spawn("lease", candidate.run(leads_tx.clone(), shutdown.clone()));
        } else {
            leads_tx.send_replace(true);
        }
        tokio::select! {
            biased;
            () = shutdown.requested() => {}
            ended = group.ended() => return Err(RunError::Task(ended)),
        }
        ready.set_draining();
        leads_tx.send_replace(false);
        // The lease's task ends when it has given the lease back; the other tasks never do.
        if elected && tokio::time::timeout(GRACE, group.ended()).await.is_err() {
            tracing::warn!("the lease could not be given back in time");
        }
        tracing::info!("operator has ended");
        Ok(())
    }
}
