//! Where what the kernel holds is pinned, so that it outlives the process.

use std::{
    error::Error,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::programs::{Program, ProgramError, links::FdLink};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::syscall;

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

/// Whether there was a link at the pin, which has the program now. One whose cgroup has gone is no use.
pub(crate) fn replaced(pin: &Path, program: &Program) -> bool {
    if !pin.exists() {
        return false;
    }
    let done = program.fd().is_ok_and(|fd| syscall::replace_at(pin, fd.as_fd()).is_ok());
    if !done {
        _ = fs::remove_file(pin);
    }
    done
}

/// Before 5.7 there is no link that could be pinned.
pub(crate) fn pin<E: Error + Send + Sync + 'static>(link: Result<FdLink, E>, pin: &Path) -> Result<(), ProgramError> {
    let failed = |error| ProgramError::IOError(io::Error::other::<Box<dyn Error + Send + Sync>>(error));
    link.map_err(|error| failed(error.into()))?.pin(pin).map(drop).map_err(|error| failed(error.into()))
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
