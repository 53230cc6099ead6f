//! The pods' side: whose certificates are believed, and what is offered to them.

use std::{convert::Infallible, sync::Arc};

use parking_lot::RwLock;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use thiserror::Error;

use crate::{
    Certificates, Settings,
    files::{self, FileError, Fingerprint},
    reload::{self, Reload},
};

mod identity;
mod marked;

use self::identity::Shown;
pub use self::{identity::Identity, marked::Marked};

/// Which protocols are offered to a pod by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// HTTP/2 or HTTP/1.1, as it likes.
    Any,
    /// HTTP/2 alone.
    H2,
    /// HTTP/1.1 alone.
    Http1,
}

/// Configurations for connections to pods. Clones share them.
#[derive(Clone, Debug)]
pub struct Client {
    settings: Arc<Settings>,
    configs: Arc<RwLock<Configs>>,
    /// Who it is to pods, if it is somebody in particular.
    shown: Option<Arc<Shown>>,
}

/// What files were like when they were looked at.
#[derive(Debug)]
pub struct State(Fingerprint);

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ClientError {
    /// A folder of authorities can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The versions and suites chosen do not go together.
    #[error("TLS settings cannot be used for connections to pods: {0}")]
    Config(#[from] rustls::Error),
}

#[derive(Debug)]
struct Configs {
    any: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

/// Believes every certificate whose key the pod has, or none.
#[derive(Debug)]
struct Blind {
    believes: bool,
    provider: Arc<CryptoProvider>,
}

/// Shows pods that ask for it the certificate that clients see by default, as the add-on does.
#[derive(Debug)]
struct Own(Arc<CertifiedKey>);

// === impl Client ===

impl Client {
    /// Reads the system's authorities, the private ones, and believes our own certificates too, as the add-on does.
    pub fn new(settings: Settings, serving: Option<&Certificates>) -> Result<Self, ClientError> {
        let configs = Arc::new(RwLock::new(Configs::new(&settings, serving)?));
        Ok(Self { settings: Arc::new(settings), configs, shown: None })
    }

    /// The same, but as this identity: it shows that certificate alone, and believes that identity's authorities, if it has
    /// any, instead of ours. It resumes no session of anybody else's.
    #[must_use]
    pub fn shown_as(&self, identity: Arc<Identity>) -> Self {
        Self { shown: Some(Arc::new(Shown::new(identity))), ..self.clone() }
    }

    /// For a new connection.
    pub fn config(&self, offer: Offer) -> Arc<ClientConfig> {
        let base = {
            let configs = self.configs.read();
            Arc::clone(match offer {
                Offer::Any => &configs.any,
                Offer::H2 => &configs.h2,
                Offer::Http1 => &configs.http1,
            })
        };
        match &self.shown {
            Some(shown) => shown.config(offer, base),
            None => base,
        }
    }

    /// Reads the authorities again, for connections from now on.
    pub fn reload(&self, serving: Option<&Certificates>) -> Result<(), ClientError> {
        let configs = Configs::new(&self.settings, serving)?;
        *self.configs.write() = configs;
        Ok(())
    }
}

/// For a connection on which nothing secret is said, and which is known by its mark: whatever the pod's certificate, and HTTP/1.1.
pub fn unverified(marked: &'static Marked) -> Arc<ClientConfig> {
    let provider = Arc::new(CryptoProvider { secure_random: marked, ..ring::default_provider() });
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has what these versions need");
    let verifier = Arc::new(Blind { believes: true, provider });
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// The state of all files that the settings name, to be taken before they are read: what changes meanwhile is then found by
/// [`follow`]. `None` when they can't be looked at.
pub fn state(settings: &Settings) -> Option<State> {
    fingerprint(settings).ok().map(State)
}

fn fingerprint(settings: &Settings) -> Result<Fingerprint, FileError> {
    let mut all = files::fingerprint_of(&settings.ca_folders)?;
    if let Some(paths) = &settings.serving {
        all.extend(paths.fingerprint()?);
    }
    Ok(all)
}

/// Reads what is served and what is believed again whenever one of the files is no longer in the state in which it was
/// `read`, until the process ends.
pub async fn follow(
    settings: Settings,
    read: Option<State>,
    resolver: Option<crate::Resolver>,
    client: Client,
    told: impl Fn(Reload),
) -> Infallible {
    let load = || -> Result<(), ClientError> {
        let serving = settings.serving.as_ref().zip(resolver.as_ref());
        let certificates = serving.map(|(paths, _)| Certificates::load(paths, &settings.provider)).transpose()?;
        client.reload(certificates.as_ref())?;
        if let (Some(certificates), Some((_, resolver))) = (certificates, serving) {
            resolver.replace(certificates);
        }
        Ok(())
    };
    reload::watch(read.map(|State(read)| read), || fingerprint(&settings), load, told).await
}

// === impl Configs ===

impl Configs {
    fn new(settings: &Settings, serving: Option<&Certificates>) -> Result<Self, ClientError> {
        let provider = &settings.provider;
        let verifier: Arc<dyn ServerCertVerifier> = if settings.skip_verify {
            Arc::new(Blind { believes: true, provider: Arc::clone(provider) })
        } else {
            let roots = Arc::new(roots(settings, serving)?);
            if roots.is_empty() {
                tracing::warn!("no authority is known: no pod's certificate will be believed");
                Arc::new(Blind { believes: false, provider: Arc::clone(provider) })
            } else {
                WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))?
            }
        };
        let config = |protocols: &[&[u8]]| -> Result<Arc<ClientConfig>, rustls::Error> {
            let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
                .with_protocol_versions(&settings.versions)?
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&verifier));
            let mut config = match serving.and_then(|serving| serving.find(None)) {
                Some(own) => builder.with_client_cert_resolver(Arc::new(Own(Arc::clone(own)))),
                None => builder.with_no_client_auth(),
            };
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Ok(Arc::new(config))
        };
        Ok(Self { any: config(&[b"h2", b"http/1.1"])?, h2: config(&[b"h2"])?, http1: config(&[b"http/1.1"])? })
    }
}

/// The authorities that pods' certificates may come from.
fn roots(settings: &Settings, serving: Option<&Certificates>) -> Result<RootCertStore, ClientError> {
    let system = rustls_native_certs::load_native_certs();
    for error in system.errors {
        tracing::debug!(%error, "the system's authorities are not all readable");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system.certs);
    let private = files::authorities(&settings.ca_folders)?;
    let (_, refused) = roots.add_parsable_certificates(private);
    if refused > 0 {
        tracing::warn!(refused, "certificates of KEDA_HTTP_TLS_CA_DIRS are none of an authority");
    }
    roots.add_parsable_certificates(serving.into_iter().flat_map(Certificates::leaves).cloned());
    Ok(roots)
}

// === impl Blind ===

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.believes { Ok(ServerCertVerified::assertion()) } else { Err(CertificateError::UnknownIssuer.into()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

// === impl Own ===

impl ResolvesClientCert for Own {
    fn resolve(&self, _authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
