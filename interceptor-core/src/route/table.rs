//! The routing table: persistent, so that a snapshot is a clone and one route's change touches that route alone.
//!
//! Written by the index; read on the request path, without a lock and, for an ordinary request, without an allocation.

use std::sync::Arc;

use foldhash::quality::RandomState;
use http::HeaderMap;
use imbl::{GenericHashMap, shared_ptr::DefaultSharedPtr};

use super::{
    Route, RouteEntry,
    bucket::Bucket,
    host::{self, HostBuf, HostPattern},
    path,
    ranked::Slot,
};

type Map<K> = GenericHashMap<Arc<K>, Arc<PathNode>, RandomState, DefaultSharedPtr>;

/// From host, path and headers to a route. Cloning it is cheap, and a clone never changes.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    exact: Map<str>,
    suffix: Map<str>,
    any: Arc<PathNode>,
}

/// One segment of the prefixes that one host has: a tree, so that a path is walked once.
#[derive(Clone, Debug, Default)]
struct PathNode {
    here: Bucket,
    children: Map<[u8]>,
}

// === impl RouteTable ===

impl RouteTable {
    /// The route that takes a request.
    ///
    /// `authority` is the `Host` header or `:authority` as received, `path` the request's path as received, still
    /// percent-encoded and without query. The exact host goes before wildcards, and those before the catch-all, the
    /// most specific first; on a host the longest prefix whose headers match wins.
    pub fn lookup(&self, authority: &str, path: &str, headers: &HeaderMap) -> Option<&Arc<RouteEntry>> {
        let path = path::decoded(path);
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

    pub(crate) fn insert(&mut self, entry: &Arc<RouteEntry>) {
        for (host, prefix, rule) in keys(&entry.route) {
            let root = match host {
                HostPattern::Exact(host) => self.exact.entry(host).or_default(),
                HostPattern::Suffix(suffix) => self.suffix.entry(suffix).or_default(),
                HostPattern::Any => &mut self.any,
            };
            let mut node = Arc::make_mut(root);
            for segment in path::segments(prefix) {
                node = Arc::make_mut(node.children.entry(segment.into()).or_default());
            }
            node.here.insert(Slot { entry: Arc::clone(entry), rule });
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

// === impl PathNode ===

impl PathNode {
    fn is_empty(&self) -> bool {
        self.here.is_empty() && self.children.is_empty()
    }

    fn find(&self, path: &[u8], headers: &HeaderMap) -> Option<&Arc<RouteEntry>> {
        let mut node = self;
        let mut best = node.here.pick(headers);
        for segment in path::segments(path) {
            if node.children.is_empty() {
                break;
            }
            let Some(child) = node.children.get(segment) else { break };
            node = child;
            best = node.here.pick(headers).or(best);
        }
        best
    }

    fn remove<'a>(&mut self, mut segments: impl Iterator<Item = &'a [u8]>, slot: &Slot) {
        match segments.next() {
            None => self.here.remove(slot),
            Some(segment) => prune(&mut self.children, segment, segments, slot),
        }
    }
}

/// Removes `slot` below `key`, and `key` itself when nothing is left below it.
fn prune<'a, K>(map: &mut Map<K>, key: &K, segments: impl Iterator<Item = &'a [u8]>, slot: &Slot)
where
    K: ?Sized + std::hash::Hash + Eq,
{
    let Some(node) = map.get_mut(key) else { return };
    let node = Arc::make_mut(node);
    node.remove(segments, slot);
    if node.is_empty() {
        map.remove(key);
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
