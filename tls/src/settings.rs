//! The add-on's TLS variables, as rustls wants them. A name that Go knows and rustls does not is left out with a warning;
//! one that nobody knows keeps the process from starting.

use std::{path::PathBuf, sync::Arc};

use runtime::env::{Env, EnvError};
use rustls::{
    CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{CryptoProvider, SupportedKxGroup, ring},
    version::{TLS12, TLS13},
};

use crate::files::Paths;

/// What both sides of the proxy agree upon, and where certificates lie.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Certificates for clients; `None` without a TLS listener.
    pub serving: Option<Paths>,
    /// Versions, cipher suites, key exchange.
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) versions: Vec<&'static SupportedProtocolVersion>,
    /// Whether pods' certificates are believed unseen.
    pub skip_verify: bool,
    /// Folders with certificates of private authorities that pods may have theirs from.
    pub ca_folders: Vec<PathBuf>,
}

/// The variable that names a Secret with the certificate for clients that no other fits, instead of files.
pub const DEFAULT_SECRET: &str = "ROUSE_TLS_DEFAULT_SECRET";

/// A setting under its present name and the one it had before.
#[derive(Clone, Copy)]
struct Variable {
    name: &'static str,
    before: &'static str,
}

const MIN_VERSION: Variable = Variable { name: "KEDA_HTTP_TLS_MIN_VERSION", before: "KEDA_HTTP_PROXY_TLS_MIN_VERSION" };
const MAX_VERSION: Variable = Variable { name: "KEDA_HTTP_TLS_MAX_VERSION", before: "KEDA_HTTP_PROXY_TLS_MAX_VERSION" };
const CIPHER_SUITES: Variable =
    Variable { name: "KEDA_HTTP_TLS_CIPHER_SUITES", before: "KEDA_HTTP_PROXY_TLS_CIPHER_SUITES" };
const CURVES: Variable =
    Variable { name: "KEDA_HTTP_TLS_CURVE_PREFERENCES", before: "KEDA_HTTP_PROXY_TLS_CURVE_PREFERENCES" };
const SKIP_VERIFY: Variable = Variable { name: "KEDA_HTTP_TLS_SKIP_VERIFY", before: "KEDA_HTTP_PROXY_TLS_SKIP_VERIFY" };

/// Suites that Go offers and rustls has given up: without authenticated encryption.
const CBC_SUITES: [&str; 4] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];

// === impl Variable ===

impl Variable {
    /// The value and the name it came under.
    fn read(self, env: &Env) -> Result<Option<(&'static str, String)>, EnvError> {
        if let Some(value) = env.optional_string(self.name)? {
            return Ok(Some((self.name, value)));
        }
        Ok(env.optional_string(self.before)?.map(|value| (self.before, value)))
    }
}

// === impl Settings ===

impl Settings {
    /// Cipher suites, key exchange and signatures.
    pub fn provider(&self) -> &CryptoProvider {
        &self.provider
    }

    /// Reads the variables.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let serving = env.bool("KEDA_HTTP_PROXY_TLS_ENABLED", false)?;
        let certificate = env.string("KEDA_HTTP_PROXY_TLS_CERT_PATH", "/certs/tls.crt")?.into();
        let key = env.string("KEDA_HTTP_PROXY_TLS_KEY_PATH", "/certs/tls.key")?.into();
        let in_secret = env.optional_string(DEFAULT_SECRET)?.is_some();
        let paths = Paths {
            default: (!in_secret).then_some((certificate, key)),
            stores: list(&env.string("KEDA_HTTP_PROXY_TLS_CERT_STORE_PATHS", "")?).map(PathBuf::from).collect(),
        };
        let skip_verify = env.optional_string(SKIP_VERIFY.name)?.map_or(SKIP_VERIFY.before, |_| SKIP_VERIFY.name);
        Ok(Self {
            serving: serving.then_some(paths),
            provider: Arc::new(CryptoProvider {
                cipher_suites: cipher_suites(env)?,
                kx_groups: groups(env)?,
                ..ring::default_provider()
            }),
            versions: versions(env)?,
            skip_verify: env.bool(skip_verify, false)?,
            ca_folders: list(&env.string("KEDA_HTTP_TLS_CA_DIRS", "")?).map(PathBuf::from).collect(),
        })
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|part| !part.is_empty())
}

fn invalid(variable: &'static str, value: &str, expected: impl Into<String>) -> EnvError {
    EnvError::Invalid { variable, value: value.to_owned(), expected: expected.into() }
}

