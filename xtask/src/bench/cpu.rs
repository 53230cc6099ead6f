//! CPU time and memory of a process and its children, from `/proc`. Read by all benches.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// Linux counts in hundredths of a second towards user space, on every machine it runs on.
const TICK: Duration = Duration::from_millis(10);

/// User and system time that the process and its living children have used so far.
pub(crate) fn used(pid: u32) -> Result<Duration> {
    let mut ticks = 0;
    let mut pids = vec![pid];
    while let Some(pid) = pids.pop() {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        ticks += ticks_of(&stat).with_context(|| format!("{path} is not as expected: {stat}"))?;
        pids.extend(children(pid));
    }
    Ok(TICK * ticks)
}

/// The same in nanoseconds, of the threads that live: for work too small to be counted in ticks.
pub(crate) fn used_precisely(pid: u32) -> Result<Duration> {
    let folder = format!("/proc/{pid}/task");
    let mut nanos = 0;
    for thread in fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
        let path = thread?.path().join("schedstat");
        // A thread that has just ended takes its time with it.
        let text = fs::read_to_string(&path).unwrap_or_default();
        nanos += text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory of the process, in bytes.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib: u64| kib * 1024).with_context(|| format!("{path} names no VmRSS"))
}

/// Fields 14 and 15. The name, field 2, may hold spaces and parentheses: count from its end.
fn ticks_of(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_parenthesis_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 100 1 1";
        assert_eq!(ticks_of(stat), Some(300));
        assert_eq!(ticks_of("7 (short) S 1"), None);
    }

    #[test]
    fn our_own_process_has_used_memory() {
        assert!(resident(std::process::id()).unwrap() > 100_000);
        used(std::process::id()).unwrap();
    }
}
