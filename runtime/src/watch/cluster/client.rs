//! How the API server is reached: kubeconfig or service account, and a client whose answers a link hears of.

use std::{path::Path, time::Duration};

use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{ServiceBuilder, ServiceExt as _};

use super::link::Link;

/// How long a connection to the API server may take to open.
const CONNECT: Duration = Duration::from_secs(5);

/// A server whose host is gone sends no end: the kernel asks after so much silence, so often, and gives up.
const ASK_AFTER: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_TIMES: u32 = 3;

/// The API server can't be looked for.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A kubeconfig file was named and can't be used.
    #[error("the kubeconfig of {named} cannot be used")]
    Kubeconfig {
        /// By whom it was named.
        named: String,
        /// Why.
        source: KubeconfigError,
    },
    /// Nothing tells where the API server is.
    #[error(
        "no Kubernetes API server: expected --kubeconfig, KUBECONFIG, the service account of a pod, or ~/.kube/config \
         (or --source dir:PATH, to read manifests instead)"
    )]
    Nowhere(#[source] InClusterError),
    /// What the configuration names can't be used: a certificate, a key, a proxy.
    #[error("the configuration of the Kubernetes client cannot be used")]
    Client(#[source] kube::Error),
}

/// In the order of the add-on: the flag, `KUBECONFIG`, the pod's service account, the user's own file.
pub(super) async fn config(kubeconfig: Option<&Path>) -> Result<Config, ApiError> {
    let named = kubeconfig.map_or_else(|| "KUBECONFIG".to_owned(), |path| format!("--kubeconfig {}", path.display()));
    let unusable = |source| ApiError::Kubeconfig { named: named.clone(), source };
    let read = match kubeconfig {
        Some(path) => Some(Kubeconfig::read_from(path).map_err(unusable)?),
        None => Kubeconfig::from_env().map_err(unusable)?,
    };
    let (kubeconfig, in_cluster) = match read {
        Some(kubeconfig) => (kubeconfig, None),
        None => match Config::incluster_env() {
            Ok(config) => return Ok(config),
            Err(error) => match Kubeconfig::read() {
                Ok(kubeconfig) => (kubeconfig, Some(error)),
                Err(_no_file) => return Err(ApiError::Nowhere(error)),
            },
        },
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.map_err(|error| match in_cluster {
        Some(in_cluster) if matches!(error, KubeconfigError::CurrentContextNotSet) => ApiError::Nowhere(in_cluster),
        _ => unusable(error),
    })
}

/// A client of its own for one watch, which takes a connection anyway.
pub(super) fn client(config: &Config, link: Link) -> Result<Client, ApiError> {
    build(config, move || link.up())
}

/// A client for what is asked beside the watches of this crate. Its connections notice a server that has gone; how long an answer
/// may take is for the caller to say.
pub fn api_client(config: &Config) -> Result<Client, ApiError> {
    build(config, || {})
}

fn build(config: &Config, answered: impl Fn() + Clone + Send + 'static) -> Result<Client, ApiError> {
    if let Some(proxy) = &config.proxy_url {
        tracing::warn!(%proxy, "the Kubernetes API is asked directly: proxies are not supported");
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(ASK_AFTER));
    tcp.set_keepalive_interval(Some(ASK_EVERY));
    tcp.set_keepalive_retries(Some(ASK_TIMES));
    let tls = config.rustls_https_connector_with_connector(tcp).map_err(ApiError::Client)?;
    let http = legacy::Builder::new(TokioExecutor::new()).build::<_, Body>(tls);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(ApiError::Client)?)
        .layer(config.extra_headers_layer().map_err(ApiError::Client)?)
        .map_err(tower::BoxError::from)
        .service(http);
    let service = service.map_response(move |response| {
        if response.status().is_success() {
            answered();
        }
        response
    });
    Ok(Client::new(service, config.default_namespace.clone()))
}
