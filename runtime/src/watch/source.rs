//! Where a process reads its objects: what `--source` flags say, or a cluster without them.

use std::{path::PathBuf, str::FromStr};

use super::Cluster;

/// What one `--source` flag names: `dir:PATH`, the manifests of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source(pub PathBuf);

/// All that a process reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// A Kubernetes API server.
    Cluster(Cluster),
    /// Folders of manifests.
    Dirs(Vec<PathBuf>),
}

/// A text that is no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no source: expected dir:PATH")]
pub struct SourceError(String);

// === impl Source ===

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text.strip_prefix("dir:") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err(SourceError(text.to_owned())),
        }
    }
}

// === impl Sources ===

impl Sources {
    /// The folders that flags name; without flags, the cluster.
    pub fn new(flags: Vec<Source>, cluster: impl FnOnce() -> Cluster) -> Self {
        if flags.is_empty() {
            return Self::Cluster(cluster());
        }
        Self::Dirs(flags.into_iter().map(|Source(folder)| folder).collect())
    }

    /// One folder.
    pub fn dir(folder: impl Into<PathBuf>) -> Self {
        Self::Dirs(vec![folder.into()])
    }
}
