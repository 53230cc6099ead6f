//! A cgroup of its own for each interceptor, so that the eBPF programs of tests that run at once do not meet, and trees of
//! cgroups as kubelets make them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The beginning of a shell command line that goes on with the machine's cgroups: within a network namespace `/sys` is another,
/// without them.
pub const MOUNT_CGROUPS: &str = "mount -t cgroup2 none /sys/fs/cgroup; ";

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A cgroup v2 folder; removed when dropped.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

/// Cgroups of pods, where a kubelet with the driver `systemd` would make them. What runs in them ends when it is dropped.
#[derive(Debug)]
pub struct PodTree(Cgroup);

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

    /// The same within a network namespace.
    pub fn enter_from_namespace(&self) -> String {
        format!("{MOUNT_CGROUPS}echo $$ > '{}/cgroup.procs' && ", self.mounted())
    }

    /// Where it is for a process that has begun with [`MOUNT_CGROUPS`].
    fn mounted(&self) -> String {
        format!("/sys/fs/cgroup/{}", self.0.file_name().unwrap().display())
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

// === impl PodTree ===

impl PodTree {
    /// One without a pod. Needs root.
    pub fn new() -> Self {
        Self(Cgroup::new())
    }

    /// Its root, for a process that has begun with [`MOUNT_CGROUPS`].
    pub fn within(&self) -> String {
        self.0.mounted()
    }

    /// Its root, for this process.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes the cgroups of a pod, unless they are there.
    pub fn pod(&self, uid: &str) {
        fs::create_dir_all(self.0.path().join(container(uid))).unwrap();
    }

    /// The beginning of a shell command line that goes on within a pod's container, which is made if it is not there.
    pub fn enter(&self, uid: &str) -> String {
        self.pod(uid);
        format!("{MOUNT_CGROUPS}echo $$ > {}/{}/cgroup.procs; ", self.within(), container(uid))
    }
}

impl Default for PodTree {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PodTree {
    fn drop(&mut self) {
        let path = self.0.path();
        // Those that were killed may still be ending.
        for _ in 0..1000 {
            if emptied(path).is_ok() {
                return;
            }
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

fn container(uid: &str) -> String {
    format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice/container", uid.replace('-', "_"))
}

/// Removes what is below a cgroup, and kills what runs there.
fn emptied(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            emptied(&entry.path())?;
            for pid in fs::read_to_string(entry.path().join("cgroup.procs"))?.lines() {
                // It may have ended by itself.
                _ = kill(Pid::from_raw(pid.parse().map_err(io::Error::other)?), Signal::SIGKILL);
            }
            fs::remove_dir(entry.path())?;
        }
    }
    Ok(())
}

/// Where cgroup v2 is mounted, which is not the same on hybrid hierarchies.
fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = fields.find(|fields| fields[2] == "cgroup2");
    mount.expect("no cgroup v2 is mounted, which data plane level self needs")[1].into()
}
