//! Reads folders of manifests: at start, when the kernel tells of a change, and now and then in case it did not.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, task, time};

use super::{
    WatchError, WatchEvent,
    manifest::{self, Format, Parsed},
    notice::{Notice, Work},
    store::{MAX_OBJECTS, Store},
};

/// The longest file that is read, in bytes: ten times what an API server stores as one object.
pub const MAX_FILE: u64 = 16 << 20;

/// How many files of one folder are read; those that come later by name are refused.
pub const MAX_FILES: usize = 50_000;

/// How many files go into one batch while all are read for the first time.
const FIRST_READ: usize = 64;

/// What is read on the runtime's own thread: this many files, of so many bytes together. It takes less than a millisecond.
const FEW: usize = 4;
const LITTLE: u64 = 8 << 10;

/// The shortest time between two batches. The first change after a pause is taken at once; a burst is taken together.
const BETWEEN: Duration = Duration::from_millis(5);

/// How often everything is looked at, in case word of a change was lost.
const REPAIR: Duration = Duration::from_secs(10);

/// How often it is looked whether a folder was replaced.
const LOOK: Duration = Duration::from_millis(500);

/// Folders, and what was read of them.
#[derive(Debug)]
struct Folders {
    paths: Vec<PathBuf>,
    stamps: HashMap<PathBuf, Stamp>,
    store: Store,
    /// Folders that could not be read the last time: told once.
    missing: BTreeSet<PathBuf>,
}

/// Tells whether a file has changed without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    modified: Option<SystemTime>,
}

/// Reads `folders` and tells what changes until nobody listens.
pub(super) async fn watch(folders: Vec<PathBuf>, events: mpsc::Sender<Vec<WatchEvent>>) -> Result<(), WatchError> {
    // Watched before it is read, so that no change falls between.
    let mut notice = Notice::new(&folders)?;
    let mut state =
        Folders { paths: folders, stamps: HashMap::new(), store: Store::new(MAX_OBJECTS), missing: BTreeSet::new() };
    // In parts, so that the texts and objects of a large folder are not all in memory at once.
    let mut parts = state.list()?.into_iter();
    loop {
        let part: BTreeSet<_> = parts.by_ref().take(FIRST_READ).collect();
        let is_last = part.len() < FIRST_READ;
        let mut batch;
        (state, batch) = pass(state, Work::Files(part)).await;
        batch.extend(is_last.then_some(WatchEvent::Synced));
        if !batch.is_empty() && events.send(batch).await.is_err() {
            return Ok(());
        }
        if is_last {
            break;
        }
    }
    while let Some(work) = next(&mut notice, &events, !state.missing.is_empty()).await {
        let batch;
        (state, batch) = pass(state, work).await;
        if !batch.is_empty() && events.send(batch).await.is_err() {
            break;
        }
        time::sleep(BETWEEN).await;
    }
    Ok(())
}

/// Waits until there is something to look at; `None` when nobody listens any more.
async fn next(notice: &mut Notice, events: &mpsc::Sender<Vec<WatchEvent>>, missing: bool) -> Option<Work> {
    let repair = time::Instant::now() + REPAIR;
    loop {
        tokio::select! {
            work = notice.changed() => return Some(work),
            () = time::sleep(LOOK) => {
                if notice.renew() || missing || time::Instant::now() >= repair {
                    return Some(Work::All);
                }
            }
            () = events.closed() => return None,
        }
    }
}

/// Whether a file of this name is read: not hidden, and YAML or JSON by its extension.
pub(super) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && format(path).is_some()
}

/// Looks at what `work` says: at once when it is little, since a held request may wait for it, or else beside the
/// runtime's own thread.
async fn pass(mut state: Folders, work: Work) -> (Folders, Vec<WatchEvent>) {
    if is_little(&work) {
        let batch = state.pass(work);
        log(&batch);
        return (state, batch);
    }
    let done = task::spawn_blocking(move || {
        let batch = state.pass(work);
        (state, batch)
    });
    let (state, batch) = match done.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: nobody waits for this any more.
            Err(_cancelled) => std::future::pending().await,
        },
    };
    log(&batch);
    (state, batch)
}

