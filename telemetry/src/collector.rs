//! The way to a collector over HTTP.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry_http::{HttpClient, HttpError, hyper::HyperClient};
use thiserror::Error;
use tokio::runtime::Handle;

/// There is no way to the collector.
#[derive(Debug, Error)]
pub enum CollectorError {
    /// The machine's certificate authorities can't be read.
    #[error("cannot read the certificate authorities of this machine")]
    Roots(#[source] std::io::Error),
    /// The exporter of traces can't be made.
    #[error("cannot tell traces to the collector that OTEL_EXPORTER_OTLP_… name")]
    Traces(#[source] opentelemetry_otlp::ExporterBuildError),
}

/// Sends on the runtime on which it was made, whoever calls: the SDK's batches come from a thread of its own.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    client: HyperClient<HttpsConnector<HttpConnector>>,
    runtime: Handle,
}

// === impl Collector ===

impl Collector {
    /// A client that gives a request up after `timeout`. Must be called within a runtime.
    pub(crate) fn new(timeout: Duration) -> Result<Self, CollectorError> {
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(CollectorError::Roots)?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self { client: HyperClient::new(connector, timeout, None), runtime: Handle::current() })
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}
