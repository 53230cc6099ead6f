//! Which file holds which object: turns what files hold now into what changed since. No I/O.
//!
//! When two files hold the same object, the first in order of their paths wins, whatever came first, so that a restart
//! changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::Path,
    sync::Arc,
};

use interceptor_core::ObjectKey;

use super::{
    Kind, Object, WatchEvent,
    manifest::{Failure, Parsed},
};

/// How many objects are kept; what comes later is refused until its file changes again.
pub const MAX_OBJECTS: usize = 100_000;

/// How many invalid documents are told at once; who has more than these reads the first ones first.
pub const MAX_INVALID: usize = 1000;

type Id = (Kind, ObjectKey);

/// A document that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Invalid {
    /// The file it is in; `None` is the cluster.
    pub file: Option<Arc<Path>>,
    /// Which document of the file, from 1; 0 is the file as a whole, or no file.
    pub document: usize,
    /// The object it is about, as far as the text tells.
    pub object: Option<(Kind, ObjectKey)>,
    /// Why.
    pub message: String,
}

/// What all files hold.
#[derive(Debug)]
pub(super) struct Store {
    /// How many objects it takes.
    limit: usize,
    /// By file, which objects it holds.
    files: BTreeMap<Arc<Path>, BTreeMap<Id, Held>>,
    objects: HashMap<Id, Known>,
    /// Objects that more than one file holds.
    contested: BTreeSet<Id>,
    broken: BTreeMap<Arc<Path>, Vec<Invalid>>,
    touched: BTreeSet<Id>,
    /// Objects of files that were read since the last settling.
    fresh: HashMap<Id, BTreeMap<Arc<Path>, Box<Object>>>,
    reported: BTreeSet<Invalid>,
}

/// What is read of one file before it replaces what was known of it.
struct Draft<'a> {
    path: &'a Arc<Path>,
    old: BTreeMap<Id, Held>,
    held: BTreeMap<Id, Held>,
    invalid: Vec<Invalid>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    document: usize,
    hash: u64,
}

/// Who holds an object, and which version of it was told.
#[derive(Debug, Default)]
struct Known {
    /// Sorted; nearly always one.
    files: Vec<Arc<Path>>,
    told: Option<Told>,
}

#[derive(Debug)]
struct Told {
    file: Arc<Path>,
    hash: u64,
}

