//! Spans on standard output, one line of OTLP's JSON a batch.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope},
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter},
};

/// Writes spans.
#[derive(Debug, Default)]
pub(super) struct Console {
    resource: ResourceAttributesWithSchema,
}

// === impl Console ===

impl Console {
    fn line(&self, batch: Vec<SpanData>) -> serde_json::Result<Vec<u8>> {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let mut line = serde_json::to_vec(&ExportTraceServiceRequest { resource_spans })?;
        line.push(b'\n');
        Ok(line)
    }
}

impl SpanExporter for Console {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let written = self.line(batch).map_err(io::Error::from).and_then(|line| io::stdout().lock().write_all(&line));
        written.map_err(|error| OTelSdkError::InternalFailure(error.to_string()))
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::{InMemorySpanExporterBuilder, SdkTracerProvider};

    use super::*;

    #[test]
    fn spans_become_one_line_of_json() {
        let memory = InMemorySpanExporterBuilder::new().build();
        let provider = SdkTracerProvider::builder().with_simple_exporter(memory.clone()).build();
        provider.tracer("test").start("work").end();
        let mut console = Console::default();
        console.set_resource(&Resource::builder_empty().with_service_name("me").build());
        let line = console.line(memory.get_finished_spans().unwrap()).unwrap();
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        let spans: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(spans["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"], "work");
        assert_eq!(spans["resourceSpans"][0]["resource"]["attributes"][0]["key"], "service.name");
    }
}
