//! OpenTelemetry: a process's metrics, and traces of what it does, told to a collector. Off unless the environment asks
//! for it, under the names that the KEDA HTTP Add-on has.
//!
//! ```text
//! runtime::metrics::Exposition ─► metrics::Exporter ─► OTLP over HTTP, every OTEL_METRIC_EXPORT_INTERVAL
//! spans ─► traces::Traces (sampled, batched) ─► OTLP over HTTP or gRPC, or JSON on standard output
//! ```

#![forbid(unsafe_code)]

mod collector;
pub mod config;
pub mod grpc;
pub mod metrics;
mod resource;
pub mod traces;

pub use self::{
    config::Config,
    metrics::Exporter,
    traces::{Traces, TracesError},
};

/// What is told while the process runs.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// Metrics, if they are.
    pub metrics: Option<Exporter>,
    /// Traces, if they are.
    pub traces: Option<Traces>,
}

/// Who tells, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// `service.name`.
    pub name: &'static str,
    /// `service.version`.
    pub version: &'static str,
    /// The scope of metrics and spans.
    pub scope: &'static str,
}

// === impl Telemetry ===

impl Telemetry {
    /// Tells the last of both, within a bounded time.
    pub async fn finish(self) {
        if let Some(metrics) = &self.metrics {
            metrics.flush().await;
        }
        if let Some(traces) = self.traces {
            traces.shutdown().await;
        }
    }
}
