//! Word from the kernel that files of a folder changed: inotify, for just the events that tell of whole files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};

use super::{WatchError, folder::is_manifest};

/// How many changed files are remembered one by one; beyond that all are looked at.
const MAX_PENDING: usize = 4096;

/// Room for the events of one read: a hundred and more, each with the name of its file.
const BUFFER: usize = 8192;

/// What is to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Everything, as far as it seems changed.
    All,
    /// These files.
    Files(BTreeSet<PathBuf>),
}

/// Watches folders.
pub(super) struct Notice {
    events: EventStream<Box<[u8]>>,
    folders: BTreeMap<PathBuf, Watched>,
    pending: Work,
}

/// A folder as it was when it was watched: one that was replaced has to be watched anew.
#[derive(Debug)]
struct Watched {
    watch: WatchDescriptor,
    inode: Option<u64>,
}

// === impl Work ===

impl Default for Work {
    fn default() -> Self {
        Self::Files(BTreeSet::new())
    }
}

impl Work {
    fn is_empty(&self) -> bool {
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
        let events = Inotify::init().and_then(|inotify| inotify.into_event_stream(vec![0; BUFFER].into_boxed_slice()));
        let events = events.map_err(WatchError::Notice)?;
        let mut notice = Self { events, folders: BTreeMap::new(), pending: Work::default() };
        for folder in folders {
            notice.watch(folder).map_err(|source| WatchError::Folder { folder: folder.clone(), source })?;
        }
        Ok(notice)
    }

    /// Waits until something changed, and tells what. Cancel safe: what is not told stays pending.
    pub(super) async fn changed(&mut self) -> Work {
        loop {
            if !self.pending.is_empty() {
                return std::mem::take(&mut self.pending);
            }
            let first = self.events.next().await;
            self.take(first);
            // All that came together is looked at together.
            while let Some(event) = self.events.next().now_or_never() {
                self.take(event);
            }
        }
    }

    /// Watches folders that were replaced since they were watched; tells whether there was one.
    pub(super) fn renew(&mut self) -> bool {
        let replaced = self.folders.iter().filter(|(folder, watched)| {
            let now = inode_of(folder);
            now.is_some() && now != watched.inode
        });
        let replaced: Vec<_> = replaced.map(|(folder, _)| folder.clone()).collect();
        let mut renewed = false;
        for folder in replaced {
            match self.watch(&folder) {
                Ok(()) => renewed = true,
                Err(error) => {
                    tracing::warn!(%error, folder = %folder.display(), "the new folder is not watched yet");
                }
            }
        }
        renewed
    }

    fn watch(&mut self, folder: &Path) -> io::Result<()> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let inode = inode_of(folder);
        let mut watches = self.events.watches();
        let watch = watches.add(folder, mask)?;
        if let Some(old) = self.folders.insert(folder.to_owned(), Watched { watch: watch.clone(), inode })
            && old.watch != watch
        {
            // It may have gone with its folder; what counts is that the new one is watched.
            let _gone = watches.remove(old.watch);
        }
        Ok(())
    }

    fn take(&mut self, event: Option<io::Result<EventOwned>>) {
        let Some(Ok(EventOwned { wd, mask, cookie: _, name })) = event else {
            // Whatever it was, looking at everything makes it good.
            self.pending = Work::All;
            return;
        };
        let folder = self.folders.iter().find(|(_, watched)| watched.watch == wd).map(|(folder, _)| folder);
        match (folder, name) {
            _ if mask.contains(EventMask::Q_OVERFLOW) => self.pending = Work::All,
            (Some(folder), Some(name)) => note(&mut self.pending, folder.join(name), mask),
            // The folder itself was moved or deleted.
            (Some(_), None) => self.pending = Work::All,
            // From a folder that is watched no more.
            (None, _) => {}
        }
    }
}

fn note(pending: &mut Work, path: PathBuf, mask: EventMask) {
    if is_manifest(&path) {
        // A write is told when the file is closed, so that a half-written one is not read.
        if !(mask.contains(EventMask::CREATE) && is_unwritten(&path)) {
            pending.add(path);
        }
    } else if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"..")) {
        // The link by which Kubernetes swaps a whole volume.
        *pending = Work::All;
    }
}

/// A file that was created just now and is going to be closed; a link is whole at once.
fn is_unwritten(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.nlink() == 1)
}

fn inode_of(folder: &Path) -> Option<u64> {
    fs::metadata(folder).ok().map(|meta| meta.ino())
}
