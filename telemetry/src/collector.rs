//! The way to a collector over HTTP.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry_http::{HttpClient, HttpError, hyper::HyperClient};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::runtime::Handle;

/// Sends on the runtime on which it was made, whoever calls: the SDK's batches come from a thread of its own.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    client: HyperClient<HttpsConnector<HttpConnector>>,
    runtime: Handle,
}

// === impl Collector ===

impl Collector {
    /// A client that gives a request up after `timeout`. Must be called within a runtime.
    pub(crate) fn new(timeout: Duration) -> Self {
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls()).https_or_http().enable_http1().build();
        Self { client: HyperClient::new(connector, timeout, None), runtime: Handle::current() }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Believes the system's authorities. A minimal image has none, which matters only to who speaks TLS.
fn tls() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
