//! Where what the kernel holds is pinned, so that it outlives the process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// The folder of a name below where bpffs is mounted, if there can be one: without, what the kernel holds ends with this
/// process, and nothing else is lost.
pub(crate) fn folder(bpffs: &Path, name: &str) -> Option<PathBuf> {
    let is_bpffs = statfs(bpffs).map(|found| found.filesystem_type() == BPF_FS_MAGIC);
    let path = bpffs.join(name);
    let why = match is_bpffs {
        Ok(true) => match fs::create_dir_all(&path) {
            Ok(()) => return Some(path),
            Err(error) => error.to_string(),
        },
        Ok(false) => "it is no bpffs".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(bpffs = %bpffs.display(), name, why, "what the kernel holds will end with the agent");
    None
}

/// Removes a folder of pins; what is pinned nowhere else and in nobody's hands goes with it.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    if folder.exists() {
        for entry in fs::read_dir(folder)? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_dir(folder)?;
    }
    Ok(())
}
