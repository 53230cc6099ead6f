//! Certificates as a Kubernetes Secret has them: texts in memory. What can't be used is told without a word of a key.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use thiserror::Error;

/// Key of a Secret's data: the certificate with its chain.
pub const CERTIFICATE: &str = "tls.crt";

/// Key of a Secret's data: the certificate's key.
pub const KEY: &str = "tls.key";

/// Key of a Secret's data: the authorities that the other side's certificate may come from.
pub const AUTHORITIES: &str = "ca.crt";

/// What a Secret's data can't be used for.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It holds no PEM of the kind. What it holds instead is not told: it may be a key.
    #[error("{part} is of no use: expected {expected} in PEM")]
    Pem {
        /// Which part of the data.
        part: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// Key and certificate can't be used together.
    #[error("{CERTIFICATE} and {KEY} cannot be used together: {0}")]
    Pair(#[source] rustls::Error),
}

/// The certificate with its key.
pub fn pair(certificate: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, SecretError> {
    let chain = certificates(CERTIFICATE, certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_may_be_a_key| SecretError::Pem { part: KEY, expected: "a private key" })?;
    CertifiedKey::from_der(chain, key, provider).map(Arc::new).map_err(SecretError::Pair)
}

/// The authorities.
pub fn authorities(text: &[u8]) -> Result<RootCertStore, SecretError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(AUTHORITIES, text)?);
    if added == 0 {
        return Err(SecretError::Pem { part: AUTHORITIES, expected: "certificates of authorities" });
    }
    Ok(roots)
}

fn certificates(part: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, SecretError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or(SecretError::Pem { part, expected: "certificates" })
}

#[cfg(test)]
mod tests {
    use rustls::crypto::ring::default_provider;

    use super::*;

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_pair_is_read_and_what_is_none_is_told_without_its_text() {
        let (certificate, key) = made();
        let (_, other) = made();
        let read = |certificate: &str, key: &str| {
            pair(certificate.as_bytes(), key.as_bytes(), &default_provider()).map_err(|error| error.to_string())
        };
        assert_eq!(crate::names(&read(&certificate, &key).unwrap()), ["a.test"]);
        let torn = key.replace("-----END", "-----FIN");
        for (message, part) in [
            (read("", &key), CERTIFICATE),
            (read(&key, &key), CERTIFICATE),
            (read(&certificate, ""), KEY),
            (read(&certificate, &torn), KEY),
            (read(&certificate, &certificate), KEY),
            (read(&certificate, &other), "cannot be used together"),
        ] {
            let message = message.unwrap_err();
            let secret = key.lines().nth(1).unwrap();
            assert!(message.contains(part) && !message.contains(secret), "{message}");
        }
    }

    #[test]
    fn authorities_are_certificates() {
        let (certificate, key) = made();
        assert_eq!(authorities(certificate.repeat(2).as_bytes()).unwrap().len(), 2);
        for text in ["", "nothing", &key] {
            assert!(authorities(text.as_bytes()).unwrap_err().to_string().contains(AUTHORITIES));
        }
    }
}
