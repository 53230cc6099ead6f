//! Who the proxy is to the pods of routes that say so: by Secret. Written by the control side, read by workers when the pods of
//! such a route are looked up, never by others.

use std::{collections::HashMap, sync::Arc};

use api::names::TLS_LABEL;
use interceptor_core::ObjectKey;
use parking_lot::RwLock;
use tls::client::Identity;

use super::SECRETS;

/// Tells one content of a Secret from another; never given twice in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct IdentityId(pub(crate) u64);

/// Those that are known, or why one can't be used. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identities(Arc<RwLock<Known>>);

type Known = HashMap<ObjectKey, Result<(IdentityId, Arc<Identity>), Arc<str>>>;

/// There is no such identity, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("Secret {secret} {why}")]
pub(crate) struct Unknown {
    secret: ObjectKey,
    why: Arc<str>,
}

// === impl Identities ===

impl Identities {
    /// That of a Secret.
    pub(crate) fn find(&self, secret: &ObjectKey) -> Result<(IdentityId, Arc<Identity>), Unknown> {
        let missing = || {
            format!("is not there, has not the label {TLS_LABEL}=client, or is not among those that {SECRETS} names")
                .into()
        };
        let known = self.0.read().get(secret).cloned().unwrap_or_else(|| Err(missing()));
        known.map_err(|why| Unknown { secret: secret.clone(), why })
    }

    /// Whether somebody may still be this.
    pub(crate) fn is_current(&self, id: IdentityId) -> bool {
        self.0.read().values().any(|known| known.as_ref().is_ok_and(|(known, _)| *known == id))
    }

    /// Those that are known from now on.
    pub(crate) fn replace(&self, known: Known) {
        *self.0.write() = known;
    }
}
