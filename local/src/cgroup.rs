//! A cgroup of its own for the interceptor, so that the kernel counts its connections and nobody else's.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// What our cgroups are called, before the process id of the run.
const PREFIX: &str = "rouse-local-";

/// A cgroup v2 folder that is ours; dropping it removes it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

/// Why there is none.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The hierarchy is not there.
    #[error("no cgroup v2 hierarchy is mounted")]
    NotMounted,
    /// The kernel said no, most likely for want of privilege.
    #[error("cannot make a cgroup at {path}")]
    Make {
        /// Where.
        path: PathBuf,
        /// The kernel's words.
        #[source]
        source: io::Error,
    },
    /// procfs cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: &'static str,
        /// The kernel's words.
        #[source]
        source: io::Error,
    },
}

// === impl Cgroup ===

impl Cgroup {
    /// Makes a child of our own cgroup, and removes those of runs that were killed before they could.
    pub fn create(pid: u32) -> Result<Self, CgroupError> {
        let read = |path| fs::read_to_string(path).map_err(|source| CgroupError::Read { path, source });
        let (mounts, own) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
        let parent = folder(&mounts, &own).ok_or(CgroupError::NotMounted)?;
        sweep(&parent);
        let path = parent.join(format!("{PREFIX}{pid}"));
        fs::create_dir(&path).map_err(|source| CgroupError::Make { path: path.clone(), source })?;
        Ok(Self { path })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the cgroup");
        }
    }
}

/// Removes what dead runs left. The kernel keeps a cgroup that anything is still in, whatever we believe.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Somebody else may sweep at the same time.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Our own folder below the first cgroup v2 mount that shows it.
fn folder(mounts: &str, own: &str) -> Option<PathBuf> {
    let own = Path::new(own.lines().find_map(|line| line.strip_prefix("0::"))?);
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = own.strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_folder_is_found_on_unified_and_hybrid_hierarchies() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n42 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        for (mounts, own, expected) in [
            (hybrid, "8:pids:/\n0::/\n", "/sys/fs/cgroup/unified"),
            (unified, "0::/user.slice/a\n", "/sys/fs/cgroup/user.slice/a"),
        ] {
            assert_eq!(folder(mounts, own).unwrap(), Path::new(expected));
        }
        assert_eq!(folder("31 23 0:28 / /tmp rw - tmpfs tmpfs rw\n", "0::/\n"), None);
        assert_eq!(folder(unified, "8:pids:/\n"), None);
    }

    #[test]
    fn what_dead_runs_left_is_swept_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let own = format!("{PREFIX}{}", std::process::id());
        // Process ids stay below 2^22.
        for name in [own.as_str(), "rouse-local-4194999", "rouse-local-x", "other-4194999"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        sweep(dir.path());
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        let mut expected = [own.as_str(), "rouse-local-x", "other-4194999"];
        expected.sort_unstable();
        assert_eq!(left, expected);
    }
}
