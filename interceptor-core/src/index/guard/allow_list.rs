//! A namespace's routes may claim the hosts that its annotation lists, and no others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
};

use super::Why;
use crate::{
    ObjectKey, Route,
    route::host::{self, HostPattern},
};

/// Annotation of a Namespace: the hosts that its routes may claim, with commas between them.
pub const ALLOWED_HOSTS_ANNOTATION: &str = "http.keda.sh/allowed-hosts";

/// Hosts of one namespace that are read; what comes after them is told, and not allowed.
const MAX_HOSTS: usize = 4096;

/// Entries that are no hosts and are told.
const MAX_TOLD: usize = 3;

/// The hosts that a namespace's routes may claim: names, `*.suffix` for all below it, and `*` for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts {
    hosts: HashSet<HostPattern>,
    /// The first entries that can't be used.
    invalid: Vec<String>,
}

/// What namespaces allow.
#[derive(Debug, Default)]
pub(in crate::index) struct AllowList {
    /// By namespace, those that are known; `None` where there is no annotation.
    allowed: HashMap<Arc<str>, Option<AllowedHosts>>,
    /// The routes as they are written.
    routes: BTreeMap<ObjectKey, Route>,
}

// === impl AllowedHosts ===

impl AllowedHosts {
    /// The hosts of an annotation. An entry that is no host allows nothing, and stops no other.
    pub fn parse(text: &str) -> Self {
        let mut all = Self::default();
        let entries = text.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|entry| !entry.is_empty());
        for (at, entry) in entries.enumerate() {
            let pattern = HostPattern::parse(entry).filter(|pattern| !entry.contains('/') && is_host(pattern));
            match pattern.filter(|_| at < MAX_HOSTS) {
                Some(pattern) => {
                    all.hosts.insert(pattern);
                }
                None if all.invalid.len() < MAX_TOLD => {
                    let more = if at < MAX_HOSTS { "" } else { " (there are too many before it)" };
                    let entry: String = entry.chars().take(80).collect();
                    all.invalid.push(format!("{entry:?}{more}"));
                }
                None => {}
            }
        }
        all
    }

    fn allow(&self, pattern: &HostPattern) -> bool {
        let covers = |suffix: &str| self.hosts.contains(&HostPattern::Suffix(suffix.into()));
        self.hosts.contains(&HostPattern::Any)
            || self.hosts.contains(pattern)
            || match pattern {
                HostPattern::Any => false,
                HostPattern::Exact(name) | HostPattern::Suffix(name) => host::suffixes(name).any(covers),
            }
    }
}

/// Whether it is one that a client can ask for: not a URL, a path, or a wildcard in the middle.
fn is_host(pattern: &HostPattern) -> bool {
    let name = match pattern {
        HostPattern::Any => return true,
        HostPattern::Exact(name) | HostPattern::Suffix(name) => name,
    };
    let is_part =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'%') || byte >= 128;
    !name.starts_with('.') && name.bytes().all(is_part)
}

// === impl AllowList ===

impl AllowList {
    /// The route as it is written.
    pub(super) fn written(&self, key: &ObjectKey) -> Option<&Route> {
        self.routes.get(key)
    }

    /// Takes a route in; that touches no other.
    pub(super) fn put(&mut self, route: Route) {
        self.routes.insert(route.key.clone(), route);
    }

    /// Forgets a route.
    pub(super) fn take(&mut self, key: &ObjectKey) {
        self.routes.remove(key);
    }

    /// Takes in what a namespace allows; tells which routes have to be looked at again.
    pub(super) fn put_namespace(&mut self, name: &Arc<str>, hosts: Option<AllowedHosts>) -> BTreeSet<ObjectKey> {
        if self.allowed.get(name) == Some(&hosts) {
            return BTreeSet::new();
        }
        self.allowed.insert(Arc::clone(name), hosts);
        self.of(name)
    }

    /// Forgets a namespace; tells the same.
    pub(super) fn take_namespace(&mut self, name: &str) -> BTreeSet<ObjectKey> {
        if self.allowed.remove(name).is_some() { self.of(name) } else { BTreeSet::new() }
    }

    /// The namespaces that are known.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.allowed.keys()
    }

    /// Why routes of the namespace may not claim the host, if they may not.
    pub(super) fn bars(&self, namespace: &str, pattern: &HostPattern) -> Option<Why> {
        let hosts = match self.allowed.get(namespace) {
            Some(Some(hosts)) => hosts,
            Some(None) => {
                let why = format!("namespace {namespace} has no annotation {ALLOWED_HOSTS_ANNOTATION} that lists it");
                return Some(Why::NotAllowed(why));
            }
            None => return Some(Why::NotAllowed(format!("namespace {namespace} is not known"))),
        };
        if hosts.allow(pattern) {
            return None;
        }
        let mut why = format!("the annotation {ALLOWED_HOSTS_ANNOTATION} of namespace {namespace} does not list it");
        if !hosts.invalid.is_empty() {
            let entries = hosts.invalid.join(", ");
            let written = write!(why, ", and these entries are no hosts: {entries}: expected names, *.suffix or *");
            written.expect("a string takes any text");
        }
        Some(Why::NotAllowed(why))
    }

    fn of(&self, namespace: &str) -> BTreeSet<ObjectKey> {
        let from = self.routes.range(ObjectKey::new(namespace, "")..);
        from.map(|(key, _)| key).take_while(|key| key.namespace() == namespace).cloned().collect()
    }
}