// === impl Invalid ===

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            separator = ", ";
        }
        if self.document > 0 {
            write!(f, "{separator}document {}", self.document)?;
        }
        if let Some((kind, key)) = &self.object {
            write!(f, "{separator}{kind} {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

// === impl Store ===

impl Store {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            files: BTreeMap::new(),
            objects: HashMap::new(),
            contested: BTreeSet::new(),
            broken: BTreeMap::new(),
            touched: BTreeSet::new(),
            fresh: HashMap::new(),
            reported: BTreeSet::new(),
        }
    }

    /// Takes in what a file holds now.
    pub(super) fn replace(&mut self, path: &Path, parsed: Vec<Parsed>) {
        let known = self.files.remove_entry(path);
        let (path, old) = known.unwrap_or_else(|| (path.into(), BTreeMap::new()));
        let mut draft = Draft { path: &path, old, held: BTreeMap::new(), invalid: Vec::new() };
        let mut kept = BTreeSet::new();
        let mut keep_all = false;
        for Parsed { document, hash, outcome } in parsed {
            match outcome {
                Ok(object) => self.hold(&mut draft, Held { document, hash }, object),
                Err(Failure { id, message }) => {
                    keep_all |= id.is_none();
                    kept.extend(id.clone());
                    draft.refuse(document, id, message);
                }
            }
        }
        let Draft { path: _, old, mut held, invalid } = draft;
        // A broken edit leaves the last good version; when the text tells no name, any that is missing now.
        for (id, last) in &old {
            if (keep_all || kept.contains(id)) && !held.contains_key(id) {
                held.insert(id.clone(), *last);
            }
        }
        self.unclaim(&path, old.into_keys().filter(|id| !held.contains_key(id)));
        self.claim(&path, held.keys());
        if invalid.is_empty() {
            self.broken.remove(&path);
        } else {
            self.broken.insert(Arc::clone(&path), invalid);
        }
        self.files.insert(path, held);
    }

    /// Refuses a file as a whole: what it held stays.
    pub(super) fn refuse(&mut self, path: &Path, message: String) {
        let failure = Failure { id: None, message };
        self.replace(path, vec![Parsed { document: 0, hash: 0, outcome: Err(failure) }]);
    }

    /// A file is gone.
    pub(super) fn remove(&mut self, path: &Path) {
        if let Some((path, old)) = self.files.remove_entry(path) {
            self.broken.remove(&path);
            self.unclaim(&path, old.into_keys());
        }
    }

    /// What changed. `read` parses a file that has not changed but holds an object that another one held before it.
    pub(super) fn settle(&mut self, mut read: impl FnMut(&Path) -> Option<Vec<Parsed>>) -> Vec<WatchEvent> {
        let mut events = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            self.settle_one(&id, &mut read, &mut events);
        }
        self.fresh.clear();
        self.touched.clear();
        let current = self.invalid();
        events.extend(self.reported.difference(&current).cloned().map(WatchEvent::Repaired));
        events.extend(current.difference(&self.reported).cloned().map(WatchEvent::Invalid));
        self.reported = current;
        events
    }

    fn hold(&mut self, draft: &mut Draft<'_>, held: Held, object: Box<Object>) {
        let Ok(key) = object.key() else { return };
        let id = (object.kind(), key);
        let is_new = !draft.old.contains_key(&id) && !self.objects.contains_key(&id);
        if let Some(first) = draft.held.get(&id) {
            let message = format!("document {} of the file is the same object and wins", first.document);
            draft.refuse(held.document, Some(id), message);
        } else if is_new && self.objects.len() + draft.held.len() >= self.limit {
            draft.refuse(
                held.document,
                Some(id),
                format!("more than {} objects: ignored until the file changes", self.limit),
            );
        } else {
            self.fresh.entry(id.clone()).or_default().insert(Arc::clone(draft.path), object);
            draft.held.insert(id, held);
        }
    }

    fn claim<'a>(&mut self, path: &Arc<Path>, ids: impl Iterator<Item = &'a Id>) {
        for id in ids {
            let Known { files, told: _ } = self.objects.entry(id.clone()).or_default();
            if let Err(at) = files.binary_search(path) {
                files.reserve_exact(1);
                files.insert(at, Arc::clone(path));
            }
            if files.len() > 1 {
                self.contested.insert(id.clone());
            }
            self.touched.insert(id.clone());
        }
    }

    fn unclaim(&mut self, path: &Arc<Path>, ids: impl Iterator<Item = Id>) {
        for id in ids {
            if let Some(Known { files, told: _ }) = self.objects.get_mut(&id) {
                files.retain(|file| file != path);
                if files.len() < 2 {
                    self.contested.remove(&id);
                }
            }
            self.touched.insert(id);
        }
    }

    fn settle_one(
        &mut self,
        id: &Id,
        read: &mut impl FnMut(&Path) -> Option<Vec<Parsed>>,
        events: &mut Vec<WatchEvent>,
    ) {
        let Some(Known { files, told }) = self.objects.remove(id) else { return };
        for file in &files {
            let Some(hash) = self.files.get(file).and_then(|held| held.get(id)).map(|held| held.hash) else { continue };
            let is_told = told.as_ref().is_some_and(|told| told.hash == hash);
            let object =
                if is_told { None } else { self.fresh_object(id, file).or_else(|| find(read(file)?, id, hash)) };
            if is_told || object.is_some() {
                events.extend(object.map(|object| WatchEvent::Applied(*object)));
                let told = Some(Told { file: Arc::clone(file), hash });
                self.objects.insert(id.clone(), Known { files, told });
                return;
            }
        }
        if told.is_some() {
            events.push(WatchEvent::Deleted(id.0, id.1.clone()));
        }
        if !files.is_empty() {
            self.objects.insert(id.clone(), Known { files, told: None });
        }
    }

    fn fresh_object(&mut self, id: &Id, path: &Path) -> Option<Box<Object>> {
        self.fresh.get_mut(id)?.remove(path)
    }

    /// Everything that is wrong now: documents that can't be used, and objects that another file holds.
    fn invalid(&self) -> BTreeSet<Invalid> {
        let broken = self.broken.values().flatten().cloned();
        let twice = self.contested.iter().flat_map(|id| {
            let known = self.objects.get(id).and_then(|known| Some((&known.files, known.told.as_ref()?)));
            known.into_iter().flat_map(move |(files, told)| files.iter().filter_map(|file| self.twice(id, file, told)))
        });
        broken.chain(twice).take(MAX_INVALID).collect()
    }

    fn twice(&self, id: &Id, file: &Arc<Path>, told: &Told) -> Option<Invalid> {
        if *file == told.file {
            return None;
        }
        Some(Invalid {
            file: Some(Arc::clone(file)),
            document: self.files.get(file)?.get(id)?.document,
            object: Some(id.clone()),
            message: format!("{} has the same object and wins", told.file.display()),
        })
    }
}

// === impl Draft ===

impl Draft<'_> {
    fn refuse(&mut self, document: usize, object: Option<Id>, message: String) {
        self.invalid.push(Invalid { file: Some(Arc::clone(self.path)), document, object, message });
    }
}

fn find(parsed: Vec<Parsed>, id: &Id, hash: u64) -> Option<Box<Object>> {
    let same = |object: &Object| object.kind() == id.0 && object.key().is_ok_and(|key| key == id.1);
    let objects = parsed.into_iter().filter(|parsed| parsed.hash == hash).filter_map(|parsed| parsed.outcome.ok());
    let mut objects = objects.filter(|object| same(object));
    objects.next()
}

#[cfg(test)]
mod tests;
