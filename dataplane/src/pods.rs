//! The cgroups of this machine's pods: where they are, and when they come and go. Kubelets name them by the pods' UIDs,
//! below folders that differ by driver and quality of service; [`scan`] finds them in any of them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

mod changes;
mod name;

pub use self::changes::Changes;
use self::name::{is_kubelets, leads_nowhere, uid};
use crate::cgroup;

/// How many folders above the pods' there may be: a kubelet's own prefix, `kubepods`, and the quality of service, with
/// room for nested machines.
const DEPTH: usize = 8;
/// Most folders that are looked into. A machine has a few hundred that are not pods.
const FOLDERS: usize = 8192;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Each pod's folder, by its UID as the API server writes it.
    pub pods: BTreeMap<Arc<str>, PathBuf>,
    /// The folders in which pods may come.
    pub parents: Vec<PathBuf>,
    /// Whether there was more than is looked at.
    pub truncated: bool,
}

// === impl Found ===

impl Found {
    /// The folders that kubelets make for all of their pods, but for those that are below another.
    pub fn kubelets(&self) -> Vec<PathBuf> {
        let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_kubelets);
        let all: Vec<_> = self.parents.iter().filter(|path| name(path)).collect();
        let below = |path: &Path| all.iter().any(|other| path != other.as_path() && path.starts_with(other));
        let mut topmost: Vec<_> = all.iter().filter(|path| !below(path)).map(|path| (*path).clone()).collect();
        topmost.sort();
        topmost
    }

    /// The folder of the pod that a process is in, by its id in this process's namespace: the kernel tells it so also of
    /// cgroups whose other processes are of other namespaces.
    pub fn pod_of(&self, pid: u32) -> Option<&Path> {
        let pid = pid.to_string();
        self.pods.values().find(|pod| holds(pod, &pid, 0)).map(PathBuf::as_path)
    }
}

/// Whether a process is in a cgroup or below it.
fn holds(folder: &Path, pid: &str, depth: usize) -> bool {
    let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let below = || fs::read_dir(folder).into_iter().flatten().flatten();
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    procs.lines().any(|line| line == pid)
        || depth < DEPTH && below().any(|entry| is_folder(&entry) && holds(&entry.path(), pid, depth + 1))
}

/// Where pods' cgroups are looked for: what was asked for, or where cgroup v2 is mounted.
pub fn root(asked: Option<&Path>) -> io::Result<PathBuf> {
    if let Some(asked) = asked {
        return fs::canonicalize(asked);
    }
    let mounts = cgroup::mount_points()?;
    mounts
        .into_iter()
        .next()
        .ok_or_else(|| io::Error::other("no cgroup v2 hierarchy is mounted (/proc/self/mountinfo)"))
}

/// Looks for pods below `root`. A folder that goes while it is looked at is left out.
pub fn scan(root: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let mut pending = vec![(root.to_owned(), 0)];
    fs::metadata(root)?;
    while let Some((folder, depth)) = pending.pop() {
        if found.parents.len() == FOLDERS {
            found.truncated = true;
            break;
        }
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(uid) = uid(name) {
                found.pods.insert(uid.into(), entry.path());
            } else if depth < DEPTH && !leads_nowhere(name) {
                pending.push((entry.path(), depth + 1));
            }
        }
        found.parents.push(folder);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(folders: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in folders {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        root
    }

    fn found(folders: &[&str]) -> Vec<(String, String)> {
        let root = tree(folders);
        let found = scan(root.path()).unwrap();
        let within = |path: &Path| path.strip_prefix(root.path()).unwrap().display().to_string();
        found.pods.iter().map(|(uid, path)| (uid.to_string(), within(path))).collect()
    }

    #[test]
    fn pods_are_found_under_either_driver_and_every_quality_of_service() {
        let folders = [
            "kubepods/pod1a/container",
            "kubepods/burstable/pod1b",
            "kubepods/besteffort/pod1c",
            "kubepods.slice/kubepods-pod2a.slice/cri-containerd-77.scope",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2b_3.slice",
            "system.slice/nginx.service/podded",
        ];
        let uids: Vec<_> = found(&folders).into_iter().map(|(uid, _)| uid).collect();
        assert_eq!(uids, ["1a", "1b", "1c", "2a", "2b-3"]);
    }

    #[test]
    fn a_kubelet_of_a_nested_machine_may_have_a_prefix() {
        let folders = [
            "rouse.node1/kubepods/besteffort/poda-b",
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podc.slice",
        ];
        let expected = [
            ("a-b", "rouse.node1/kubepods/besteffort/poda-b"),
            ("c", "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podc.slice"),
        ];
        assert_eq!(found(&folders), expected.map(|(uid, path)| (uid.to_owned(), path.to_owned())));
    }

    #[test]
    fn a_kubelets_own_folder_is_found_under_either_driver_also_without_a_pod() {
        let kubelets = |folders: &[&str]| {
            let root = tree(folders);
            let found = scan(root.path()).unwrap().kubelets().into_iter();
            let within = |path: PathBuf| path.strip_prefix(root.path()).unwrap().display().to_string();
            found.map(within).collect::<Vec<_>>()
        };
        assert_eq!(kubelets(&["kubepods/besteffort/poda"]), ["kubepods"]);
        assert_eq!(kubelets(&["kubepods.slice/kubepods-burstable.slice", "system.slice"]), ["kubepods.slice"]);
        let nested = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podc.slice";
        assert_eq!(kubelets(&[nested]), ["kubelet.slice/kubelet-kubepods.slice"]);
        let two = ["a.node1/kubepods/poda", "a.node2/kubepods/burstable"];
        assert_eq!(kubelets(&two), ["a.node1/kubepods", "a.node2/kubepods"]);
        assert_eq!(kubelets(&["kubepods/x/kubepods", "system.slice"]), ["kubepods"]);
        assert_eq!(kubelets(&["system.slice"]), [""; 0]);
    }

    #[test]
    fn the_pod_of_a_process_is_found_by_the_process() {
        let root = tree(&["node1/kubepods/poda/x", "node2/kubepods/besteffort/podb/x/y"]);
        let write =
            |folder: &str, procs: &str| fs::write(root.path().join(folder).join("cgroup.procs"), procs).unwrap();
        write("node1/kubepods/poda/x", "0\n0\n71\n");
        write("node2/kubepods/besteffort/podb/x/y", "0\n7\n");
        let found = scan(root.path()).unwrap();
        assert_eq!(found.pod_of(7), Some(&*root.path().join("node2/kubepods/besteffort/podb")));
        assert_eq!(found.pod_of(71), Some(&*root.path().join("node1/kubepods/poda")));
        assert_eq!(found.pod_of(1), None);
    }

    #[test]
    fn a_root_that_is_missing_is_an_error_and_what_is_below_a_pod_is_not_looked_at() {
        assert!(scan(Path::new("/nonexistent")).is_err());
        assert_eq!(found(&["kubepods/poda/podb"]).len(), 1);
    }
}