fn versions(env: &Env) -> Result<Vec<&'static SupportedProtocolVersion>, EnvError> {
    let version = |variable: Variable| {
        let Some((name, value)) = variable.read(env)? else { return Ok(None) };
        match value.as_str() {
            "1.2" | "TLS12" => Ok(Some((name, value, 2))),
            "1.3" | "TLS13" => Ok(Some((name, value, 3))),
            _ => Err(invalid(name, &value, "1.2, 1.3, TLS12 or TLS13")),
        }
    };
    let (min, max) = (version(MIN_VERSION)?, version(MAX_VERSION)?);
    match (min.as_ref().map_or(2, |(.., minor)| *minor), max.as_ref().map_or(3, |(.., minor)| *minor)) {
        (2, 2) => Ok(vec![&TLS12]),
        (3, 3) => Ok(vec![&TLS13]),
        (2, _) => Ok(vec![&TLS13, &TLS12]),
        _ => {
            let (name, value, _) = min.expect("only what is set can be above the other");
            Err(invalid(name, &value, "a version that is not above the highest allowed"))
        }
    }
}

fn cipher_suites(env: &Env) -> Result<Vec<SupportedCipherSuite>, EnvError> {
    let Some((name, value)) = CIPHER_SUITES.read(env)? else { return Ok(ring::ALL_CIPHER_SUITES.to_vec()) };
    let (of_1_3, mut suites): (Vec<_>, Vec<_>) =
        ring::ALL_CIPHER_SUITES.iter().copied().partition(|suite| suite.version() == &TLS13);
    let mut wanted = Vec::new();
    let mut asked = false;
    for part in list(&value).map(str::trim).filter(|part| !part.is_empty()) {
        asked = true;
        match suite(part) {
            // As in Go, the suites of TLS 1.3 can't be chosen.
            Some(suite) if of_1_3.iter().any(|known| known.suite() == suite) => {}
            Some(suite) => wanted.push(suite),
            None if CBC_SUITES.contains(&part) => {
                tracing::warn!(variable = name, suite = part, "this cipher suite is not supported, and left out");
            }
            None => return Err(invalid(name, &value, format!("cipher suites' names, which {part:?} is not"))),
        }
    }
    if !asked {
        return Ok(ring::ALL_CIPHER_SUITES.to_vec());
    }
    suites.retain(|known| wanted.contains(&known.suite()));
    Ok(of_1_3.into_iter().chain(suites).collect())
}

/// A suite by its name in IANA's registry, or by Go's older name for one of the two with Poly1305.
fn suite(name: &str) -> Option<CipherSuite> {
    let name = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        name => name,
    };
    let iana = |suite: CipherSuite| match suite {
        // rustls names these three as RFC 8446's text does.
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256".to_owned(),
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384".to_owned(),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256".to_owned(),
        suite => format!("{suite:?}"),
    };
    ring::ALL_CIPHER_SUITES.iter().map(SupportedCipherSuite::suite).find(|known| iana(*known) == name)
}

