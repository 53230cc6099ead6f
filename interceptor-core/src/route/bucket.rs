//! The routes that share one host and one path prefix: told apart by their headers.
//!
//! Thousands of them may share a host and differ by one header, such as a tenant's name. So each rule is filed under one
//! of its headers, and a request looks only at the rules filed under headers that it has.

use std::{borrow::Borrow, hash::Hash, sync::Arc};

use foldhash::quality::RandomState;
use http::{HeaderMap, HeaderName};
use imbl::{GenericHashMap, shared_ptr::DefaultSharedPtr};

use super::{
    HeaderMatch, Headers, RouteEntry,
    ranked::{Ranked, Slot},
};

type Map<K, V> = GenericHashMap<K, V, RandomState, DefaultSharedPtr>;

/// All rules at a host and prefix.
#[derive(Clone, Debug, Default)]
pub(crate) enum Bucket {
    #[default]
    Empty,
    One(Slot),
    Many(Box<Files>),
}

/// Rules by one header each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    /// Those that ask for no header.
    plain: Ranked,
    by_name: Map<HeaderName, File>,
}

/// Rules that are filed under one header name.
#[derive(Clone, Debug, Default)]
struct File {
    by_value: Map<Arc<[u8]>, Ranked>,
    /// Those that ask only that it is there.
    present: Ranked,
}

// === impl Bucket ===

impl Bucket {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// The one that is there, if it asks for no header.
    pub(crate) fn only(&self) -> Option<&Arc<RouteEntry>> {
        match self {
            Self::One(slot) if slot.headers().is_empty() => Some(&slot.entry),
            Self::Empty | Self::One(_) | Self::Many(_) => None,
        }
    }

    /// The first whose headers the request has.
    pub(crate) fn pick(&self, headers: &impl Headers) -> Option<&Arc<RouteEntry>> {
        let slot = match self {
            Self::Empty => None,
            Self::One(slot) => slot.matches(headers).then_some(slot),
            Self::Many(files) => files.pick(headers.map()),
        };
        slot.map(|slot| &slot.entry)
    }

    pub(crate) fn insert(&mut self, slot: Slot) {
        match self {
            Self::Empty => *self = Self::One(slot),
            Self::One(only) if *only == slot => *only = slot,
            Self::One(only) => {
                let mut files = Box::<Files>::default();
                files.insert(only.clone());
                files.insert(slot);
                *self = Self::Many(files);
            }
            Self::Many(files) => files.insert(slot),
        }
    }

    pub(crate) fn remove(&mut self, slot: &Slot) {
        match self {
            Self::One(only) if only == slot => *self = Self::Empty,
            Self::Empty | Self::One(_) => {}
            Self::Many(files) => {
                files.remove(slot);
                if files.is_empty() {
                    *self = Self::Empty;
                }
            }
        }
    }
}

// === impl Files ===

impl Files {
    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.by_name.is_empty()
    }

    fn pick(&self, headers: &HeaderMap) -> Option<&Slot> {
        let mut best = self.plain.first();
        if self.by_name.len() <= headers.keys_len() {
            for (name, file) in self.by_name.iter().filter(|(name, _)| headers.contains_key(*name)) {
                best = file.pick(name, headers, best);
            }
        } else {
            for name in headers.keys() {
                if let Some(file) = self.by_name.get(name) {
                    best = file.pick(name, headers, best);
                }
            }
        }
        best
    }

    fn insert(&mut self, slot: Slot) {
        let Some(HeaderMatch { name, value }) = filed_under(&slot).cloned() else { return self.plain.insert(slot) };
        let file = self.by_name.entry(name).or_default();
        match value {
            Some(value) => file.by_value.entry(value.into()).or_default().insert(slot),
            None => file.present.insert(slot),
        }
    }

    fn remove(&mut self, slot: &Slot) {
        let Some(HeaderMatch { name, value }) = filed_under(slot) else { return self.plain.remove(slot) };
        let is_empty = |file: &File| file.by_value.is_empty() && file.present.is_empty();
        update(&mut self.by_name, name, is_empty, |file| match value {
            Some(value) => update(&mut file.by_value, value.as_slice(), Ranked::is_empty, |ranked| ranked.remove(slot)),
            None => file.present.remove(slot),
        });
    }
}

// === impl File ===

impl File {
    fn pick<'a>(&'a self, name: &HeaderName, headers: &HeaderMap, best: Option<&'a Slot>) -> Option<&'a Slot> {
        let values = headers.get_all(name).iter();
        let best = values.fold(best, |best, value| match self.by_value.get(value.as_bytes()) {
            Some(ranked) => ranked.first_match(headers, best),
            None => best,
        });
        self.present.first_match(headers, best)
    }
}

/// The header that a rule is filed under: one with a value, if there is one, since that tells more requests apart.
fn filed_under(slot: &Slot) -> Option<&HeaderMatch> {
    let headers = slot.headers();
    headers.iter().find(|header| header.value.is_some()).or(headers.first())
}

/// Changes what is at `key`, and takes it away when it is empty then.
fn update<K, Q, V>(map: &mut Map<K, V>, key: &Q, is_empty: impl Fn(&V) -> bool, change: impl FnOnce(&mut V))
where
    K: Clone + Eq + Hash + Borrow<Q>,
    Q: ?Sized + Eq + Hash,
    V: Clone,
{
    let Some(value) = map.get_mut(key) else { return };
    change(value);
    if is_empty(value) {
        map.remove(key);
    }
}
