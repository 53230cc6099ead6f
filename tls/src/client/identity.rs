//! Who the proxy is to the pods of one route: a certificate of their own for them, and authorities they are believed by.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use rustls::{
    ClientConfig,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    sign::CertifiedKey,
};

use super::{Offer, Own};
use crate::secret::{self, SecretError};

/// A certificate for pods that ask for one, and who is believed.
pub struct Identity {
    pair: Arc<CertifiedKey>,
    /// By its own authorities; by those of everybody without.
    verifier: Option<Arc<dyn ServerCertVerifier>>,
}

/// An identity in use: its configurations, made of those of everybody.
#[derive(Debug)]
pub(super) struct Shown {
    identity: Arc<Identity>,
    made: Mutex<[Option<Made>; 3]>,
}

#[derive(Debug)]
struct Made {
    base: Arc<ClientConfig>,
    config: Arc<ClientConfig>,
}

// === impl Identity ===

impl Identity {
    /// Of a Secret's certificate, key and authorities.
    pub fn new(
        certificate: &[u8],
        key: &[u8],
        authorities: Option<&[u8]>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, SecretError> {
        let pair = secret::pair(certificate, key, provider)?;
        let verifier = authorities.map(|authorities| {
            let roots = Arc::new(secret::authorities(authorities)?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build();
            let unusable = |_builder_error| SecretError::Pem {
                part: secret::AUTHORITIES,
                expected: "certificates of authorities",
            };
            verifier.map(|verifier| verifier as Arc<dyn ServerCertVerifier>).map_err(unusable)
        });
        Ok(Self { pair, verifier: verifier.transpose()? })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

// === impl Shown ===

impl Shown {
    pub(super) fn new(identity: Arc<Identity>) -> Self {
        Self { identity, made: Mutex::default() }
    }

    /// `base` as this identity. Made once: its sessions can be resumed, and by nobody else.
    pub(super) fn config(&self, offer: Offer, base: Arc<ClientConfig>) -> Arc<ClientConfig> {
        let at = match offer {
            Offer::Any => 0,
            Offer::H2 => 1,
            Offer::Http1 => 2,
        };
        let mut all = self.made.lock();
        if let Some(made) = all[at].as_ref().filter(|made| Arc::ptr_eq(&made.base, &base)) {
            return Arc::clone(&made.config);
        }
        let Identity { pair, verifier } = &*self.identity;
        let mut config = ClientConfig::clone(&base);
        config.client_auth_cert_resolver = Arc::new(Own(Arc::clone(pair)));
        config.resumption = Resumption::default();
        if let Some(verifier) = verifier {
            config.dangerous().set_certificate_verifier(Arc::clone(verifier));
        }
        let config = Arc::new(config);
        all[at] = Some(Made { base, config: Arc::clone(&config) });
        config
    }
}
