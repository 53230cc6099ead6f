//! A host belongs to the namespace of the oldest route that names it, or a wildcard which covers it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Why;
use crate::{
    ObjectKey, Route,
    route::host::{self, HostPattern},
};

/// Who names which host, the oldest first.
#[derive(Debug, Default)]
pub(in crate::index) struct FirstCome {
    /// Hosts are written backwards, so that all that a wildcard covers stand together.
    claims: BTreeMap<String, BTreeSet<(i64, ObjectKey)>>,
    /// The routes as they are written.
    routes: HashMap<ObjectKey, Route>,
}

// === impl FirstCome ===

impl FirstCome {
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

    /// Whose the host is, if it is another namespace's.
    pub(super) fn bars(&self, namespace: &str, pattern: &HostPattern) -> Option<Why> {
        let owner = self.owner(pattern).filter(|owner| owner.namespace() != namespace)?;
        Some(Why::Owner(owner.clone()))
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
