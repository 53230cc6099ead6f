//! A cgroup of its own for each interceptor, so that the eBPF programs of tests that run at once do not meet.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A cgroup v2 folder; removed when dropped.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

// === impl Cgroup ===

impl Cgroup {
    /// A new one, below the root of the hierarchy. Needs root.
    pub fn new() -> Self {
        let name = format!("rouse-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = mount().join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The beginning of a shell command line that goes on within it.
    pub fn enter(&self) -> String {
        format!("echo $$ > '{}/cgroup.procs' && ", self.0.display())
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Where cgroup v2 is mounted, which is not the same on hybrid hierarchies.
fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = fields.find(|fields| fields[2] == "cgroup2");
    mount.expect("no cgroup v2 is mounted, which data plane level self needs")[1].into()
}
