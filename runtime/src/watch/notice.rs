//! Word from the kernel that files of a folder changed, gathered until it is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::{
    Config, EventKind, INotifyWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{WatchError, folder::is_manifest};

/// How many changed files are remembered one by one; beyond that all are looked at.
const MAX_PENDING: usize = 4096;

/// What is to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Everything, as far as it seems changed.
    All,
    /// These files.
    Files(BTreeSet<PathBuf>),
}

/// Watches folders.
#[derive(Debug)]
pub(super) struct Notice {
    watcher: INotifyWatcher,
    /// The inode that each folder had when it was watched: one that was replaced has to be watched anew.
    watched: BTreeMap<PathBuf, u64>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Work>,
    wake: Notify,
}

// === impl Work ===

impl Default for Work {
    fn default() -> Self {
        Self::Files(BTreeSet::new())
    }
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Files(files) if files.is_empty())
    }

    fn add(&mut self, file: PathBuf) {
        if let Self::Files(files) = self {
            files.insert(file);
            if files.len() > MAX_PENDING {
                *self = Self::All;
            }
        }
    }
}

// === impl Notice ===

impl Notice {
    pub(super) fn new(folders: &[PathBuf]) -> Result<Self, WatchError> {
        let shared = Arc::new(Shared { pending: Mutex::new(Work::default()), wake: Notify::new() });
        let handler = Arc::clone(&shared);
        let watcher = INotifyWatcher::new(move |event| handler.take(event), Config::default());
        let folder = folders.first().cloned().unwrap_or_default();
        let watcher = watcher.map_err(|source| WatchError::Notice { folder, source })?;
        let mut notice = Self { watcher, watched: BTreeMap::new(), shared };
        for folder in folders {
            notice.watch(folder)?;
        }
        Ok(notice)
    }

    /// Waits until something changed. Cancel safe.
    pub(super) async fn changed(&self) {
        loop {
            let wake = self.shared.wake.notified();
            if !self.shared.pending.lock().is_empty() {
                return;
            }
            wake.await;
        }
    }

    pub(super) fn take(&self) -> Work {
        std::mem::take(&mut *self.shared.pending.lock())
    }

    /// Watches folders that were replaced since they were watched; tells whether there was one.
    pub(super) fn renew(&mut self) -> bool {
        let mut renewed = false;
        for (folder, inode) in self.watched.clone() {
            let now = inode_of(&folder);
            if now.is_some_and(|now| now != inode) {
                // It may be gone already; what counts is that the new one is watched.
                let _gone = self.watcher.unwatch(&folder);
                match self.watch(&folder) {
                    Ok(()) => renewed = true,
                    Err(error) => {
                        tracing::warn!(%error, folder = %folder.display(), "the new folder is not watched yet");
                    }
                }
            }
        }
        renewed
    }

    fn watch(&mut self, folder: &Path) -> Result<(), WatchError> {
        let inode = inode_of(folder);
        let watching = self.watcher.watch(folder, RecursiveMode::NonRecursive);
        watching.map_err(|source| WatchError::Notice { folder: folder.to_owned(), source })?;
        self.watched.insert(folder.to_owned(), inode.unwrap_or_default());
        Ok(())
    }
}

// === impl Shared ===

impl Shared {
    fn take(&self, event: notify::Result<notify::Event>) {
        let mut pending = self.pending.lock();
        match event {
            Ok(event) if event.need_rescan() => *pending = Work::All,
            Ok(event) if is_change(event.kind) => {
                for path in event.paths {
                    add(&mut pending, event.kind, path);
                }
            }
            Ok(_) => {}
            Err(_overflow) => *pending = Work::All,
        }
        if !pending.is_empty() {
            self.wake.notify_one();
        }
    }
}

fn add(pending: &mut Work, kind: EventKind, path: PathBuf) {
    if is_manifest(&path) {
        if !is_unwritten(kind, &path) {
            pending.add(path);
        }
    } else if path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"..")) || path.is_dir() {
        // The folder itself, or the link by which Kubernetes swaps a whole volume.
        *pending = Work::All;
    }
}

/// A write is told when the file is closed, so that a half-written one is not read.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Create(_)
        | EventKind::Remove(_)
        | EventKind::Modify(ModifyKind::Name(_))
        | EventKind::Any
        | EventKind::Other => true,
        EventKind::Access(_) | EventKind::Modify(_) => false,
    }
}

/// A file that was created just now and is going to be closed; a link is whole at once.
fn is_unwritten(kind: EventKind, path: &Path) -> bool {
    matches!(kind, EventKind::Create(CreateKind::File | CreateKind::Any))
        && fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.nlink() == 1)
}

fn inode_of(folder: &Path) -> Option<u64> {
    fs::metadata(folder).ok().map(|meta| meta.ino())
}
