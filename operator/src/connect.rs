//! Where the Kubernetes API is found: a kubeconfig that was named, `KUBECONFIG`, or the pod's service account.

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use thiserror::Error;

/// The API can't be found.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// A kubeconfig can't be used.
    #[error("--kubeconfig: cannot use {path}")]
    Kubeconfig {
        /// Its path.
        path: String,
        /// Why.
        source: KubeconfigError,
    },
    /// There is none, and this is no pod.
    #[error("no way to the Kubernetes API: expected --kubeconfig, KUBECONFIG or a pod's service account")]
    Nowhere(#[source] kube::config::InferConfigError),
}

/// How to reach the API.
pub async fn config(kubeconfig: Option<&Path>) -> Result<kube::Config, ConnectError> {
    let Some(path) = kubeconfig else { return kube::Config::infer().await.map_err(ConnectError::Nowhere) };
    let failed = |source| ConnectError::Kubeconfig { path: path.display().to_string(), source };
    let file = Kubeconfig::read_from(path).map_err(failed)?;
    kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)
}
