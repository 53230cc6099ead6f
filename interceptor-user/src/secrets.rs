//! Kubernetes Secrets with certificates: which of them may be read, and what for. Nothing is read unless settings say so.

use api::names::TLS_LABEL;
use interceptor_core::ObjectKey;
use k8s_openapi::api::core::v1::Secret;
use runtime::{
    env::{Env, EnvError},
    watch::{Kind, Watch},
};

mod identities;

pub(crate) use self::identities::{Identities, IdentityId, Unknown};

/// The variable that says which Secrets are read.
pub(crate) const SECRETS: &str = "ROUSE_TLS_SECRETS";

/// Which Secrets are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretSources {
    scopes: Vec<Scope>,
    /// The one with the certificate for clients that no other fits.
    pub(crate) default: Option<ObjectKey>,
}

/// Some Secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    /// Those with the label, wherever they are.
    Everywhere,
    /// Those of a namespace with the label.
    Namespace(String),
    /// One, with or without the label.
    One(ObjectKey),
}

/// What a Secret's certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is shown to clients.
    Server,
    /// It is shown to the pods of routes that name it.
    Client,
}

// === impl SecretSources ===

impl SecretSources {
    /// Reads the variables.
    pub(crate) fn from_env(env: &Env) -> Result<Self, EnvError> {
        let mut scopes = env.list(SECRETS, "*, NAMESPACE/* or NAMESPACE/NAME, with commas between them", scope)?;
        let default = env.list(tls::settings::DEFAULT_SECRET, "NAMESPACE/NAME", |text| match scope(text)? {
            Scope::One(key) => Some(key),
            Scope::Everywhere | Scope::Namespace(_) => None,
        })?;
        let default = default.into_iter().next();
        scopes.extend(default.clone().map(Scope::One));
        // Each Secret is told of by one watch alone.
        let is_everywhere = scopes.contains(&Scope::Everywhere);
        let whole: Vec<_> = scopes.iter().filter(|scope| matches!(scope, Scope::Namespace(_))).cloned().collect();
        let mut kept: Vec<Scope> = Vec::new();
        for scope in scopes {
            let covered = match &scope {
                Scope::Everywhere => false,
                Scope::Namespace(_) => is_everywhere,
                Scope::One(key) => is_everywhere || whole.contains(&Scope::Namespace(key.namespace().to_owned())),
            };
            if !covered && !kept.contains(&scope) {
                kept.push(scope);
            }
        }
        Ok(Self { scopes: kept, default })
    }

    /// What has to be watched for them; `namespace` is that of all routes, if they are of one.
    pub(crate) fn watches(&self, namespace: Option<&str>) -> Vec<Watch> {
        let watch = |scope: &Scope| match scope {
            Scope::Everywhere => Watch::all(Kind::Secret, namespace).labelled(TLS_LABEL),
            Scope::Namespace(namespace) => Watch::all(Kind::Secret, Some(namespace)).labelled(TLS_LABEL),
            Scope::One(key) => Watch::all(Kind::Secret, Some(key.namespace())).named(key.name()),
        };
        self.scopes.iter().map(watch).collect()
    }

    /// What a Secret is for, if it is among them. One that was named for itself and has no label is for clients.
    pub(crate) fn used(&self, key: &ObjectKey, secret: &Secret) -> Option<Use> {
        let label = secret.metadata.labels.as_ref().and_then(|labels| labels.get(TLS_LABEL)).map(String::as_str);
        let named = |scope: &Scope| matches!(scope, Scope::One(one) if one == key);
        let whole = |scope: &Scope| match scope {
            Scope::Everywhere => true,
            Scope::Namespace(namespace) => namespace == key.namespace(),
            Scope::One(_) => false,
        };
        let is_named = self.scopes.iter().any(named);
        match label {
            _ if !is_named && !self.scopes.iter().any(whole) => None,
            Some("client") => Some(Use::Client),
            Some("server") => Some(Use::Server),
            _ => is_named.then_some(Use::Server),
        }
    }
}

fn scope(text: &str) -> Option<Scope> {
    let is_name = |text: &str| {
        let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        !text.is_empty() && text.len() <= 253 && text.bytes().all(is_part)
    };
    if text == "*" {
        return Some(Scope::Everywhere);
    }
    match text.split_once('/')? {
        (namespace, "*") if is_name(namespace) => Some(Scope::Namespace(namespace.to_owned())),
        (namespace, name) if is_name(namespace) && is_name(name) => Some(Scope::One(ObjectKey::new(namespace, name))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sources(secrets: &str, default: &str) -> Result<SecretSources, EnvError> {
        let pairs = [(SECRETS, secrets), (tls::settings::DEFAULT_SECRET, default)];
        SecretSources::from_env(&Env::from_pairs(pairs))
    }

    fn used(sources: &SecretSources, namespace: &str, name: &str, label: Option<&str>) -> Option<Use> {
        let mut secret = Secret::default();
        secret.metadata.labels = label.map(|label| BTreeMap::from([(TLS_LABEL.to_owned(), label.to_owned())]));
        sources.used(&ObjectKey::new(namespace, name), &secret)
    }

    #[test]
    fn no_secret_is_read_unless_it_is_asked_for() {
        let none = sources("", "").unwrap();
        assert!(none.watches(None).is_empty() && none.watches(Some("shop")).is_empty());
        assert_eq!(used(&none, "shop", "tls", Some("server")), None);
    }

    #[test]
    fn secrets_of_whole_namespaces_need_the_label_and_named_ones_do_not() {
        let some = sources("shop/*, pay/one", "").unwrap();
        assert_eq!(used(&some, "shop", "a", Some("server")), Some(Use::Server));
        assert_eq!(used(&some, "shop", "a", Some("client")), Some(Use::Client));
        assert_eq!(used(&some, "shop", "a", Some("else")), None);
        assert_eq!(used(&some, "shop", "a", None), None);
        assert_eq!(used(&some, "pay", "one", None), Some(Use::Server));
        assert_eq!(used(&some, "pay", "one", Some("client")), Some(Use::Client));
        assert_eq!(used(&some, "pay", "two", Some("server")), None);
        let watches = some.watches(None);
        assert_eq!(watches[0], Watch::all(Kind::Secret, Some("shop")).labelled(TLS_LABEL));
        assert_eq!(watches[1], Watch::all(Kind::Secret, Some("pay")).named("one"));
    }

    #[test]
    fn no_secret_is_watched_twice() {
        let all = sources("a/one,*,b/*,a/one", "c/tls").unwrap();
        assert_eq!(all.watches(None), [Watch::all(Kind::Secret, None).labelled(TLS_LABEL)]);
        assert_eq!(all.watches(Some("shop")), [Watch::all(Kind::Secret, Some("shop")).labelled(TLS_LABEL)]);
        let some = sources("a/one,a/*,b/one,b/one", "b/one").unwrap();
        assert_eq!(some.watches(None).len(), 2, "{some:?}");
        assert_eq!(some.default, Some(ObjectKey::new("b", "one")));
    }

    #[test]
    fn what_names_no_secret_is_told_with_its_variable() {
        for (secrets, default) in [("shop", ""), ("shop/", ""), ("/x", ""), ("a/b/c", ""), ("a/b=c", ""), ("*/*", "")] {
            let message = sources(secrets, default).unwrap_err().to_string();
            assert!(message.contains(SECRETS) && message.contains(secrets), "{message}");
        }
        for default in ["*", "shop/*", "shop"] {
            let message = sources("", default).unwrap_err().to_string();
            assert!(message.contains("ROUSE_TLS_DEFAULT_SECRET") && message.contains(default), "{message}");
        }
    }
}
