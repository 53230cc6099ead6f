//! Certificates of Secrets as watches tell of them: checked one by one, served all together. One that can't be used stops no
//! other, and nothing of a key is ever told.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use api::convert;
use interceptor_core::{
    ObjectKey,
    index::{Event, MAX_PROBLEMS},
    route::RouteKind,
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use sha2::{Digest as _, Sha256};
use tls::{Certificates, Resolver, client::Identity, secret};

use super::discover::Problem;
use crate::secrets::{Identities, IdentityId, SecretSources, Use};

/// Secrets that are used: those that come later are named in `/state`.
const MAX_SECRETS: usize = 10_000;

/// The type of a Secret with a certificate.
const TLS_TYPE: &str = "kubernetes.io/tls";

/// All Secrets with certificates. Owned by the discovery task.
#[derive(Debug)]
pub(crate) struct Secrets {
    sources: SecretSources,
    provider: Arc<CryptoProvider>,
    /// Where certificates for clients are served from, if there is a listener for TLS.
    resolver: Option<Resolver>,
    identities: Identities,
    known: BTreeMap<ObjectKey, Known>,
    /// Secrets that routes name for their pods, by route.
    named: BTreeMap<ObjectKey, ObjectKey>,
    next: u64,
    changed: bool,
    faults: Vec<Problem>,
    counts: Family<[(&'static str, &'static str); 2], Gauge>,
}

/// One Secret.
#[derive(Debug)]
struct Known {
    digest: [u8; 32],
    created: i64,
    content: Content,
    /// Why what it holds now can't be used.
    fault: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
enum Content {
    /// What is served of it: the last that could be used.
    Server(Option<Arc<CertifiedKey>>),
    Client(Option<(IdentityId, Arc<Identity>)>),
}

// === impl Secrets ===

impl Secrets {
    pub(crate) fn new(
        sources: SecretSources,
        provider: Arc<CryptoProvider>,
        (resolver, identities): (Option<Resolver>, Identities),
        registry: &mut Registry,
    ) -> Self {
        let counts = Family::default();
        let help = "Secrets with certificates, by whom they are for and whether they can be used";
        registry.sub_registry_with_prefix("rouse").register("tls_secrets", help, counts.clone());
        Self {
            sources,
            provider,
            resolver,
            identities,
            known: BTreeMap::new(),
            named: BTreeMap::new(),
            next: 0,
            // Nothing is known yet, which may be wrong too.
            changed: true,
            faults: Vec::new(),
            counts,
        }
    }

    /// Takes a Secret in.
    pub(crate) fn put(&mut self, object: &Secret) {
        let Ok(key) = convert::key(&object.metadata) else { return };
        let Some(wanted) = self.sources.used(&key, object) else { return self.take(&key) };
        let digest = digest(object);
        let old = self.known.remove(&key);
        let old = match old {
            Some(same) if same.digest == digest && same.content.is_for() == wanted => {
                self.known.insert(key, same);
                return;
            }
            old => old,
        };
        self.changed = true;
        let created = object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let full = old.is_none() && self.known.len() >= MAX_SECRETS;
        let known = if full {
            let fault = Some(format!("is not used: there are {MAX_SECRETS} others").into());
            Known { digest, created, content: Content::none(wanted), fault }
        } else {
            let (content, fault) = match self.read(object, wanted) {
                Ok(content) => (content, None),
                Err(fault) => {
                    (old.map_or(Content::none(wanted), |old| old.content.outdated(wanted)), Some(fault.into()))
                }
            };
            Known { digest, created, content, fault }
        };
        // Those for which there is no room are known until there are as many again, so that they can be told.
        if self.known.len() < 2 * MAX_SECRETS {
            self.known.insert(key, known);
        }
    }

    /// A Secret is gone, or is not for us any more.
    pub(crate) fn take(&mut self, key: &ObjectKey) {
        self.changed |= self.known.remove(key).is_some();
    }

    /// Keeps which routes name which Secret.
    pub(crate) fn note(&mut self, change: &Event) {
        match change {
            Event::Route(route) if route.kind == RouteKind::InterceptorRoute => match &route.identity {
                Some(secret) => _ = self.named.insert(route.key.clone(), secret.clone()),
                None => _ = self.named.remove(&route.key),
            },
            Event::RouteGone(RouteKind::InterceptorRoute, key) => _ = self.named.remove(key),
            _ => {}
        }
    }

    /// Brings into use what has changed. To be called before the snapshot that lets workers look again.
    pub(crate) fn settle(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        if let Some(resolver) = &self.resolver {
            let default = self.sources.default.as_ref().and_then(|key| self.known.get(key)?.content.server().cloned());
            // The oldest is the last, and is served.
            let pairs = self.oldest_first().into_iter().rev().map(|(_, pair)| Arc::clone(pair));
            resolver.replace_secrets(Certificates::new(default, pairs));
        }
        let mut identities = HashMap::new();
        for (key, known) in &self.known {
            let Content::Client(identity) = &known.content else { continue };
            let fault = || known.fault.clone().unwrap_or_else(|| "is of no use".into());
            identities.insert(key.clone(), identity.clone().ok_or_else(fault));
        }
        self.identities.replace(identities);
        self.faults = self.find_faults();
        self.counts.clear();
        for known in self.known.values() {
            let (used, state) = (known.content.is_for(), if known.fault.is_some() { "unusable" } else { "used" });
            let used = if used == Use::Server { "server" } else { "client" };
            self.counts.get_or_create(&[("use", used), ("state", state)]).inc();
        }
    }

    /// What is wrong with which Secret, as of the last [`settle`](Self::settle), and which routes lack theirs.
    pub(crate) fn problems(&self) -> impl Iterator<Item = Problem> {
        let lacking =
            self.named.iter().filter_map(|(route, secret)| Some((route, self.identities.find(secret).err()?)));
        let lacking = lacking.map(|(route, why)| Problem {
            object: format!("InterceptorRoute {route}"),
            message: format!("{why}: its requests get 502"),
        });
        self.faults.iter().cloned().chain(lacking.take(MAX_PROBLEMS))
    }

    fn find_faults(&self) -> Vec<Problem> {
        let about = |key: &ObjectKey, message: String| Problem { object: format!("Secret {key}"), message };
        let unusable = self.known.iter().filter_map(|(key, known)| Some(about(key, known.fault.as_ref()?.to_string())));
        let default = self.sources.default.as_ref().filter(|key| !self.known.contains_key(*key));
        let missing =
            default.map(|key| about(key, "is not there: clients that no certificate fits get none".to_owned()));
        let taken = self.names_taken().into_iter().map(|(key, message)| about(&key, message));
        unusable.take(MAX_PROBLEMS).chain(missing).chain(taken).collect()
    }

    fn read(&mut self, object: &Secret, wanted: Use) -> Result<Content, String> {
        let part = |name: &'static str| {
            let data = object.data.as_ref().and_then(|data| data.get(name));
            data.map(|ByteString(bytes)| bytes.as_slice())
        };
        let needed = |name| part(name).ok_or_else(|| format!("has no {name} in its data"));
        match wanted {
            Use::Server if object.type_.as_deref() != Some(TLS_TYPE) => {
                Err(format!("is of type {:?}: expected {TLS_TYPE}", object.type_.as_deref().unwrap_or("Opaque")))
            }
            Use::Server => {
                let (certificate, key) = (needed(secret::CERTIFICATE)?, needed(secret::KEY)?);
                let pair = secret::pair(certificate, key, &self.provider).map_err(|error| error.to_string())?;
                Ok(Content::Server(Some(pair)))
            }
            Use::Client => {
                let (certificate, key) = (needed(secret::CERTIFICATE)?, needed(secret::KEY)?);
                let authorities = part(secret::AUTHORITIES).filter(|text| !text.is_empty());
                let identity = Identity::new(certificate, key, authorities, &self.provider);
                let identity = identity.map_err(|error| error.to_string())?;
                self.next += 1;
                Ok(Content::Client(Some((IdentityId(self.next), Arc::new(identity)))))
            }
        }
    }

    fn oldest_first(&self) -> Vec<(&ObjectKey, &Arc<CertifiedKey>)> {
        let servers = self.known.iter().filter_map(|(key, known)| Some((known.created, key, known.content.server()?)));
        let mut servers: Vec<_> = servers.collect();
        servers.sort_by_key(|(created, key, _)| (*created, *key));
        servers.into_iter().map(|(_, key, pair)| (key, pair)).collect()
    }

    /// Certificates of which some names are an older Secret's.
    fn names_taken(&self) -> BTreeMap<ObjectKey, String> {
        let mut owners: HashMap<String, &ObjectKey> = HashMap::new();
        let mut taken = BTreeMap::new();
        for (key, pair) in self.oldest_first() {
            for name in tls::names(pair) {
                match owners.get(&name) {
                    Some(owner) if *owner != key && taken.len() < MAX_PROBLEMS => {
                        let message = format!("is not served for {name}: Secret {owner} is older");
                        taken.entry(key.clone()).or_insert(message);
                    }
                    Some(_) => {}
                    None => _ = owners.insert(name, key),
                }
            }
        }
        taken
    }
}

// === impl Content ===

impl Content {
    fn none(wanted: Use) -> Self {
        match wanted {
            Use::Server => Self::Server(None),
            Use::Client => Self::Client(None),
        }
    }

    /// What is left of it when the Secret can't be used any more: clients get the certificate they got, since any other is
    /// worse; pods get none, since it may have been taken back.
    fn outdated(self, wanted: Use) -> Self {
        match (self, wanted) {
            (Self::Server(pair), Use::Server) => Self::Server(pair),
            (Self::Server(_) | Self::Client(_), wanted) => Self::none(wanted),
        }
    }

    fn is_for(&self) -> Use {
        match self {
            Self::Server(_) => Use::Server,
            Self::Client(_) => Use::Client,
        }
    }

    fn server(&self) -> Option<&Arc<CertifiedKey>> {
        match self {
            Self::Server(pair) => pair.as_ref(),
            Self::Client(_) => None,
        }
    }
}

/// Of all that a Secret is used for.
fn digest(object: &Secret) -> [u8; 32] {
    let mut digest = Sha256::new();
    let kind = object.type_.as_deref().unwrap_or_default().as_bytes();
    let parts = [secret::CERTIFICATE, secret::KEY, secret::AUTHORITIES];
    let data = |name| object.data.as_ref().and_then(|data| data.get(name)).map_or(&[][..], |part| &part.0);
    for part in std::iter::once(kind).chain(parts.into_iter().map(data)) {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}
