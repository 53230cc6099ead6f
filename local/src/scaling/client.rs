//! The scaler's gRPC API as KEDA uses it: which calls, in which order, with which fields winning.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use proto::externalscaler::{
    GetMetricsRequest, IsActiveResponse, MetricSpec, ScaledObjectRef, external_scaler_client::ExternalScalerClient,
};
use thiserror::Error;
use tokio::time::timeout;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    hpa::{Metric, TargetKind},
    scaled::{ScaledWorkload, Trigger},
};

/// KEDA gives a scaler so long for one call.
const CALL: Duration = Duration::from_secs(3);

/// The name under which manifests know the scaler of this project.
const SCALER_SERVICE: &str = "keda-add-ons-http-external-scaler";
const SCALER_NAMESPACE: &str = "keda";

/// Channels to scalers, one an address, as in KEDA. Clones share them.
#[derive(Clone, Debug)]
pub struct Dialer {
    scaler: SocketAddr,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

/// One trigger's scaler.
#[derive(Clone, Debug)]
pub struct ScalerClient {
    grpc: ExternalScalerClient<Channel>,
    object: ScaledObjectRef,
    kind: TargetKind,
}

/// A metric's name and target.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// As the scaler calls it.
    pub name: String,
    /// Greater than zero.
    pub target: f64,
}

/// Why a scaler cannot be asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Not an address.
    #[error("scalerAddress is {0:?}, expected host:port")]
    Address(String),
    /// The scaler refused or cannot be reached.
    #[error("{call} failed: {}", .status.message())]
    Call {
        /// The call.
        call: &'static str,
        /// What came back.
        status: Box<Status>,
    },
    /// The scaler did not answer.
    #[error("{0} got no answer within {CALL:?}")]
    Silent(&'static str),
    /// A metric without a positive target.
    #[error("GetMetricSpec gave {name} the target {target}, expected more than zero")]
    Target {
        /// The metric.
        name: String,
        /// Its target.
        target: f64,
    },
}

// === impl Dialer ===

impl Dialer {
    /// Leads the scaler's Service name to `scaler`, and all other addresses to themselves.
    pub fn new(scaler: SocketAddr) -> Self {
        Self { scaler, channels: Arc::default() }
    }

    /// Leads an address over a channel that is there already, whatever it is made of.
    pub fn lead(&self, address: &str, channel: Channel) {
        self.channels.lock().insert(address.to_owned(), channel);
    }

    /// The client of one trigger.
    pub fn client(&self, scaled: &ScaledWorkload, trigger: &Trigger) -> Result<ScalerClient, ClientError> {
        let address = self.resolve(&trigger.address)?;
        let mut channels = self.channels.lock();
        let channel = if let Some(channel) = channels.get(&address) {
            channel.clone()
        } else {
            let endpoint = Endpoint::from_shared(format!("http://{address}"));
            let endpoint = endpoint.map_err(|_error| ClientError::Address(trigger.address.clone()))?;
            let channel = endpoint.connect_timeout(CALL).connect_lazy();
            channels.insert(address, channel.clone());
            channel
        };
        drop(channels);
        let object = ScaledObjectRef {
            name: scaled.key.name().to_owned(),
            namespace: scaled.key.namespace().to_owned(),
            scaler_metadata: trigger.metadata.clone().into_iter().collect(),
        };
        Ok(ScalerClient { grpc: ExternalScalerClient::new(channel), object, kind: trigger.kind })
    }

    /// What cluster DNS would do.
    fn resolve(&self, address: &str) -> Result<String, ClientError> {
        let wrong = || ClientError::Address(address.to_owned());
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        port.parse::<u16>().map_err(|_error| wrong())?;
        let mut labels = host.split('.');
        let ours = labels.next() == Some(SCALER_SERVICE)
            && labels.next() == Some(SCALER_NAMESPACE)
            && matches!(labels.collect::<Vec<_>>().join(".").as_str(), "" | "svc" | "svc.cluster.local");
        Ok(if ours { self.scaler.to_string() } else { address.to_owned() })
    }
}

// === impl ScalerClient ===

