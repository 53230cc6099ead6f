//! Keeps one namespace's routes from taking the hosts of another's. Written and asked by the index; does nothing unless it is
//! wanted.

use std::{collections::BTreeSet, sync::Arc};

use crate::{ObjectKey, Route, route::host::HostPattern};

mod allow_list;
mod first_come;

pub use self::allow_list::{ALLOWED_HOSTS_ANNOTATION, AllowedHosts};
use self::{allow_list::AllowList, first_come::FirstCome};

/// Whether hosts belong to namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostGuard {
    /// They do not: the more specific route takes a request, and of two as specific the older one.
    #[default]
    Off,
    /// To that of the oldest route which names them.
    FirstCome,
    /// To those whose annotation lists them.
    AllowList,
}

/// A host that a route does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Barred {
    pub(super) host: String,
    pub(super) path: String,
    pub(super) why: Why,
}

/// Why it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// This one was there before.
    Owner(ObjectKey),
    /// The namespace may not have it, in words.
    NotAllowed(String),
}

/// Decides which hosts a route gets.
#[derive(Debug)]
pub(super) enum Guard {
    FirstCome(FirstCome),
    AllowList(AllowList),
}

// === impl HostGuard ===

impl HostGuard {
    /// By the words of the setting.
    pub const NAMES: [(&'static str, Self); 3] =
        [("off", Self::Off), ("first-come", Self::FirstCome), ("allow-list", Self::AllowList)];
}

// === impl Guard ===

impl Guard {
    pub(super) fn new(guard: HostGuard) -> Option<Self> {
        match guard {
            HostGuard::Off => None,
            HostGuard::FirstCome => Some(Self::FirstCome(FirstCome::default())),
            HostGuard::AllowList => Some(Self::AllowList(AllowList::default())),
        }
    }

    /// The route as it is written.
    pub(super) fn written(&self, key: &ObjectKey) -> Option<&Route> {
        match self {
            Self::FirstCome(guard) => guard.written(key),
            Self::AllowList(guard) => guard.written(key),
        }
    }

    /// Takes a route in, in place of what it was; tells which others have to be looked at again.
    pub(super) fn put(&mut self, route: Route) -> BTreeSet<ObjectKey> {
        match self {
            Self::FirstCome(guard) => guard.put(route),
            Self::AllowList(guard) => {
                guard.put(route);
                BTreeSet::new()
            }
        }
    }

    /// Forgets a route; tells the same.
    pub(super) fn take(&mut self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        match self {
            Self::FirstCome(guard) => guard.take(key),
            Self::AllowList(guard) => {
                guard.take(key);
                BTreeSet::new()
            }
        }
    }

    /// Takes in which hosts a namespace lists, if it lists any; tells the same.
    pub(super) fn put_namespace(&mut self, name: &Arc<str>, hosts: Option<AllowedHosts>) -> BTreeSet<ObjectKey> {
        match self {
            Self::FirstCome(_) => BTreeSet::new(),
            Self::AllowList(guard) => guard.put_namespace(name, hosts),
        }
    }

    /// Forgets a namespace; tells the same.
    pub(super) fn take_namespace(&mut self, name: &str) -> BTreeSet<ObjectKey> {
        match self {
            Self::FirstCome(_) => BTreeSet::new(),
            Self::AllowList(guard) => guard.take_namespace(name),
        }
    }

    /// The namespaces that are known.
    pub(super) fn namespaces(&self) -> Vec<Arc<str>> {
        match self {
            Self::FirstCome(_) => Vec::new(),
            Self::AllowList(guard) => guard.namespaces().cloned().collect(),
        }
    }

    /// The route without what its namespace does not get, and what that is.
    pub(super) fn admitted(&self, key: &ObjectKey) -> Option<(Route, Vec<Barred>)> {
        let mut route = self.written(key)?.clone();
        let mut barred = Vec::new();
        route.rules.retain_mut(|rule| {
            let any = [String::new()];
            let hosts = if rule.hosts.is_empty() { &any[..] } else { &rule.hosts };
            let bars = |host: &String| {
                let pattern = HostPattern::parse(host)?;
                let why = match self {
                    Self::FirstCome(guard) => guard.bars(key.namespace(), &pattern),
                    Self::AllowList(guard) => guard.bars(key.namespace(), &pattern),
                };
                Some((pattern.to_string(), why?))
            };
            let (lost, kept): (Vec<_>, Vec<_>) =
                hosts.iter().map(|host| (host, bars(host))).partition(|(_, why)| why.is_some());
            if lost.is_empty() {
                return true;
            }
            for (host, why) in lost.into_iter().filter_map(|(_, why)| why) {
                let paths = if rule.paths.is_empty() { vec![String::new()] } else { rule.paths.clone() };
                barred.extend(paths.into_iter().map(|path| Barred { host: host.clone(), path, why: why.clone() }));
            }
            // A rule without hosts would be one for all of them.
            rule.hosts = kept.into_iter().map(|(host, _)| host.clone()).collect();
            !rule.hosts.is_empty()
        });
        Some((route, barred))
    }
}
