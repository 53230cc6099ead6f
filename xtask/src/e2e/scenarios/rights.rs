//! What the interceptors' processes may do on their nodes, as the kernel says it.

use anyhow::{Context as _, Result, ensure};

use super::tenant::PATIENCE;
use crate::{
    cluster::{Cluster, Machine},
    e2e::release,
    process,
};

/// `CAP_NET_ADMIN` and `CAP_BPF`.
const TWO: u64 = 1 << 12 | 1 << 39;
/// What the kernel says of all interceptors of a node; one that ends meanwhile is none of them.
const STATUSES: &str = "for pid in $(pgrep -x interceptor); do cat /proc/$pid/status 2>/dev/null; done; true";

/// No capability at all by default; at level `self` exactly two, and none to be gained.
pub(super) fn of_interceptors(cluster: &Cluster) -> Result<()> {
    hold(cluster, 0)?;
    release::upgrade(cluster, &["interceptor.dataplane.level=self"])?;
    let held = hold(cluster, TWO);
    // Also after a failure: what comes next expects the defaults.
    release::install(cluster)?;
    held?;
    hold(cluster, 0)
}

/// Waits until all interceptors have these capabilities and no other.
fn hold(cluster: &Cluster, capabilities: u64) -> Result<()> {
    cluster.wait_for(&format!("interceptors with the capabilities {capabilities:#x}"), PATIENCE, || {
        let mut statuses = String::new();
        for node in 1..=cluster.nodes() {
            let mut all = cluster.inside(Machine::Node(node))?;
            statuses += &process::output(all.args(["sh", "-c", STATUSES]))?;
        }
        ensure!(statuses.contains("Name:"), "no interceptor runs");
        for status in statuses.split("Name:").skip(1) {
            for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                let found = set_of(status, set).with_context(|| format!("no {set} in {status}"))?;
                let expected = if set == "CapAmb" { 0 } else { capabilities };
                ensure!(found == expected, "{set} of an interceptor is {found:#x}, expected {expected:#x}");
            }
        }
        Ok(Some(()))
    })
}

fn set_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_sets_are_read() {
        let status = "Name:\tinterceptor\nCapPrm:\t0000008000001000\nCapEff:\t0000000000000000\n";
        assert_eq!(set_of(status, "CapPrm"), Some(TWO));
        assert_eq!(set_of(status, "CapEff"), Some(0));
        assert_eq!(set_of(status, "CapBnd"), None);
    }
}
