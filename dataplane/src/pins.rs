//! Where what the kernel holds is pinned, so that it outlives the process.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    Program, ProgramError,
    links::{FdLink, LinkError},
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::syscall;

/// A folder of pins below where bpffs is mounted, if there can be one: without, what the kernel holds ends with this process,
/// and nothing else is lost.
#[derive(Debug)]
pub(crate) struct Folder {
    bpffs: Option<PathBuf>,
    /// Ends with the number of the maps' layout, which programs of two versions must not share.
    name: &'static str,
    there: Result<PathBuf, String>,
    /// Whether it was there when maps and programs were made: what was not pinned then cannot be later.
    was_there: bool,
    /// Whether those of other layouts have been taken away.
    is_alone: bool,
}

/// Something that is pinned, and held, too: it stays in the kernel for as long as this process, whoever takes the pin away.
#[derive(Debug)]
pub(crate) struct Pinned {
    pin: PathBuf,
    /// None where there was nothing.
    object: Option<OwnedFd>,
}

// === impl Folder ===

impl Folder {
    /// Makes the folder.
    pub(crate) fn open(bpffs: Option<&Path>, name: &'static str) -> Self {
        let there = bpffs.map_or_else(|| Err("no bpffs is named".to_owned()), |bpffs| made(bpffs, name));
        let was_there = there.is_ok();
        let folder = Self { bpffs: bpffs.map(Path::to_owned), name, there, was_there, is_alone: false };
        folder.tell();
        folder
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        self.there.as_deref().ok()
    }

    /// What is pinned in it by these names.
    pub(crate) fn hold(&self, names: impl Iterator<Item = &'static str>) -> Vec<Pinned> {
        let Some(folder) = self.path() else { return Vec::new() };
        names.map(|name| Pinned::at(folder.join(name))).collect()
    }

    /// Why nothing is pinned, if so.
    pub(crate) fn why_not(&self) -> Option<&str> {
        self.there.as_ref().err().map(String::as_str)
    }

    /// Makes it again if it has gone.
    pub(crate) fn again(&mut self) {
        let (Some(bpffs), true) = (&self.bpffs, self.was_there) else { return };
        let before = std::mem::replace(&mut self.there, made(bpffs, self.name));
        if before != self.there {
            self.tell();
        }
    }

    /// Takes away, once, what agents of other versions have left in folders of their own: of two programs each would hold, or count, what the
    /// other does.
    pub(crate) fn be_alone(&mut self) {
        let (Some(bpffs), false) = (&self.bpffs, self.is_alone) else { return };
        self.is_alone = true;
        for other in layouts(bpffs, self.name).filter(|other| *other != bpffs.join(self.name)) {
            match remove_folder(&other) {
                Ok(()) => tracing::info!(folder = %other.display(), "what another version had pinned is taken away"),
                Err(error) => {
                    tracing::warn!(folder = %other.display(), %error, "what another version has pinned stays");
                }
            }
        }
    }

    fn tell(&self) {
        let (Some(bpffs), name) = (&self.bpffs, self.name) else { return };
        match &self.there {
            Ok(_) => tracing::debug!(bpffs = %bpffs.display(), name, "what the kernel holds is pinned"),
            Err(why) => {
                tracing::warn!(bpffs = %bpffs.display(), name, why, "what the kernel holds will end with the agent");
            }
        }
    }
}

fn made(bpffs: &Path, name: &str) -> Result<PathBuf, String> {
    let found = statfs(bpffs).map_err(|error| error.to_string())?;
    if found.filesystem_type() != BPF_FS_MAGIC {
        return Err("it is no bpffs".to_owned());
    }
    let path = bpffs.join(name);
    fs::create_dir_all(&path).map_err(|error| error.to_string())?;
    Ok(path)
}

/// The folders of all layouts of what is pinned by this name.
fn layouts(bpffs: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let path = bpffs.join(name.trim_end_matches(|digit: char| digit.is_ascii_digit()));
    let prefix = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let entries = path.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(move |path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_prefix(&prefix).is_some_and(|number| number.parse::<u32>().is_ok())
    })
}

/// Takes away what is pinned by this name, of all layouts; what is in nobody's hands goes with it.
pub(crate) fn remove(bpffs: &Path, name: &str) -> io::Result<()> {
    layouts(bpffs, name).try_for_each(|folder| remove_folder(&folder))
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(folder)
}

/// Pins those again that are not pinned any more: how many.
pub(crate) fn again(pins: &[Pinned]) -> io::Result<usize> {
    pins.iter().try_fold(0, |again, pin| Ok(again + usize::from(pin.again()?)))
}

/// Tells what came of that.
pub(crate) fn tell(again: io::Result<usize>) {
    match again {
        Ok(0) => {}
        Ok(pins) => tracing::warn!(pins, "somebody has taken pins away: what they led to is pinned again"),
        Err(error) => tracing::warn!(%error, "pins that have gone cannot be made again"),
    }
}

/// A link by its descriptor. Before 5.7 there is none that could be pinned.
pub(crate) fn descriptor<L>(link: L) -> Result<FdLink, ProgramError>
where
    FdLink: TryFrom<L, Error = LinkError>,
{
    FdLink::try_from(link).map_err(|error| ProgramError::IOError(io::Error::other(error)))
}

// === impl Pinned ===

impl Pinned {
    /// What is there, if anything is.
    pub(crate) fn at(pin: PathBuf) -> Self {
        let object = syscall::object_at(&pin).ok();
        Self { pin, object }
    }

    /// The link that is pinned there, with the program in the place of the one that it had; otherwise a new one. One whose cgroup has gone is no use.
    pub(crate) fn link(
        pin: PathBuf,
        program: &mut Program,
        attach: impl FnOnce(&mut Program) -> Result<FdLink, ProgramError>,
    ) -> Result<Self, ProgramError> {
        if let Some(found) = Self::replaced(pin.clone(), program) {
            return Ok(found);
        }
        let link = attach(program)?.pin(&pin).map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
        let pinned = Self::at(pin);
        drop(link);
        Ok(pinned)
    }

    /// The link that is pinned there, which has the program now; if it can't, it is taken away.
    pub(crate) fn replaced(pin: PathBuf, program: &Program) -> Option<Self> {
        let found = Self::at(pin);
        let replace = |link: &OwnedFd| program.fd().is_ok_and(|fd| syscall::replace(link.as_fd(), fd.as_fd()).is_ok());
        if found.object.as_ref().is_some_and(replace) {
            return Some(found);
        }
        found.remove();
        None
    }

    /// Pins it where the pin has gone: whether it had.
    pub(crate) fn again(&self) -> io::Result<bool> {
        match &self.object {
            Some(object) if !self.pin.exists() => syscall::pin(object.as_fd(), &self.pin).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Takes it away; what is in nobody's hands any more goes with it.
    pub(crate) fn remove(self) {
        // What is not there any more is as good as removed.
        _ = fs::remove_file(&self.pin);
    }
}
