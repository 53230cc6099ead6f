//! The routing table: persistent, so that a snapshot is a clone and one route's change touches that route alone.
//!
//! Written by the index; read on the request path, without a lock and, for an ordinary request, without an allocation.

use std::sync::Arc;

use foldhash::quality::RandomState;
use imbl::{GenericHashMap, shared_ptr::DefaultSharedPtr};

use super::{
    Headers, Route, RouteEntry,
    host::{self, HostBuf, HostPattern},
    path,
    ranked::Slot,
    tree::PathNode,
};

type Map = GenericHashMap<Arc<str>, Arc<PathNode>, RandomState, DefaultSharedPtr>;

/// From host, path and headers to a route. Cloning it is cheap, and a clone never changes.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    exact: Map,
    suffix: Map,
    any: Arc<PathNode>,
}

// === impl RouteTable ===

impl RouteTable {
    /// The route that takes a request.
    ///
    /// `authority` is the `Host` header or `:authority` as received, `path` the request's path as received, still
    /// percent-encoded and without query. The exact host goes before wildcards, and those before the catch-all, the
    /// most specific first; on a host the longest prefix whose headers match wins.
    pub fn lookup(
        &self,
        authority: &str,
        path: &(impl AsRef<[u8]> + ?Sized),
        headers: &impl Headers,
    ) -> Option<&Arc<RouteEntry>> {
        let path = path::decoded(path.as_ref());
        let mut buf = HostBuf::new();
        if let Some(host) = host::normalise(authority, &mut buf) {
            let exact = self.exact.get(host).and_then(|node| node.find(&path, headers));
            if exact.is_some() {
                return exact;
            }
            if !self.suffix.is_empty() {
                let mut wildcards = host::suffixes(host).filter_map(|suffix| self.suffix.get(suffix));
                let wildcard = wildcards.find_map(|node| node.find(&path, headers));
                if wildcard.is_some() {
                    return wildcard;
                }
            }
        }
        self.any.find(&path, headers)
    }

    /// Whether `entry` takes all requests for a host, whatever their path and headers are. May be `false` although it
    /// does.
    pub fn takes_all(&self, authority: &str, entry: &Arc<RouteEntry>) -> bool {
        let mut buf = HostBuf::new();
        let Some(host) = host::normalise(authority, &mut buf) else { return false };
        let wildcard = || host::suffixes(host).find_map(|suffix| self.suffix.get(suffix));
        let node = self.exact.get(host).or_else(wildcard).unwrap_or(&self.any);
        node.only().is_some_and(|only| Arc::ptr_eq(only, entry))
    }

    pub(crate) fn insert(&mut self, entry: &Arc<RouteEntry>) {
        for (host, prefix, rule) in keys(&entry.route) {
            let root = match host {
                HostPattern::Exact(host) => self.exact.entry(host).or_default(),
                HostPattern::Suffix(suffix) => self.suffix.entry(suffix).or_default(),
                HostPattern::Any => &mut self.any,
            };
            Arc::make_mut(root).insert(path::segments(prefix), Slot { entry: Arc::clone(entry), rule });
        }
    }

    pub(crate) fn remove(&mut self, entry: &Arc<RouteEntry>) {
        for (host, prefix, rule) in keys(&entry.route) {
            let slot = Slot { entry: Arc::clone(entry), rule };
            let segments = path::segments(prefix);
            match host {
                HostPattern::Exact(host) => prune(&mut self.exact, &host, segments, &slot),
                HostPattern::Suffix(suffix) => prune(&mut self.suffix, &suffix, segments, &slot),
                HostPattern::Any => Arc::make_mut(&mut self.any).remove(segments, &slot),
            }
        }
    }

    /// Whether it has no route at all.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.suffix.is_empty() && self.any.is_empty()
    }
}

/// Removes `slot` from `host`, and the host itself when nothing is left of it.
fn prune<'a>(hosts: &mut Map, host: &str, segments: impl Iterator<Item = &'a [u8]>, slot: &Slot) {
    let Some(root) = hosts.get_mut(host) else { return };
    let root = Arc::make_mut(root);
    root.remove(segments, slot);
    if root.is_empty() {
        hosts.remove(host);
    }
}

/// Hosts × paths of each rule: where a route stands in the table.
pub(crate) fn keys(route: &Route) -> impl Iterator<Item = (HostPattern, &[u8], usize)> {
    route.rules.iter().enumerate().flat_map(|(index, rule)| {
        let hosts = if rule.hosts.is_empty() {
            vec![HostPattern::Any]
        } else {
            rule.hosts.iter().filter_map(|host| HostPattern::parse(host)).collect()
        };
        let root: &[String] = const { &[String::new()] };
        let paths = if rule.paths.is_empty() { root } else { &rule.paths };
        let paths = paths.iter().filter(|path| path.len() <= path::MAX_PREFIX);
        hosts.into_iter().flat_map(move |host| paths.clone().map(move |path| (host.clone(), path.as_bytes(), index)))
    })
}
