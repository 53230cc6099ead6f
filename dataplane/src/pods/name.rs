//! What the name of a cgroup's folder says. Pure.

/// The UID of the pod whose cgroup has this name: `podUID` as the driver `cgroupfs` writes it, `…-podUID.slice` with
/// underscores for dashes as `systemd` does. Those of static pods are hashes.
pub(super) fn uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit('-').next()?.strip_prefix("pod")?.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let is_uid =
        !uid.is_empty() && uid.len() <= LONGEST && uid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    is_uid.then_some(uid)
}

/// Whether a kubelet makes all of its pods' cgroups below a folder of this name.
pub(super) fn is_kubelets(name: &str) -> bool {
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

/// A UID has 36 characters, a hash 32; nobody's has more than this.
const LONGEST: usize = 64;

/// Whether no pod is below a folder of this name: systemd's units, and the scopes of containers.
pub(super) fn leads_nowhere(name: &str) -> bool {
    [".service", ".scope", ".mount", ".socket", ".swap"].iter().any(|suffix| name.ends_with(suffix))
        || ["user.slice", "init.scope"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_uid_is_read_from_its_folders_name() {
        let table = [
            ("pod4f5c1c9e-9f0d-4d0c-8f0e-1d2e3f4a5b6c", Some("4f5c1c9e-9f0d-4d0c-8f0e-1d2e3f4a5b6c")),
            ("kubepods-pod4f5c1c9e_9f0d_4d0c_8f0e_1d2e3f4a5b6c.slice", Some("4f5c1c9e-9f0d-4d0c-8f0e-1d2e3f4a5b6c")),
            ("kubepods-besteffort-podab_cd.slice", Some("ab-cd")),
            ("kubelet-kubepods-burstable-podab.slice", Some("ab")),
            ("pod3d8d6a6f0a0a4f0f8c5e2b1a9c8d7e6f", Some("3d8d6a6f0a0a4f0f8c5e2b1a9c8d7e6f")),
            ("pod", None),
            ("podman", None),
            ("podman.slice", None),
            ("kubepods", None),
            ("kubepods.slice", None),
            ("kubepods-burstable.slice", None),
            ("pod../etc", None),
            ("system.slice", None),
        ];
        for (name, expected) in table {
            assert_eq!(uid(name).as_deref(), expected, "{name}");
        }
    }
}
