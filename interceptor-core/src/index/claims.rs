//! Who claims which host, path and headers: finds rules that never get a request because another route has them all.

use std::{
    collections::{BTreeSet, HashMap},
    hash::BuildHasher as _,
    sync::Arc,
};

use foldhash::quality::RandomState;

use crate::{
    RouteEntry,
    route::{HeaderMatch, host::HostPattern, ranked::Slot, table},
};

/// Everybody's claims by their hash, and those that are made more than once. A claim is a hash of 128 bits rather than the
/// text, which the routes already hold.
#[derive(Debug, Default)]
pub(super) struct Claims {
    hashers: [RandomState; 2],
    all: HashMap<u128, Vec<Slot>, RandomState>,
    contested: BTreeSet<u128>,
}

/// A claim that two routes make.
#[derive(Debug)]
pub(super) struct Contest<'a> {
    pub(super) loser: &'a Arc<RouteEntry>,
    pub(super) winner: &'a Arc<RouteEntry>,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) with_headers: bool,
}

// === impl Claims ===

impl Claims {
    pub(super) fn insert(&mut self, entry: &Arc<RouteEntry>) {
        for (host, prefix, rule) in table::keys(&entry.route) {
            let slot = Slot { entry: Arc::clone(entry), rule };
            let claim = self.hash(&host, prefix, slot.headers());
            let slots = self.all.entry(claim).or_default();
            if let Err(at) = slots.binary_search(&slot) {
                slots.insert(at, slot);
            }
            if slots.len() > 1 {
                self.contested.insert(claim);
            }
        }
    }

    pub(super) fn remove(&mut self, entry: &Arc<RouteEntry>) {
        for (host, prefix, rule) in table::keys(&entry.route) {
            let slot = Slot { entry: Arc::clone(entry), rule };
            let claim = self.hash(&host, prefix, slot.headers());
            let Some(slots) = self.all.get_mut(&claim) else { continue };
            if let Ok(at) = slots.binary_search(&slot) {
                slots.remove(at);
            }
            let left = slots.len();
            if left < 2 {
                self.contested.remove(&claim);
            }
            if left == 0 {
                self.all.remove(&claim);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.contested.is_empty()
    }

    /// Each loser of a claim with the one who won it; a route that repeats itself loses nothing.
    pub(super) fn contests(&self) -> impl Iterator<Item = Contest<'_>> {
        let contested = self.contested.iter().filter_map(|claim| Some((*claim, self.all.get(claim)?.split_first()?)));
        contested.flat_map(move |(claim, (winner, losers))| {
            let losers = losers.iter().filter(|slot| slot.entry.id != winner.entry.id);
            losers.map(move |loser| self.contest(claim, &loser.entry, winner))
        })
    }

    fn contest<'a>(&self, claim: u128, loser: &'a Arc<RouteEntry>, winner: &'a Slot) -> Contest<'a> {
        let mut keys = table::keys(&loser.route);
        let place =
            keys.find(|(host, prefix, rule)| self.hash(host, prefix, &loser.route.rules[*rule].headers) == claim);
        let (host, path, _) = place.expect("a route is removed from its claims before it changes");
        Contest {
            loser,
            winner: &winner.entry,
            host: host.to_string(),
            path: String::from_utf8_lossy(path).into_owned(),
            with_headers: !winner.headers().is_empty(),
        }
    }

    fn hash(&self, host: &HostPattern, prefix: &[u8], headers: &[HeaderMatch]) -> u128 {
        let mut headers: Vec<_> =
            headers.iter().map(|header| (header.name.as_str(), header.value.as_deref())).collect();
        headers.sort_unstable();
        let segments: Vec<_> = crate::route::path::segments(prefix).collect();
        let claim = (host, segments, headers);
        self.hashers.iter().fold(0, |hash, hasher| hash << 64 | u128::from(hasher.hash_one(&claim)))
    }
}