impl ScalerClient {
    /// The metrics that this trigger wants to be scaled on.
    pub async fn specs(&self) -> Result<Vec<Spec>, ClientError> {
        let mut grpc = self.grpc.clone();
        let response = call("GetMetricSpec", grpc.get_metric_spec(self.object.clone())).await?;
        response.metric_specs.into_iter().map(Spec::parse).collect()
    }

    /// One metric's value: all values of the answer count as the metric that was asked for.
    pub async fn metric(&self, spec: &Spec) -> Result<Metric, ClientError> {
        let request =
            GetMetricsRequest { scaled_object_ref: Some(self.object.clone()), metric_name: spec.name.clone() };
        let mut grpc = self.grpc.clone();
        let response = call("GetMetrics", grpc.get_metrics(request)).await?;
        let value = response.metric_values.iter().map(|v| either(v.metric_value_float, v.metric_value)).sum();
        Ok(Metric { value, target: spec.target, kind: self.kind })
    }

    /// Whether the workload is wanted at all.
    pub async fn is_active(&self) -> Result<bool, ClientError> {
        let mut grpc = self.grpc.clone();
        Ok(call("IsActive", grpc.is_active(self.object.clone())).await?.result)
    }

    /// The same, pushed.
    pub async fn stream(&self) -> Result<Streaming<IsActiveResponse>, ClientError> {
        let mut grpc = self.grpc.clone();
        call("StreamIsActive", grpc.stream_is_active(self.object.clone())).await
    }
}

/// What the kubelet asks before a scaler gets any calls: `grpc.health.v1`, service `readiness`.
pub async fn is_ready(scaler: SocketAddr) -> bool {
    let Ok(endpoint) = Endpoint::from_shared(format!("http://{scaler}")) else { return false };
    let channel = endpoint.connect_timeout(CALL).connect_lazy();
    let request = HealthCheckRequest { service: "readiness".to_owned() };
    let answer = call("Check", HealthClient::new(channel).check(request)).await;
    answer.is_ok_and(|answer| answer.status() == ServingStatus::Serving)
}

async fn call<T>(
    name: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, ClientError> {
    match timeout(CALL, answer).await {
        Err(_elapsed) => Err(ClientError::Silent(name)),
        Ok(Err(status)) => Err(ClientError::Call { call: name, status: Box::new(status) }),
        Ok(Ok(response)) => Ok(response.into_inner()),
    }
}

// === impl Spec ===

impl Spec {
    fn parse(spec: MetricSpec) -> Result<Self, ClientError> {
        let MetricSpec { metric_name: name, target_size, target_size_float } = spec;
        let target = either(target_size_float, target_size);
        if target > 0.0 { Ok(Self { name, target }) } else { Err(ClientError::Target { name, target }) }
    }
}

/// The float wins when it is positive.
#[expect(clippy::cast_precision_loss, reason = "a count of requests stays far below 2^52")]
fn either(float: f64, int: i64) -> f64 {
    if float > 0.0 { float } else { int as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scalers_service_name_leads_here_and_other_addresses_to_themselves() {
        let dialer = Dialer::new("127.0.0.1:4000".parse().unwrap());
        for (address, expected) in [
            ("keda-add-ons-http-external-scaler.keda:9090", "127.0.0.1:4000"),
            ("keda-add-ons-http-external-scaler.keda.svc.cluster.local:9090", "127.0.0.1:4000"),
            ("keda-add-ons-http-external-scaler.other:9090", "keda-add-ons-http-external-scaler.other:9090"),
            ("localhost:7000", "localhost:7000"),
        ] {
            assert_eq!(dialer.resolve(address).unwrap(), expected);
        }
        for address in ["", "host", "host:", "host:http", "host:70000"] {
            assert!(dialer.resolve(address).is_err(), "{address:?}");
        }
    }

    #[test]
    fn a_target_must_be_positive_and_the_float_wins() {
        let spec = |size, float| {
            Spec::parse(MetricSpec { metric_name: "m".into(), target_size: size, target_size_float: float })
        };
        assert!((spec(5, 0.0).unwrap().target - 5.0).abs() < f64::EPSILON);
        assert!((spec(5, 2.5).unwrap().target - 2.5).abs() < f64::EPSILON);
        assert!(spec(0, 0.0).is_err());
        assert!(spec(-1, f64::NAN).is_err());
    }
}