fn groups(env: &Env) -> Result<Vec<&'static dyn SupportedKxGroup>, EnvError> {
    let Some((name, value)) = CURVES.read(env)? else { return Ok(ring::ALL_KX_GROUPS.to_vec()) };
    let mut groups: Vec<&'static dyn SupportedKxGroup> = Vec::new();
    let mut asked = false;
    for part in list(&value).map(str::trim).filter(|part| !part.is_empty()) {
        asked = true;
        let group = match part {
            "CurveP256" | "P-256" => NamedGroup::secp256r1,
            "CurveP384" | "P-384" => NamedGroup::secp384r1,
            "CurveP521" | "P-521" => NamedGroup::secp521r1,
            "X25519" => NamedGroup::X25519,
            "X25519MLKEM768" => NamedGroup::X25519MLKEM768,
            _ => return Err(invalid(name, &value, format!("names of curves, which {part:?} is not"))),
        };
        if let Some(known) = ring::ALL_KX_GROUPS.iter().find(|known| known.name() == group) {
            groups.push(*known);
        } else {
            tracing::warn!(variable = name, curve = part, "this curve is not supported, and left out");
        }
    }
    match (asked, groups.is_empty()) {
        (false, _) => Ok(ring::ALL_KX_GROUPS.to_vec()),
        (true, false) => Ok(groups),
        (true, true) => Err(invalid(name, &value, "at least one of X25519, P-256 and P-384")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<Settings, EnvError> {
        Settings::from_env(&Env::from_pairs(pairs.iter().copied()))
    }

    fn names(settings: &Settings) -> Vec<String> {
        settings.provider.cipher_suites.iter().map(|suite| format!("{:?}", suite.suite())).collect()
    }

    #[test]
    fn without_variables_there_is_no_listener_and_both_versions() {
        let settings = settings(&[]).unwrap();
        assert!(settings.serving.is_none() && !settings.skip_verify && settings.ca_folders.is_empty());
        assert_eq!((settings.versions.len(), settings.provider.kx_groups.len()), (2, 3));
        assert_eq!(settings.provider.cipher_suites.len(), 9);
    }

    #[test]
    fn the_listener_s_files_have_the_add_on_s_defaults() {
        let pairs = [("KEDA_HTTP_PROXY_TLS_ENABLED", "true"), ("KEDA_HTTP_PROXY_TLS_CERT_STORE_PATHS", "/a,/b")];
        let Paths { default, stores } = settings(&pairs).unwrap().serving.unwrap();
        assert_eq!(default, Some(("/certs/tls.crt".into(), "/certs/tls.key".into())));
        assert_eq!(stores, [PathBuf::from("/a"), "/b".into()]);
        let of_secret = [pairs[0], (DEFAULT_SECRET, "shop/tls")];
        assert_eq!(settings(&of_secret).unwrap().serving.unwrap().default, None, "no file need be there");
    }

    #[test]
    fn versions_have_two_spellings_and_two_names() {
        for (variable, value) in [("KEDA_HTTP_TLS_MIN_VERSION", "1.3"), ("KEDA_HTTP_PROXY_TLS_MIN_VERSION", "TLS13")] {
            assert_eq!(settings(&[(variable, value)]).unwrap().versions, [&TLS13]);
        }
        let both = [("KEDA_HTTP_TLS_MAX_VERSION", "1.2"), ("KEDA_HTTP_PROXY_TLS_MAX_VERSION", "1.3")];
        assert_eq!(settings(&both).unwrap().versions, [&TLS12], "the present name wins");
        let crossed = [("KEDA_HTTP_TLS_MAX_VERSION", "1.2"), ("KEDA_HTTP_TLS_MIN_VERSION", "1.3")];
        let message = settings(&crossed).unwrap_err().to_string();
        assert!(message.contains("KEDA_HTTP_TLS_MIN_VERSION is \"1.3\""), "{message}");
        let message = settings(&[("KEDA_HTTP_TLS_MIN_VERSION", "1.1")]).unwrap_err().to_string();
        assert!(message.contains("expected 1.2, 1.3"), "{message}");
    }

    #[test]
    fn cipher_suites_are_chosen_by_name_for_tls_1_2_alone() {
        let chosen =
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,,TLS_AES_128_GCM_SHA256";
        let settings = settings(&[("KEDA_HTTP_TLS_CIPHER_SUITES", chosen)]).unwrap();
        let names = names(&settings);
        assert_eq!(names.iter().filter(|name| name.starts_with("TLS13")).count(), 3, "{names:?}");
        assert_eq!(
            names.iter().filter(|name| !name.starts_with("TLS13")).collect::<Vec<_>>(),
            ["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]
        );
    }

    #[test]
    fn every_suite_of_rustls_has_the_name_that_go_gives_it() {
        for suite in ring::ALL_CIPHER_SUITES {
            let name = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
            assert_eq!(super::suite(&name), Some(suite.suite()), "{name}");
        }
    }

    #[test]
    fn unknown_suites_and_curves_are_told_with_their_variable() {
        for (variable, value) in [
            ("KEDA_HTTP_TLS_CIPHER_SUITES", "TLS_NULL"),
            ("KEDA_HTTP_PROXY_TLS_CURVE_PREFERENCES", "X25519,P-999"),
            ("KEDA_HTTP_TLS_CURVE_PREFERENCES", "CurveP521"),
        ] {
            let message = settings(&[(variable, value)]).unwrap_err().to_string();
            assert!(message.contains(variable) && message.contains(value), "{message}");
        }
    }

    #[test]
    fn curves_keep_their_order() {
        let settings = settings(&[("KEDA_HTTP_TLS_CURVE_PREFERENCES", "P-384,CurveP521,X25519")]).unwrap();
        let names: Vec<_> = settings.provider.kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(names, [NamedGroup::secp384r1, NamedGroup::X25519]);
    }
}
