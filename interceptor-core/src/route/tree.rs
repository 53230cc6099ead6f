//! The path prefixes of one host: a tree of segments, so that a request's path is walked once, however many there are.

use std::sync::Arc;

use foldhash::quality::RandomState;
use imbl::{GenericHashMap, shared_ptr::DefaultSharedPtr};

use super::{Headers, RouteEntry, bucket::Bucket, path, ranked::Slot};

/// How many children are compared one by one; most hosts have one prefix or a few, and a hash map takes a kilobyte.
const FEW: usize = 8;

/// One segment of the prefixes.
#[derive(Clone, Debug, Default)]
pub(crate) struct PathNode {
    here: Bucket,
    children: Children,
}

#[derive(Clone, Debug)]
enum Children {
    Few(Vec<(Arc<[u8]>, Arc<PathNode>)>),
    Many(GenericHashMap<Arc<[u8]>, Arc<PathNode>, RandomState, DefaultSharedPtr>),
}

// === impl PathNode ===

impl PathNode {
    pub(crate) fn is_empty(&self) -> bool {
        self.here.is_empty() && self.children.is_empty()
    }

    /// The route that takes every path and all headers, if there is no other.
    pub(crate) fn only(&self) -> Option<&Arc<RouteEntry>> {
        if self.children.is_empty() { self.here.only() } else { None }
    }

    /// The route of the longest prefix of `path` whose headers match.
    pub(crate) fn find(&self, path: &[u8], headers: &impl Headers) -> Option<&Arc<RouteEntry>> {
        let mut node = self;
        let mut best = node.here.pick(headers);
        if node.children.is_empty() {
            return best;
        }
        for segment in path::segments(path) {
            let Some(child) = node.children.get(segment) else { break };
            node = child;
            best = node.here.pick(headers).or(best);
        }
        best
    }

    pub(crate) fn insert<'a>(&mut self, segments: impl Iterator<Item = &'a [u8]>, slot: Slot) {
        let mut node = self;
        for segment in segments {
            node = Arc::make_mut(node.children.get_or_insert(segment));
        }
        node.here.insert(slot);
    }

    pub(crate) fn remove<'a>(&mut self, mut segments: impl Iterator<Item = &'a [u8]>, slot: &Slot) {
        let Some(segment) = segments.next() else { return self.here.remove(slot) };
        let Some(child) = self.children.get_mut(segment) else { return };
        let child = Arc::make_mut(child);
        child.remove(segments, slot);
        if child.is_empty() {
            self.children.remove(segment);
        }
    }
}

// === impl Children ===

impl Default for Children {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Children {
    fn is_empty(&self) -> bool {
        match self {
            Self::Few(list) => list.is_empty(),
            Self::Many(map) => map.is_empty(),
        }
    }

    fn get(&self, segment: &[u8]) -> Option<&Arc<PathNode>> {
        match self {
            Self::Few(list) => list.iter().find(|(key, _)| **key == *segment).map(|(_, node)| node),
            Self::Many(map) => map.get(segment),
        }
    }

    fn get_mut(&mut self, segment: &[u8]) -> Option<&mut Arc<PathNode>> {
        match self {
            Self::Few(list) => list.iter_mut().find(|(key, _)| **key == *segment).map(|(_, node)| node),
            Self::Many(map) => map.get_mut(segment),
        }
    }

    fn get_or_insert(&mut self, segment: &[u8]) -> &mut Arc<PathNode> {
        if let Self::Few(list) = self
            && list.len() == FEW
            && list.iter().all(|(key, _)| **key != *segment)
        {
            *self = Self::Many(std::mem::take(list).into_iter().collect());
        }
        match self {
            Self::Few(list) => {
                let at = list.iter().position(|(key, _)| **key == *segment).unwrap_or_else(|| {
                    list.reserve_exact(1);
                    list.push((segment.into(), Arc::default()));
                    list.len() - 1
                });
                &mut list[at].1
            }
            Self::Many(map) => map.entry(segment.into()).or_default(),
        }
    }

    fn remove(&mut self, segment: &[u8]) {
        match self {
            Self::Few(list) => list.retain(|(key, _)| **key != *segment),
            Self::Many(map) => drop(map.remove(segment)),
        }
    }
}
