//! TLS as the app sets it up: the listener's side, and connections to pods, which is made when the first is needed.

use std::sync::{Arc, OnceLock};

use interceptor_core::ObjectKey;
use tls::{
    Certificates, Resolver, Settings,
    client::{self, Client, Identity},
    reload::Reload,
    server,
};

use crate::{
    metrics::Metrics,
    proxy::ProxyError,
    secrets::{Identities, IdentityId},
};

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate, a key or a folder of them can't be used.
    #[error(transparent)]
    File(#[from] tls::FileError),
    /// The settings do not go together.
    #[error("TLS settings cannot be used for clients: {0}")]
    Server(rustls::Error),
    /// Whom to believe can't be found out.
    #[error(transparent)]
    Client(#[from] client::ClientError),
}

/// Configurations for connections to pods.
#[derive(Debug)]
pub(crate) struct Upstreams {
    settings: Settings,
    client: OnceLock<Result<Client, Arc<str>>>,
    identities: Identities,
}

/// All that the settings ask for.
#[derive(Debug)]
pub(crate) struct Opened {
    /// For clients, if any may speak TLS.
    pub(crate) server: Option<Arc<rustls::ServerConfig>>,
    /// Where those certificates are chosen.
    pub(crate) resolver: Option<Resolver>,
    pub(crate) upstreams: Upstreams,
    /// Files to be followed, if any were named.
    pub(crate) files: Option<Files>,
}

/// What is read from files, and has to be read again when they change.
#[derive(Debug)]
pub(crate) struct Files {
    settings: Settings,
    read: Option<client::State>,
    resolver: Option<Resolver>,
    client: Client,
}

// === impl Upstreams ===

impl Upstreams {
    /// For a new upstream.
    pub(crate) fn client(&self) -> Result<&Client, ProxyError> {
        let client = self
            .client
            .get_or_init(|| Client::new(self.settings.clone(), None).map_err(|error| error.to_string().into()));
        client.as_ref().map_err(|error| ProxyError::Tls(Arc::clone(error)))
    }

    /// Who it is to pods that are shown the certificate of a Secret.
    pub(crate) fn identity(&self, secret: &ObjectKey) -> Result<(IdentityId, Arc<Identity>), ProxyError> {
        self.identities.find(secret).map_err(ProxyError::NoIdentity)
    }

    /// All that are known.
    pub(crate) fn identities(&self) -> &Identities {
        &self.identities
    }
}

/// Reads all files that the settings name.
pub(crate) fn open(settings: Settings) -> Result<Opened, TlsError> {
    if settings.serving.is_none() && settings.ca_folders.is_empty() {
        // The system's authorities are many: who has no pod with TLS need not have them in memory.
        let upstreams = Upstreams { settings, client: OnceLock::new(), identities: Identities::default() };
        return Ok(Opened { server: None, resolver: None, upstreams, files: None });
    }
    let read = client::state(&settings);
    let certificates =
        settings.serving.as_ref().map(|paths| Certificates::load(paths, settings.provider())).transpose()?;
    let client = Client::new(settings.clone(), certificates.as_ref())?;
    let resolver = certificates.map(Resolver::new);
    let config = resolver.clone().map(|resolver| server::config(&settings, resolver));
    let config = config.transpose().map_err(TlsError::Server)?;
    let upstreams = Upstreams {
        settings: settings.clone(),
        client: OnceLock::from(Ok(client.clone())),
        identities: Identities::default(),
    };
    Ok(Opened {
        server: config,
        resolver: resolver.clone(),
        upstreams,
        files: Some(Files { settings, read, resolver, client }),
    })
}

// === impl Files ===

impl Files {
    /// Follows the files until the process ends.
    pub(crate) async fn run(self, metrics: Arc<Metrics>) -> Result<(), std::convert::Infallible> {
        let Self { settings, read, resolver, client } = self;
        match client::follow(settings, read, resolver, client, |reload: Reload| metrics.certificates_read(reload)).await {}
    }
}
