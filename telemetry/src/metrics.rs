//! Tells the process's metrics to a collector, from time to time: the same that a scrape would get.

use std::{convert::Infallible, time::SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use opentelemetry_http::HttpClient as _;
use opentelemetry_proto::{
    tonic::{
        collector::metrics::v1::ExportMetricsServiceRequest,
        common::v1::InstrumentationScope,
        metrics::v1::{ResourceMetrics, ScopeMetrics},
        resource::v1::Resource,
    },
    transform::common::tonic::ResourceAttributesWithSchema,
};
use prost::Message as _;
use runtime::metrics::Exposition;
use thiserror::Error;
use tokio::{
    task,
    time::{self, MissedTickBehavior},
};

mod convert;

use crate::{Service, collector::Collector, config::MetricsConfig, resource::resource};

/// Tells metrics.
#[derive(Clone, Debug)]
pub struct Exporter {
    config: MetricsConfig,
    collector: Collector,
    exposition: Exposition,
    resource: Resource,
    meter: &'static str,
    /// Since when the counters count.
    started: SystemTime,
}

/// Metrics did not arrive.
#[derive(Debug, Error)]
enum ExportError {
    #[error("the collector can't be reached")]
    Unreachable(#[source] opentelemetry_http::HttpError),
    #[error("the collector answered {0}")]
    Refused(http::StatusCode),
    #[error("the endpoint and the fields make no request")]
    Request(#[source] http::Error),
    #[error("the metrics could not be read")]
    Ended(#[source] task::JoinError),
}

// === impl Exporter ===

impl Exporter {
    /// Tells what `exposition` shows. Must be called within the runtime that it is to run on.
    pub fn new(config: MetricsConfig, exposition: &Exposition, service: Service) -> Self {
        let attributes = ResourceAttributesWithSchema::from(&resource(service)).attributes.0;
        Self {
            collector: Collector::new(config.timeout),
            config,
            exposition: exposition.clone(),
            resource: Resource { attributes, ..Resource::default() },
            meter: service.scope,
            started: SystemTime::now(),
        }
    }

    /// Tells them for ever. What can't be told is not kept: counters are cumulative, so the next time tells it, too.
    pub async fn run(self) -> Result<(), Infallible> {
        let mut ticks = time::interval_at(time::Instant::now() + self.config.interval, self.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            ticks.tick().await;
            match self.export().await {
                Ok(()) if failing => {
                    tracing::info!(endpoint = %self.config.endpoint, "metrics are told to the collector again");
                    failing = false;
                }
                Ok(()) => {}
                Err(error) if failing => tracing::debug!(error = &error as &dyn std::error::Error, "metrics not told"),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(endpoint = %self.config.endpoint, error, "metrics can't be told to the collector");
                    failing = true;
                }
            }
        }
    }

    /// Tells them a last time.
    pub async fn flush(&self) {
        if let Err(error) = self.export().await {
            tracing::debug!(error = &error as &dyn std::error::Error, "the last metrics were not told");
        }
    }

    async fn export(&self) -> Result<(), ExportError> {
        let this = self.clone();
        let body = task::spawn_blocking(move || this.encode(SystemTime::now())).await.map_err(ExportError::Ended)?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.config.endpoint)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(body)
            .map_err(ExportError::Request)?;
        request.headers_mut().extend(self.config.headers.clone());
        let response: Response<Bytes> = self.collector.send_bytes(request).await.map_err(ExportError::Unreachable)?;
        if response.status().is_success() { Ok(()) } else { Err(ExportError::Refused(response.status())) }
    }

    fn encode(&self, now: SystemTime) -> Bytes {
        let metrics = convert::metrics(&self.exposition.open_metrics(), self.started, now);
        let scope = InstrumentationScope { name: self.meter.to_owned(), ..InstrumentationScope::default() };
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
        let resource = Some(self.resource.clone());
        let resource_metrics = vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }];
        ExportMetricsServiceRequest { resource_metrics }.encode_to_vec().into()
    }
}
