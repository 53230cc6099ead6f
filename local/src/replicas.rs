//! Replicas counted from the outside: processes of this run that the kernel lists, whatever our own books say.

use std::{collections::BTreeMap, fs};

/// The variable by which a run's pods are told from another's.
pub const RUN_VARIABLE: &str = "ROUSE_LOCAL_RUN";

/// Running pods of a run: name to process id. Processes of other users are not seen.
pub fn running(run: &str) -> BTreeMap<String, u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pod = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let environ = fs::read(entry.path().join("environ")).ok()?;
        Some((pod_of(&environ, run)?, pid))
    };
    processes.flatten().filter_map(pod).collect()
}

/// The pod whose process has this environment, if it is one of the run.
fn pod_of(environ: &[u8], run: &str) -> Option<String> {
    let value = |name: &str| {
        let mut pairs = environ.split(|byte| *byte == 0);
        pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    if value(RUN_VARIABLE)? != run.as_bytes() {
        return None;
    }
    String::from_utf8(value("POD_NAME")?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_this_run_is_told_by_its_environment() {
        let environ = b"PATH=/bin\0ROUSE_LOCAL_RUN=r1\0POD_NAME=hello-1\0";
        assert_eq!(pod_of(environ, "r1").as_deref(), Some("hello-1"));
        assert_eq!(pod_of(environ, "r2"), None);
        assert_eq!(pod_of(b"POD_NAME=x\0", "r1"), None);
        assert_eq!(running("no such run"), BTreeMap::new());
    }
}
