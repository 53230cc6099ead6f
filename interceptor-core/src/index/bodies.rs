//! Response bodies from ConfigMaps, within a limit: one tenant's must not fill everybody's memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use bytes::Bytes;

use crate::ObjectKey;

/// How many bytes all response bodies may have together. The next one is left out until it is changed or listed again.
pub const MAX_BODIES: usize = 64 << 20;

/// A ConfigMap whose data may be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseBodies {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its data.
    pub data: BTreeMap<Arc<str>, Bytes>,
}

/// Those that fit.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    all: imbl::HashMap<ObjectKey, Arc<ResponseBodies>>,
    bytes: usize,
    left_out: BTreeSet<ObjectKey>,
}

// === impl ResponseBodies ===

impl ResponseBodies {
    fn size(&self) -> usize {
        self.data.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

// === impl Bodies ===

impl Bodies {
    pub(super) fn all(&self) -> &imbl::HashMap<ObjectKey, Arc<ResponseBodies>> {
        &self.all
    }

    pub(super) fn left_out(&self) -> impl Iterator<Item = &ObjectKey> {
        self.left_out.iter()
    }

    pub(super) fn put(&mut self, bodies: ResponseBodies) {
        self.take(&bodies.key);
        let size = bodies.size();
        if self.bytes + size > MAX_BODIES {
            self.left_out.insert(bodies.key);
            return;
        }
        self.bytes += size;
        self.all.insert(bodies.key.clone(), Arc::new(bodies));
    }

    pub(super) fn take(&mut self, key: &ObjectKey) {
        self.left_out.remove(key);
        if let Some(old) = self.all.remove(key) {
            self.bytes -= old.size();
        }
    }

    pub(super) fn reset(&mut self, listed: Vec<ResponseBodies>) {
        let keys: HashSet<&ObjectKey> = listed.iter().map(|bodies| &bodies.key).collect();
        let known = self.all.keys().chain(&self.left_out);
        let gone: Vec<_> = known.filter(|key| !keys.contains(*key)).cloned().collect();
        for key in &gone {
            self.take(key);
        }
        for bodies in listed {
            self.put(bodies);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.bytes == 0 && self.left_out.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(name: &str, size: usize) -> ResponseBodies {
        let data = BTreeMap::from([("k".into(), Bytes::from(vec![b'x'; size - 1]))]);
        ResponseBodies { key: ObjectKey::new("default", name), data }
    }

    #[test]
    fn what_does_not_fit_is_left_out_until_there_is_room_and_it_comes_again() {
        let mut all = Bodies::default();
        all.put(bodies("a", MAX_BODIES - 10));
        all.put(bodies("b", 11));
        assert_eq!(all.left_out().count(), 1);
        all.put(bodies("c", 10));
        assert_eq!(all.all().len(), 2);
        all.put(bodies("a", 5));
        all.put(bodies("b", 11));
        assert_eq!((all.left_out().count(), all.all().len(), all.bytes), (0, 3, 26));
        all.reset(vec![bodies("b", 11)]);
        assert_eq!((all.all().len(), all.bytes), (1, 11));
        all.take(&ObjectKey::new("default", "b"));
        assert!(all.is_empty());
    }
}