fn is_little(work: &Work) -> bool {
    let Work::Files(files) = work else { return false };
    let lens = files.iter().take(FEW + 1).map(|path| fs::metadata(path).map_or(0, |meta| meta.len()));
    files.len() <= FEW && lens.sum::<u64>() <= LITTLE
}

fn log(batch: &[WatchEvent]) {
    for event in batch {
        match event {
            WatchEvent::Invalid(invalid) => tracing::warn!(%invalid, "manifest ignored"),
            WatchEvent::Repaired(invalid) => tracing::info!(%invalid, "manifest no longer invalid"),
            WatchEvent::Applied(_) | WatchEvent::Deleted(..) | WatchEvent::Synced => {}
        }
    }
}

// === impl Folders ===

impl Folders {
    /// The files of all folders, each of which has to be readable.
    fn list(&self) -> Result<Vec<PathBuf>, WatchError> {
        let mut files = Vec::new();
        for folder in &self.paths {
            let listed = list(folder).map_err(|source| WatchError::Folder { folder: folder.clone(), source })?;
            files.extend(listed.into_iter().take(MAX_FILES));
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Looks at what `work` says and tells what changed.
    fn pass(&mut self, work: Work) -> Vec<WatchEvent> {
        match work {
            Work::All => {
                for folder in self.paths.clone() {
                    self.scan(&folder);
                }
            }
            Work::Files(files) => {
                for file in files {
                    self.load(&file);
                }
            }
        }
        self.store.settle(|path| read(path).ok())
    }

    fn scan(&mut self, folder: &Path) {
        let files = match list(folder) {
            Ok(files) => files,
            Err(error) => {
                if self.missing.insert(folder.to_owned()) {
                    tracing::warn!(%error, folder = %folder.display(), "folder can't be read: its objects stay");
                }
                return;
            }
        };
        self.missing.remove(folder);
        let known: Vec<_> = self.stamps.keys().filter(|path| path.parent() == Some(folder)).cloned().collect();
        for path in known.iter().filter(|path| !files.contains(*path)) {
            self.forget(path);
        }
        for (index, path) in files.into_iter().enumerate() {
            let stamp = stamp(&path).ok();
            if stamp.is_some() && self.stamps.get(&path) == stamp.as_ref() {
                continue;
            }
            if index < MAX_FILES {
                self.load(&path);
            } else {
                self.store.refuse(&path, format!("more than {MAX_FILES} files in the folder: ignored"));
            }
        }
    }

    fn load(&mut self, path: &Path) {
        let read = stamp(path).and_then(|stamp| {
            self.stamps.insert(path.to_owned(), stamp);
            read(path)
        });
        match read {
            Ok(parsed) => self.store.replace(path, parsed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.forget(path),
            Err(error) => self.store.refuse(path, error.to_string()),
        }
    }

    fn forget(&mut self, path: &Path) {
        self.stamps.remove(path);
        self.store.remove(path);
    }
}

fn list(folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    entries.filter(|path| path.as_ref().map_or(true, |path| is_manifest(path))).collect()
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        // A folder or a pipe of that name: opening it might never return.
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(Stamp { inode: meta.ino(), len: meta.len(), modified: meta.modified().ok() })
}

fn read(path: &Path) -> io::Result<Vec<Parsed>> {
    let len = stamp(path)?.len;
    if len > MAX_FILE {
        return Err(io::Error::other(format!("the file has {len} bytes: expected at most {MAX_FILE}")));
    }
    let text = fs::read_to_string(path)?;
    Ok(manifest::parse(&text, format(path).unwrap_or(Format::Yaml)))
}

fn format(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}
