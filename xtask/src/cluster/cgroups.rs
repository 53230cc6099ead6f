//! A node's cgroups: one folder of the node's name in every hierarchy there is, below which kubelet puts its pods.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::cluster::place::Place;

const MOUNT: &str = "/sys/fs/cgroup";
/// What pods may ask for.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// The roots of all hierarchies: on a machine with cgroup v2 alone there is one.
fn hierarchies() -> Vec<PathBuf> {
    let mount = Path::new(MOUNT);
    if is_v2_alone(mount) {
        return vec![mount.to_owned()];
    }
    let Ok(entries) = fs::read_dir(mount) else { return Vec::new() };
    // Links are second names of hierarchies that hold two controllers.
    let folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(folder).map(|entry| entry.path()).collect()
}

fn is_v2_alone(mount: &Path) -> bool {
    mount.join("cgroup.controllers").exists()
}

/// Makes a node's.
pub(crate) fn make(name: &str) -> Result<()> {
    for root in hierarchies() {
        if is_v2_alone(&root) {
            offer(&root);
        }
        let folder = root.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make cgroup {}", folder.display()))?;
        if is_v2_alone(&root) {
            offer(&folder);
        }
    }
    Ok(())
}

/// Lets the children of a cgroup have controllers. One that is missing concerns only the pods that ask for it.
fn offer(cgroup: &Path) {
    for controller in CONTROLLERS {
        let _ = fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// The cluster's cgroups that exist.
pub(crate) fn own(place: &Place) -> Vec<PathBuf> {
    hierarchies().iter().flat_map(|root| place.own_in(root)).collect()
}

/// The processes in a cgroup and below it.
pub(crate) fn pids(cgroup: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    for child in children(cgroup) {
        pids.extend(self::pids(&child));
    }
    pids
}

/// Removes a cgroup and those below it; false while one is still in use.
pub(crate) fn remove(cgroup: &Path) -> bool {
    let emptied = children(cgroup).iter().all(|child| remove(child));
    emptied && (fs::remove_dir(cgroup).is_ok() || !cgroup.exists())
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cgroup) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
