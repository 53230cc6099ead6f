//! The scaler as a process of its own, and KEDA's side of its API.

use std::{collections::HashMap, net::SocketAddr, path::Path};

use proto::externalscaler::{GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient};
use tokio::process::Command;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    Interceptor, World, eventually,
    process::{Process, local_addr, program},
    soon,
    world::{INTERCEPTORS, NAMESPACE},
};

/// A running scaler, with KEDA connected to it; killed when dropped.
#[derive(Debug)]
pub struct Scaler {
    /// The process.
    pub process: Process,
    /// KEDA's connection.
    pub keda: ExternalScalerClient<Channel>,
    /// Where it serves.
    pub addr: SocketAddr,
    /// Where the routes are that it is asked for.
    namespace: String,
}

// === impl Scaler ===

impl Scaler {
    /// Starts one that listens to the interceptor.
    pub async fn start(world: &World, interceptor: &Interceptor) -> Self {
        world.interceptors(&[interceptor.admin]);
        let mut command = command(NAMESPACE, interceptor.admin.port());
        command.arg("--source").arg(format!("dir:{}", world.path().display()));
        Self::run(command, NAMESPACE).await
    }

    /// Starts one that reads a cluster, where the interceptors are listed by the Service [`INTERCEPTORS`].
    pub async fn start_in(kubeconfig: &Path, namespace: &str, interceptor: &Interceptor) -> Self {
        let mut command = command(namespace, interceptor.admin.port());
        command.env("KEDA_HTTP_WATCH_NAMESPACE", namespace).arg("--kubeconfig").arg(kubeconfig);
        Self::run(command, namespace).await
    }

    async fn run(command: Command, namespace: &str) -> Self {
        let mut process = Process::start(command, None);
        let addr = local_addr(&process.says("scaler is serving").await, "grpc_addr");
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
        let channel = soon("a connection to the scaler", endpoint.connect()).await.unwrap();
        Self { process, keda: ExternalScalerClient::new(channel), addr, namespace: namespace.to_owned() }
    }

    /// The ScaledObject of a route.
    pub fn scaled_object(&self, route: &str) -> ScaledObjectRef {
        ScaledObjectRef {
            name: route.to_owned(),
            namespace: self.namespace.clone(),
            scaler_metadata: HashMap::from([("interceptorRoute".to_owned(), route.to_owned())]),
        }
    }

    /// `IsActive`, if the scaler knows the route.
    pub async fn is_active(&mut self, route: &str) -> Option<bool> {
        let asked = soon("IsActive", self.keda.is_active(self.scaled_object(route))).await;
        asked.ok().map(|answer| answer.into_inner().result)
    }

    /// Waits until `IsActive` says so.
    pub async fn active_is(&mut self, route: &str, active: bool) {
        eventually(&format!("IsActive of {route} is {active}"), async || {
            (self.is_active(route).await? == active).then_some(())
        })
        .await;
    }

    /// `GetMetrics` of the concurrency, if the scaler knows the route.
    pub async fn concurrency(&mut self, route: &str) -> Option<f64> {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(self.scaled_object(route)),
            metric_name: format!("http_{route}_concurrency"),
        };
        let answer = soon("GetMetrics", self.keda.get_metrics(request)).await.ok()?.into_inner();
        Some(answer.metric_values[0].metric_value_float)
    }

    /// `StreamIsActive`.
    pub async fn stream(&mut self, route: &str) -> Streaming<proto::externalscaler::IsActiveResponse> {
        soon("StreamIsActive", self.keda.stream_is_active(self.scaled_object(route))).await.unwrap().into_inner()
    }
}

/// One that is not told yet where its objects are.
fn command(namespace: &str, admin: u16) -> Command {
    let mut command = Command::new(program("scaler-under-test"));
    command
        .env_clear()
        .envs([
            ("KEDA_HTTP_SCALER_PORT", "0"),
            ("OTEL_PROM_EXPORTER_PORT", "0"),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE", namespace),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE", INTERCEPTORS),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_DEPLOYMENT", "interceptor"),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_PORT", &admin.to_string()),
        ])
        .arg("--zap-encoder=json");
    command
}
