//! Keeps one namespace's routes from taking the hosts of another's: the oldest route that names a host, or a wildcard which
//! covers it, decides whose it is. Written and asked by the index; does nothing unless it is wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    ObjectKey, Route,
    route::host::{self, HostPattern},
};

/// Whether hosts belong to namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostGuard {
    /// They do not: the more specific route takes a request, and of two as specific the older one.
    #[default]
    Off,
    /// To that of the oldest route which names them.
    FirstCome,
}

// === impl HostGuard ===

impl HostGuard {
    /// By the words of the setting.
    pub const NAMES: [(&'static str, Self); 2] = [("off", Self::Off), ("first-come", Self::FirstCome)];
}

/// A host that a route does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Barred {
    pub(super) host: String,
    pub(super) path: String,
    /// Who was there before.
    pub(super) owner: ObjectKey,
}

/// Who names which host, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Hosts are written backwards, so that all that a wildcard covers stand together.
    claims: BTreeMap<String, BTreeSet<(i64, ObjectKey)>>,
    /// The routes as they are written.
    routes: HashMap<ObjectKey, Route>,
}

// === impl Guard ===

impl Guard {
    /// The route as it is written.
    pub(super) fn written(&self, key: &ObjectKey) -> Option<&Route> {
        self.routes.get(key)
    }

    /// Takes a route in, in place of what it was; tells which others have to be looked at again.
    pub(super) fn put(&mut self, route: Route) -> BTreeSet<ObjectKey> {
        let mut touched = self.take(&route.key);
        let rank = (route.created, route.key.clone());
        for place in places(&route) {
            self.claims.entry(place.clone()).or_default().insert(rank.clone());
            self.touch(&place, &mut touched);
        }
        touched.remove(&route.key);
        self.routes.insert(route.key.clone(), route);
        touched
    }

    /// Forgets a route; tells the same.
    pub(super) fn take(&mut self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let mut touched = BTreeSet::new();
        let Some(route) = self.routes.remove(key) else { return touched };
        let rank = (route.created, route.key.clone());
        for place in places(&route) {
            if let Some(claims) = self.claims.get_mut(&place) {
                claims.remove(&rank);
                if claims.is_empty() {
                    self.claims.remove(&place);
                }
            }
            self.touch(&place, &mut touched);
        }
        touched.remove(key);
        touched
    }

    /// The route without what belongs to other namespaces, and what that is.
    pub(super) fn admitted(&self, key: &ObjectKey) -> Option<(Route, Vec<Barred>)> {
        let mut route = self.routes.get(key)?.clone();
        let mut barred = Vec::new();
        let namespace = key.namespace();
        route.rules.retain_mut(|rule| {
            let any = [String::new()];
            let hosts = if rule.hosts.is_empty() { &any[..] } else { &rule.hosts };
            let owner = |host: &String| {
                let pattern = HostPattern::parse(host)?;
                let owner = self.owner(&pattern).filter(|owner| owner.namespace() != namespace)?;
                Some((pattern.to_string(), owner.clone()))
            };
            let (lost, kept): (Vec<_>, Vec<_>) =
                hosts.iter().map(|host| (host, owner(host))).partition(|(_, owner)| owner.is_some());
            if lost.is_empty() {
                return true;
            }
            for (host, owner) in lost.into_iter().filter_map(|(_, owner)| owner) {
                let paths = if rule.paths.is_empty() { vec![String::new()] } else { rule.paths.clone() };
                barred.extend(paths.into_iter().map(|path| Barred { host: host.clone(), path, owner: owner.clone() }));
            }
            // A rule without hosts would be one for all of them.
            rule.hosts = kept.into_iter().map(|(host, _)| host.clone()).collect();
            !rule.hosts.is_empty()
        });
        Some((route, barred))
    }

    /// The oldest route that names the host or a wildcard which covers it. The catch-all covers nothing but itself.
    fn owner(&self, pattern: &HostPattern) -> Option<&ObjectKey> {
        let wildcards = match pattern {
            HostPattern::Any => Vec::new(),
            HostPattern::Exact(name) | HostPattern::Suffix(name) => {
                host::suffixes(name).map(|suffix| backwards(&HostPattern::Suffix(suffix.into()))).collect()
            }
        };
        let claims = std::iter::once(backwards(pattern)).chain(wildcards).filter_map(|place| self.claims.get(&place));
        claims.filter_map(BTreeSet::first).min().map(|(_, key)| key)
    }

    /// Whoever names the place, or what it covers.
    fn touch(&self, place: &str, touched: &mut BTreeSet<ObjectKey>) {
        let covered = place.strip_suffix('*').filter(|prefix| !prefix.is_empty());
        let below = covered.into_iter().flat_map(|prefix| {
            let from = self.claims.range(prefix.to_owned()..);
            from.take_while(move |(place, _)| place.starts_with(prefix)).map(|(_, claims)| claims)
        });
        let all = self.claims.get(place).into_iter().chain(below);
        touched.extend(all.flatten().map(|(_, key)| key.clone()));
    }
}

fn places(route: &Route) -> BTreeSet<String> {
    let hosts = route.rules.iter().flat_map(|rule| {
        let any = rule.hosts.is_empty().then_some(HostPattern::Any);
        any.into_iter().chain(rule.hosts.iter().filter_map(|host| HostPattern::parse(host)))
    });
    hosts.map(|pattern| backwards(&pattern)).collect()
}

fn backwards(pattern: &HostPattern) -> String {
    pattern.to_string().chars().rev().collect()
}
