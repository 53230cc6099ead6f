//! Where objects come from: a Kubernetes API server or a folder of manifests, watched. Writes batches of events for the task that owns the index.
//!
//! One broken document or object never stops the others: it is told with file, document and object, and what it named before
//! stays as it was. A batch holds what changed since the last one, at most once per object.

use std::path::PathBuf;

use interceptor_core::ObjectKey;
use tokio::sync::mpsc;

mod cluster;
mod folder;
mod manifest;
mod notice;
mod object;
mod source;
mod store;

#[cfg(test)]
mod tests;

pub use self::{
    cluster::{ApiError, Cluster, Watch, WatchMetrics, api_client},
    folder::{MAX_FILE, MAX_FILES},
    object::{Kind, Object, core_event},
    source::{Source, SourceError, Sources},
    store::{Invalid, MAX_INVALID, MAX_OBJECTS},
};

/// What happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    /// It is there, new or changed.
    Applied(Object),
    /// It is gone.
    Deleted(Kind, ObjectKey),
    /// A document can't be used.
    Invalid(Invalid),
    /// A document of which that was said can be used again, or is gone.
    Repaired(Invalid),
    /// All sources have been read once.
    Synced,
}

/// Why watching ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The folder can't be read.
    #[error("cannot read the folder {folder}")]
    Folder {
        /// Which folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The Kubernetes API can't be asked.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The kernel gives no notice of changes.
    #[error("cannot watch folders")]
    Notice(#[source] std::io::Error),
}

/// Whether sources are such that [`run`] can begin, so that a process ends before it serves anybody if they are not.
pub async fn check(sources: &Sources) -> Result<(), WatchError> {
    match sources {
        Sources::Cluster(cluster) => Ok(cluster::check(cluster).await?),
        Sources::Dirs(_) => Ok(()),
    }
}

/// Reads all sources, then tells what changes, until the receiver is dropped.
///
/// [`WatchEvent::Synced`] is in the batch, not always the first, that completes the first reading. A folder that can't be
/// read by then is an error; one that goes later is waited for. An API server is waited for at any time.
pub async fn run(
    sources: Sources,
    metrics: WatchMetrics,
    events: mpsc::Sender<Vec<WatchEvent>>,
) -> Result<(), WatchError> {
    match sources {
        Sources::Cluster(cluster) => cluster::watch(cluster, metrics, events).await,
        Sources::Dirs(folders) => folder::watch(folders, events).await,
    }
}
