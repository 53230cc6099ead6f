//! Replicas counted from the outside: processes of this run that the kernel lists, whatever our own books say.

use std::{collections::BTreeMap, fs};

/// The variables by which a run's pods are told from another's, and a Deployment's from another's.
pub const RUN_VARIABLE: &str = "ROUSE_LOCAL_RUN";
/// See [`RUN_VARIABLE`].
pub const WORKLOAD_VARIABLE: &str = "ROUSE_LOCAL_WORKLOAD";

/// Running pods of a run's Deployment (`namespace/name`): name to process id. Other users' processes are not seen.
pub fn running(run: &str, workload: &str) -> BTreeMap<String, u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pod = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let environ = fs::read(entry.path().join("environ")).ok()?;
        Some((pod_of(&environ, run, workload)?, pid))
    };
    processes.flatten().filter_map(pod).collect()
}

/// The pod whose process has this environment, if it is one of those.
fn pod_of(environ: &[u8], run: &str, workload: &str) -> Option<String> {
    let value = |name: &str| {
        let mut pairs = environ.split(|byte| *byte == 0);
        pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    if value(RUN_VARIABLE)? != run.as_bytes() || value(WORKLOAD_VARIABLE)? != workload.as_bytes() {
        return None;
    }
    String::from_utf8(value("POD_NAME")?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_this_run_is_told_by_its_environment() {
        let environ = b"PATH=/bin\0ROUSE_LOCAL_RUN=r1\0ROUSE_LOCAL_WORKLOAD=a/b\0POD_NAME=hello-1\0";
        assert_eq!(pod_of(environ, "r1", "a/b").as_deref(), Some("hello-1"));
        assert_eq!(pod_of(environ, "r2", "a/b"), None);
        assert_eq!(pod_of(environ, "r1", "a/c"), None);
        assert_eq!(pod_of(b"POD_NAME=x\0", "r1", "a/b"), None);
        assert_eq!(running("no such run", "a/b"), BTreeMap::new());
    }
}
