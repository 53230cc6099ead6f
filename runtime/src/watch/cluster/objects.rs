//! Which objects are known: turns what watches bring into what changed. No I/O.
//!
//! Of an object only name and version are kept: the first tells what is gone after a new list, the second what is new.

use std::collections::{BTreeMap, HashMap, HashSet};

use interceptor_core::ObjectKey;

use super::{
    super::{Invalid, Kind, MAX_INVALID, WatchEvent},
    item::Item,
};

/// What a watch, by its index, brings.
#[derive(Debug)]
pub(super) enum Step {
    /// All objects are going to be listed.
    Listing(usize),
    /// An object as it is now.
    Item(usize, Item),
    /// An object as it was.
    Gone(usize, Item),
    /// All objects have been listed since [`Step::Listing`].
    Listed(usize),
}

/// What all watches have brought.
#[derive(Debug)]
pub(super) struct Objects {
    limit: usize,
    kinds: Vec<Listed>,
    /// By watch. At most as many as objects are known, and [`MAX_INVALID`] that were left out.
    invalid: BTreeMap<(usize, ObjectKey), Fault>,
    /// How many of them were told: at most [`MAX_INVALID`].
    told: usize,
    refused: u64,
    synced: bool,
}

/// The objects of one watch.
#[derive(Debug)]
struct Listed {
    kind: Kind,
    known: HashMap<ObjectKey, Known>,
    /// What has been listed so far, while a list comes in.
    listing: Option<HashSet<ObjectKey>>,
    complete: bool,
}

#[derive(Debug)]
struct Known {
    version: Box<str>,
    /// A version of it could be used, and was told.
    told: bool,
}

/// What is wrong with an object.
#[derive(Debug)]
struct Fault {
    message: String,
    /// There was room to tell of it.
    told: bool,
}

// === impl Objects ===

impl Objects {
    pub(super) fn new(kinds: impl Iterator<Item = Kind>, limit: usize) -> Self {
        let listed = |kind| Listed { kind, known: HashMap::new(), listing: None, complete: false };
        Self { limit, kinds: kinds.map(listed).collect(), invalid: BTreeMap::new(), told: 0, refused: 0, synced: false }
    }

    /// What changes by these steps.
    pub(super) fn take(&mut self, steps: impl Iterator<Item = Step>) -> Vec<WatchEvent> {
        let mut events = Vec::new();
        for step in steps {
            match step {
                Step::Listing(index) => self.kinds[index].listing = Some(HashSet::new()),
                Step::Item(index, item) => self.item(index, &item, &mut events),
                Step::Gone(index, item) => {
                    if let Some(key) = item.key() {
                        self.gone(index, key, &mut events);
                    }
                }
                Step::Listed(index) => self.listed(index, &mut events),
            }
        }
        events
    }

    /// How many objects are known of each kind.
    pub(super) fn known(&self) -> BTreeMap<Kind, usize> {
        let mut all = BTreeMap::new();
        for Listed { kind, known, .. } in &self.kinds {
            *all.entry(*kind).or_default() += known.len();
        }
        all
    }

    /// How many times an object was left out for want of room, since the last call.
    pub(super) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    fn item(&mut self, index: usize, item: &Item, events: &mut Vec<WatchEvent>) {
        let Some(key) = item.key() else { return };
        let full = self.kinds.iter().map(|listed| listed.known.len()).sum::<usize>() >= self.limit;
        let Listed { kind, known, listing, complete: _ } = &mut self.kinds[index];
        let kind = *kind;
        if let Some(listing) = listing {
            listing.insert(key.clone());
        }
        let told = match known.get(&key) {
            // Listed again, unchanged.
            Some(old) if *old.version == *item.version() => return,
            Some(old) => old.told,
            None if full => {
                self.refused += 1;
                // They are many by nature: those beyond what is told are counted alone.
                if self.told < MAX_INVALID {
                    let message = format!("more than {} objects: ignored until it changes", self.limit);
                    self.fault((index, kind), key, message, events);
                }
                return;
            }
            None => false,
        };
        let read = item.read(kind);
        // A broken edit leaves the last good version.
        known.insert(key.clone(), Known { version: item.version().into(), told: told || read.is_ok() });
        match read {
            Ok(object) => {
                self.repaired((index, kind), key, events);
                events.push(WatchEvent::Applied(*object));
            }
            Err(message) => self.fault((index, kind), key, message, events),
        }
    }

    fn gone(&mut self, index: usize, key: ObjectKey, events: &mut Vec<WatchEvent>) {
        let Listed { kind, known, listing, complete: _ } = &mut self.kinds[index];
        let kind = *kind;
        if let Some(listing) = listing {
            listing.remove(&key);
        }
        if known.remove(&key).is_some_and(|known| known.told) {
            events.push(WatchEvent::Deleted(kind, key.clone()));
        }
        self.repaired((index, kind), key, events);
    }

    fn listed(&mut self, index: usize, events: &mut Vec<WatchEvent>) {
        let kinds = &mut self.kinds[index];
        kinds.complete = true;
        let listing = kinds.listing.take().unwrap_or_default();
        let known = kinds.known.keys().filter(|key| !listing.contains(*key));
        let faulty = self.invalid.keys().filter(|(of, key)| *of == index && !listing.contains(key)).map(|(_, key)| key);
        let gone: HashSet<_> = known.chain(faulty).cloned().collect();
        for key in gone {
            self.gone(index, key, events);
        }
        if !self.synced && self.kinds.iter().all(|listed| listed.complete) {
            self.synced = true;
            events.push(WatchEvent::Synced);
        }
    }

    fn fault(&mut self, (index, kind): (usize, Kind), key: ObjectKey, message: String, events: &mut Vec<WatchEvent>) {
        if self.invalid.get(&(index, key.clone())).is_some_and(|known| known.message == message) {
            return;
        }
        self.repaired((index, kind), key.clone(), events);
        let told = self.told < MAX_INVALID;
        if told {
            self.told += 1;
            events.push(WatchEvent::Invalid(invalid(kind, key.clone(), message.clone())));
        }
        self.invalid.insert((index, key), Fault { message, told });
    }

    fn repaired(&mut self, (index, kind): (usize, Kind), key: ObjectKey, events: &mut Vec<WatchEvent>) {
        let Some(Fault { message, told }) = self.invalid.remove(&(index, key.clone())) else { return };
        if told {
            self.told -= 1;
            events.push(WatchEvent::Repaired(invalid(kind, key, message)));
        }
    }
}

fn invalid(kind: Kind, key: ObjectKey, message: String) -> Invalid {
    Invalid { file: None, document: 0, object: Some((kind, key)), message }
}
