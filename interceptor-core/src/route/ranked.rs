//! Rules of routes in the order in which they are tried.

use std::{
    cmp::{Ordering, Reverse},
    sync::Arc,
};

use http::HeaderMap;
use imbl::OrdSet;

use super::{HeaderMatch, Headers, RouteEntry};

/// One rule of one route at a host and prefix.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) entry: Arc<RouteEntry>,
    pub(crate) rule: usize,
}

/// Slots in order; a set only from the second on, since nearly all stand alone.
#[derive(Clone, Debug, Default)]
pub(crate) enum Ranked {
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

    pub(crate) fn matches(&self, headers: &impl Headers) -> bool {
        self.headers().iter().all(|header| header.matches(headers.map()))
    }

    /// More headers, more of them with a value, the older route, the later namespace, the later name: in this order.
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

// === impl Ranked ===

impl Ranked {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub(crate) fn first(&self) -> Option<&Slot> {
        match self {
            Self::Empty => None,
            Self::One(slot) => Some(slot),
            Self::Many(slots) => slots.get_min(),
        }
    }

    /// The first of those before `best` whose headers the request has, or else `best`.
    pub(crate) fn first_match<'a>(&'a self, headers: &HeaderMap, best: Option<&'a Slot>) -> Option<&'a Slot> {
        let precedes = |slot: &&Slot| best.is_none_or(|best| *slot < best);
        let found = match self {
            Self::Empty => None,
            Self::One(slot) => Some(slot).filter(precedes).filter(|slot| slot.matches(headers)),
            Self::Many(slots) => slots.iter().take_while(precedes).find(|slot| slot.matches(headers)),
        };
        found.or(best)
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
