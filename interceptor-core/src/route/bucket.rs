//! The routes that share one host and one path prefix, in the order in which their headers are tried.

use std::{
    cmp::{Ordering, Reverse},
    sync::Arc,
};

use http::HeaderMap;
use imbl::OrdSet;

use super::{HeaderMatch, RouteEntry};

/// One rule of one route at a host and prefix.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) entry: Arc<RouteEntry>,
    pub(crate) rule: usize,
}

/// Slots in order of precedence; a set only from the second on, since nearly all stand alone.
#[derive(Clone, Debug, Default)]
pub(crate) enum Bucket {
    #[default]
    Empty,
    One(Slot),
    Many(OrdSet<Slot>),
}

// === impl Slot ===

impl Slot {
    pub(crate) fn headers(&self) -> &[HeaderMatch] {
        &self.entry.route.rules[self.rule].headers
    }

    fn matches(&self, headers: &HeaderMap) -> bool {
        self.headers().iter().all(|header| header.matches(headers))
    }

    /// More headers, more of them with a value, the older route, the later namespace, the later name: this order.
    fn rank(&self) -> impl Ord + '_ {
        let headers = self.headers();
        let valued = headers.iter().filter(|header| header.value.is_some()).count();
        let route = &self.entry.route;
        (Reverse(headers.len()), Reverse(valued), route.created, Reverse(&route.key), route.kind, self.rule)
    }
}

impl Ord for Slot {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Slot {}

// === impl Bucket ===

impl Bucket {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// The first whose headers the request has.
    pub(crate) fn pick(&self, headers: &HeaderMap) -> Option<&Arc<RouteEntry>> {
        match self {
            Self::Empty => None,
            Self::One(slot) => slot.matches(headers).then_some(&slot.entry),
            Self::Many(slots) => slots.iter().find(|slot| slot.matches(headers)).map(|slot| &slot.entry),
        }
    }

    pub(crate) fn insert(&mut self, slot: Slot) {
        match self {
            Self::Empty => *self = Self::One(slot),
            Self::One(only) if *only == slot => *only = slot,
            Self::One(only) => *self = Self::Many(OrdSet::from_iter([only.clone(), slot])),
            Self::Many(slots) => {
                slots.insert(slot);
            }
        }
    }

    pub(crate) fn remove(&mut self, slot: &Slot) {
        match self {
            Self::One(only) if only == slot => *self = Self::Empty,
            Self::Empty | Self::One(_) => {}
            Self::Many(slots) => {
                slots.remove(slot);
                if slots.len() == 1 {
                    let only = slots.get_min().expect("one is left").clone();
                    *self = Self::One(only);
                }
            }
        }
    }
}
