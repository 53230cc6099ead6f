//! Certificates as files: pairs found in folders, read whole, and known again by what `stat` says of them.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _};
use thiserror::Error;

/// How deep folders are searched; a mounted Secret has two levels.
const MAX_DEPTH: usize = 8;

/// Files that are looked at in all folders together.
const MAX_FILES: usize = 20_000;

/// Most bytes of one file.
const MAX_FILE: u64 = 1 << 20;

/// Where certificates for clients lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The certificate, with its chain, for clients that name no host or an unknown one, and its key; `None` when that comes
    /// from elsewhere.
    pub default: Option<(PathBuf, PathBuf)>,
    /// Folders with more pairs: `X.crt` and `X.key`, or `X.pem` and `X-key.pem`.
    pub stores: Vec<PathBuf>,
}

/// A file that can't be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It can't be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large to be one.
    #[error("{path} has more than 1 MiB: expected a certificate or a key in PEM")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// There are too many files.
    #[error("{path} has more than {MAX_FILES} files, or folders nested deeper than {MAX_DEPTH}")]
    TooMany {
        /// Which folder.
        path: PathBuf,
    },
    /// It holds no PEM of the kind.
    #[error("{path}: {source}: expected {expected} in PEM")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// Why it does not.
        source: pem::Error,
    },
    /// A certificate stands alone.
    #[error("{certificate} has no key: expected {key} beside it")]
    NoKey {
        /// The certificate.
        certificate: PathBuf,
        /// Where its key should be.
        key: PathBuf,
    },
    /// Key and certificate can't be used together.
    #[error("{certificate} with {key}: {source}")]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
}

/// What tells one state of a set of files from another.
pub(crate) type Fingerprint = Vec<(PathBuf, u64, i64, i64, u64)>;

// === impl Paths ===

impl Paths {
    /// The pairs of certificate and key in the folders, in the order of their paths.
    pub(crate) fn pairs(&self) -> Result<Vec<(PathBuf, PathBuf)>, FileError> {
        let mut pairs = Vec::new();
        for store in &self.stores {
            let files = files(store)?;
            for certificate in &files {
                let Some(key) = key_of(certificate) else { continue };
                if !files.contains(&key) {
                    return Err(FileError::NoKey { certificate: certificate.clone(), key });
                }
                pairs.push((certificate.clone(), key));
            }
        }
        Ok(pairs)
    }

    /// The state the files are in.
    pub(crate) fn fingerprint(&self) -> Result<Fingerprint, FileError> {
        let mut paths: BTreeSet<_> =
            self.default.iter().flat_map(|(certificate, key)| [certificate, key]).cloned().collect();
        for store in &self.stores {
            paths.extend(files(store)?);
        }
        fingerprint(paths)
    }
}

/// The state that all files of `folders` are in.
pub(crate) fn fingerprint_of(folders: &[PathBuf]) -> Result<Fingerprint, FileError> {
    let mut paths = BTreeSet::new();
    for folder in folders {
        paths.extend(files(folder)?);
    }
    fingerprint(paths)
}

fn fingerprint(paths: BTreeSet<PathBuf>) -> Result<Fingerprint, FileError> {
    let state = |path: PathBuf| {
        let data = fs::metadata(&path).map_err(|source| FileError::Read { path: path.clone(), source })?;
        Ok((path, data.ino(), data.mtime(), data.mtime_nsec(), data.size()))
    };
    paths.into_iter().map(state).collect()
}

/// Where the key of a certificate should be; `None` for a file that is no certificate by its name.
fn key_of(certificate: &Path) -> Option<PathBuf> {
    let name = certificate.file_name()?.to_str()?;
    let key = match (name.strip_suffix(".crt"), name.strip_suffix(".pem")) {
        (Some(stem), _) => format!("{stem}.key"),
        (None, Some(stem)) if !stem.ends_with("-key") => format!("{stem}-key.pem"),
        _ => return None,
    };
    Some(certificate.with_file_name(key))
}

/// All files below a folder. Each folder is visited once, so a link to one above it ends nowhere.
fn files(folder: &Path) -> Result<BTreeSet<PathBuf>, FileError> {
    let too_many = || FileError::TooMany { path: folder.to_owned() };
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut open = vec![(folder.to_owned(), 0)];
    while let Some((path, depth)) = open.pop() {
        let read = |source| FileError::Read { path: path.clone(), source };
        let data = fs::metadata(&path).map_err(read)?;
        if !data.is_dir() {
            found.insert(path);
        } else if seen.insert((data.dev(), data.ino())) {
            if depth > MAX_DEPTH {
                return Err(too_many());
            }
            for entry in fs::read_dir(&path).map_err(read)? {
                open.push((entry.map_err(read)?.path(), depth + 1));
            }
        }
        if found.len() + open.len() > MAX_FILES {
            return Err(too_many());
        }
    }
    Ok(found)
}

/// A file's content.
fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    fs::read(path).map_err(failed)
}

/// The certificates in a file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let failed = |source| FileError::Pem { path: path.to_owned(), expected: "certificates", source };
    let all: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(failed)?;
    if all.is_empty() { Err(failed(pem::Error::NoItemsFound)) } else { Ok(all) }
}

/// The key in a file.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let failed = |source| FileError::Pem { path: path.to_owned(), expected: "a private key", source };
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(failed)
}

/// The certificates of authorities in all files of `folders`; files without any are passed over.
pub(crate) fn authorities(folders: &[PathBuf]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let mut all = Vec::new();
    for folder in folders {
        for path in files(folder)? {
            match certificates(&path) {
                Ok(found) => all.extend(found),
                Err(FileError::Pem { source: pem::Error::NoItemsFound, .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(names: &[&str]) -> (tempfile::TempDir, Paths) {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let stores = vec![folder.path().to_owned()];
        (folder, Paths { default: None, stores })
    }

    #[test]
    fn pairs_are_found_by_their_names_in_all_folders_below() {
        let (folder, paths) = store(&["a.crt", "a.key", "sub/b.pem", "sub/b-key.pem", "lonely.key", "notes.txt"]);
        let pairs = paths.pairs().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(pairs, [(at("a.crt"), at("a.key")), (at("sub/b.pem"), at("sub/b-key.pem"))]);
    }

    #[test]
    fn a_certificate_without_key_and_a_folder_that_is_not_there_are_told() {
        let (_folder, paths) = store(&["a.crt"]);
        let message = paths.pairs().unwrap_err().to_string();
        assert!(message.contains("a.crt has no key: expected") && message.contains("a.key"), "{message}");
        let gone = Paths { stores: vec!["/does/not/exist".into()], ..paths };
        assert!(gone.pairs().unwrap_err().to_string().contains("cannot read /does/not/exist"));
    }

    #[test]
    fn a_mounted_secret_is_read_through_its_links_and_a_ring_of_links_ends() {
        let (folder, paths) = store(&["..2026/tls.crt", "..2026/tls.key"]);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        link("..2026", "..data");
        link("..data/tls.crt", "tls.crt");
        link("..data/tls.key", "tls.key");
        link(".", "again");
        assert_eq!(paths.pairs().unwrap().len(), 2, "once in its folder and once by its link");
    }
}
