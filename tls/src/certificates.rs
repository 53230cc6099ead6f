//! Certificates by the names they were made out to. Chosen for each handshake; those of files and those of Secrets are each
//! replaced as a whole when they change.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::RwLock;
use rustls::{
    crypto::CryptoProvider,
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::files::{self, FileError, Paths};

/// All certificates that are served.
#[derive(Debug)]
pub struct Certificates {
    /// By exact name, in lower case.
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`, in lower case.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    /// For clients that name no host, or one that has no certificate.
    default: Option<Arc<CertifiedKey>>,
}

/// Chooses the certificate of a handshake. Clones share the certificates.
#[derive(Clone)]
pub struct Resolver(Arc<RwLock<Served>>);

/// From where certificates come. For the same name those of files stand before those of Secrets.
struct Served {
    files: Arc<Certificates>,
    secrets: Arc<Certificates>,
}

// === impl Certificates ===

impl Certificates {
    /// Reads all pairs. Of two certificates for one name the one later in the order of paths is served, with a warning.
    pub fn load(paths: &Paths, provider: &CryptoProvider) -> Result<Self, FileError> {
        let default = paths.default.as_ref().map(|(certificate, key)| pair(certificate, key, provider)).transpose()?;
        let mut all = Self::new(default, []);
        for (certificate, key) in paths.pairs()? {
            for name in all.add(&pair(&certificate, &key, provider)?) {
                tracing::warn!(name, "several certificates are made out to this name, the last one is served");
            }
        }
        Ok(all)
    }

    /// These, of which the last one for a name is served, and one for clients that none of them fits.
    pub fn new(default: Option<Arc<CertifiedKey>>, pairs: impl IntoIterator<Item = Arc<CertifiedKey>>) -> Self {
        let mut all = Self { exact: HashMap::new(), wildcard: HashMap::new(), default: default.clone() };
        for pair in default.into_iter().chain(pairs) {
            all.add(&pair);
        }
        all
    }

    /// The certificate for a name that a client asks for, if there is any.
    pub fn find(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let name = name.map(normal);
        let named = name.and_then(|name| self.exact.get(&name).or_else(|| self.covering(&name)));
        named.or(self.default.as_ref())
    }

    /// The certificates themselves, each chain's first.
    pub fn leaves(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        let named = self.exact.values().chain(self.wildcard.values());
        named.chain(&self.default).filter_map(|pair| pair.cert.first())
    }

    fn covering(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        name.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent))
    }

    /// Returns the names that another certificate but the default has lost by it.
    fn add(&mut self, pair: &Arc<CertifiedKey>) -> Vec<String> {
        let mut lost = Vec::new();
        for name in names(pair) {
            let (map, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent.to_owned()),
                None => (&mut self.exact, name),
            };
            let before = map.insert(name.clone(), Arc::clone(pair));
            let is_default =
                |before: &Arc<_>| self.default.as_ref().is_some_and(|default| Arc::ptr_eq(before, default));
            if before.is_some_and(|before| before.cert != pair.cert && !is_default(&before)) {
                lost.push(name);
            }
        }
        lost
    }
}

fn pair(
    certificate: &std::path::Path,
    key: &std::path::Path,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, FileError> {
    let chain = files::certificates(certificate)?;
    let secret = files::key(key)?;
    let pair = CertifiedKey::from_der(chain, secret, provider);
    let failed = |source| FileError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source };
    pair.map(Arc::new).map_err(failed)
}

/// A name as certificates are found by it.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The DNS names a certificate is made out to, in lower case. One that can't be read has none; it may still be the default.
pub fn names(pair: &CertifiedKey) -> Vec<String> {
    let certificate = pair.cert.first().and_then(|der| webpki::EndEntityCert::try_from(der).ok());
    certificate
        .map(|certificate| certificate.valid_dns_names().map(str::to_ascii_lowercase).collect())
        .unwrap_or_default()
}

// === impl Resolver ===

impl Resolver {
    /// Serves these, which are those of files.
    pub fn new(certificates: Certificates) -> Self {
        let secrets = Arc::new(Certificates::new(None, []));
        Self(Arc::new(RwLock::new(Served { files: Arc::new(certificates), secrets })))
    }

    /// Serves others of files from the next handshake on; connections that are open keep what they have.
    pub fn replace(&self, certificates: Certificates) {
        self.0.write().files = Arc::new(certificates);
    }

    /// The same for those of Secrets, beside those of files.
    pub fn replace_secrets(&self, certificates: Certificates) {
        self.0.write().secrets = Arc::new(certificates);
    }

    /// What is served of files now.
    pub fn current(&self) -> Arc<Certificates> {
        Arc::clone(&self.0.read().files)
    }

    /// The certificate for a name that a client asks for, wherever it comes from: one for just that name, one that covers it,
    /// or the default.
    pub fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let served = self.0.read();
        let Served { files, secrets } = &*served;
        let named = name.map(normal).and_then(|name| {
            let exact = files.exact.get(&name).or_else(|| secrets.exact.get(&name));
            exact.or_else(|| files.covering(&name)).or_else(|| secrets.covering(&name))
        });
        named.or(files.default.as_ref()).or(secrets.default.as_ref()).cloned()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;
    use rustls::crypto::ring;

    use super::*;

    /// Writes a self-signed pair for `names`.
    pub(crate) fn write_pair(folder: &Path, stem: &str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        fs::write(folder.join(format!("{stem}.crt")), made.cert.pem()).unwrap();
        fs::write(folder.join(format!("{stem}.key")), made.signing_key.serialize_pem()).unwrap();
    }

    pub(crate) fn paths(folder: &Path) -> Paths {
        let store = folder.join("store");
        fs::create_dir_all(&store).unwrap();
        Paths { default: Some((folder.join("default.crt"), folder.join("default.key"))), stores: vec![store] }
    }

    fn certificates(pairs: &[(&str, &[&str])]) -> Certificates {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        write_pair(folder.path(), "default", &["default.test"]);
        for (stem, names) in pairs {
            write_pair(&paths.stores[0], stem, names);
        }
        Certificates::load(&paths, &ring::default_provider()).unwrap()
    }

    fn served(certificates: &Certificates, name: Option<&str>) -> Vec<String> {
        names(certificates.find(name).unwrap())
    }

    #[test]
    fn an_exact_name_stands_before_a_wildcard_and_both_before_the_default() {
        let all = certificates(&[("a", &["a.example.com"]), ("w", &["*.example.com"])]);
        assert_eq!(served(&all, Some("a.example.com")), ["a.example.com"]);
        assert_eq!(served(&all, Some("A.Example.COM.")), ["a.example.com"]);
        assert_eq!(served(&all, Some("b.example.com")), ["*.example.com"]);
        for other in [Some("example.com"), Some("x.b.example.com"), Some(""), Some("."), None] {
            assert_eq!(served(&all, other), ["default.test"], "{other:?}");
        }
    }

    #[test]
    fn certificates_of_secrets_stand_beside_those_of_files_by_the_same_rules() {
        let made = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
            crate::secret::pair(certificate.as_bytes(), key.as_bytes(), &ring::default_provider()).unwrap()
        };
        let resolver = Resolver::new(certificates(&[("a", &["a.example.com"]), ("w", &["*.example.org"])]));
        let found = |name| names(&resolver.find(Some(name)).unwrap());
        assert_eq!(found("b.example.org"), ["*.example.org"]);
        let of_files = resolver.find(Some("a.example.com")).unwrap();
        let pairs = ["b.example.org", "*.example.com", "a.example.com"].map(made);
        resolver.replace_secrets(Certificates::new(Some(made("other.test")), pairs));
        assert_eq!(
            found("b.example.org"),
            ["b.example.org"],
            "an exact name of a Secret stands before a file's wildcard"
        );
        assert_eq!(found("c.example.com"), ["*.example.com"]);
        assert!(
            Arc::ptr_eq(&resolver.find(Some("a.example.com")).unwrap(), &of_files),
            "a file's stands before a Secret's"
        );
        assert_eq!(found("nobody.test"), ["default.test"], "the default of files stands before that of Secrets");
        resolver.replace(Certificates::new(None, []));
        assert_eq!(found("nobody.test"), ["other.test"]);
        resolver.replace_secrets(Certificates::new(None, []));
        assert!(resolver.find(Some("b.example.org")).is_none() && resolver.find(None).is_none());
    }

    #[test]
    fn of_two_certificates_for_a_name_the_later_path_is_served() {
        let all = certificates(&[("a", &["same.test", "a.test"]), ("b", &["same.test", "b.test"])]);
        assert!(served(&all, Some("same.test")).contains(&"b.test".to_owned()));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        write_pair(folder.path(), "default", &["a.test"]);
        write_pair(folder.path(), "other", &["b.test"]);
        fs::rename(folder.path().join("other.key"), folder.path().join("default.key")).unwrap();
        let message = Certificates::load(&paths, &ring::default_provider()).unwrap_err().to_string();
        assert!(message.contains("default.crt with") && message.contains("default.key"), "{message}");
    }

    #[test]
    fn files_that_hold_no_certificate_are_told_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        write_pair(folder.path(), "default", &["a.test"]);
        fs::write(paths.stores[0].join("bad.crt"), "nothing").unwrap();
        fs::write(paths.stores[0].join("bad.key"), "nothing").unwrap();
        let message = Certificates::load(&paths, &ring::default_provider()).unwrap_err().to_string();
        assert!(message.contains("bad.crt") && message.contains("expected certificates in PEM"), "{message}");
    }

    proptest! {
        #[test]
        fn any_name_a_client_asks_for_has_a_certificate(name in "\\PC{0,64}") {
            thread_local!(static ALL: Certificates = certificates(&[("w", &["*.example.com"])]));
            prop_assert!(ALL.with(|all| !all.find(Some(&name)).unwrap().cert.is_empty()));
        }
    }
}
