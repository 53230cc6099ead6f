//! Traces: spans are sampled as `OTEL_TRACES_SAMPLER` says, gathered in batches and told to a collector or written to
//! standard output. What finds the SDK's queue full is left out there; no request waits for a collector.

use std::time::Duration;

use opentelemetry::{InstrumentationScope, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use thiserror::Error;
use tokio::task;

mod console;

use self::console::Console;
use crate::{Service, collector::Collector, config::Protocol, resource::resource};

/// How long a request to the collector may take; OpenTelemetry's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last spans may take to leave.
const LAST: Duration = Duration::from_secs(2);

/// Traces can't be told.
#[derive(Debug, Error)]
#[error("cannot tell traces to the collector that OTEL_EXPORTER_OTLP_… name")]
pub struct TracesError(#[source] opentelemetry_otlp::ExporterBuildError);

/// Spans on their way.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    scope: &'static str,
}

// === impl Traces ===

impl Traces {
    /// Tells spans of `service` as `protocol` says. Must be called within a runtime, which the way to the collector is
    /// then served on.
    pub fn new(protocol: Protocol, service: Service) -> Result<Self, TracesError> {
        let builder = SdkTracerProvider::builder().with_resource(resource(service));
        let builder = match protocol {
            Protocol::Console => builder.with_batch_exporter(Console::default()),
            Protocol::Http => {
                let exporter = SpanExporter::builder().with_http().with_http_client(Collector::new(TIMEOUT));
                builder.with_batch_exporter(exporter.build().map_err(TracesError)?)
            }
            Protocol::Grpc => {
                let exporter = SpanExporter::builder().with_tonic();
                builder.with_batch_exporter(exporter.build().map_err(TracesError)?)
            }
        };
        Ok(Self { provider: builder.build(), scope: service.scope })
    }

    /// What makes spans.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer_with_scope(InstrumentationScope::builder(self.scope).build())
    }

    /// Tells the last spans, within a bounded time.
    pub async fn shutdown(self) {
        // The SDK waits for the collector, which is served on this thread's runtime.
        let ended = task::spawn_blocking(move || self.provider.shutdown_with_timeout(LAST)).await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not told"),
            Err(error) => tracing::warn!(%error, "the last spans were not told"),
        }
    }
}
