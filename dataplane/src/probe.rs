//! What this process may do, asked step by step before anything is loaded, so that the reason for doing without the kernel
//! is named and not guessed from an error number.

use std::{fmt, fs, io, path::Path};

use crate::syscall;

const STATUS: &str = "/proc/thread-self/status";
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Why the kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("no eBPF programs were built in: run `cargo xtask build-ebpf` and build again")]
    NoObject,
    #[error("missing {0}")]
    Capabilities(Missing),
    #[error("bpf(2) is refused in spite of the capabilities (seccomp or a user namespace)")]
    Refused(#[source] io::Error),
    #[error("the kernel has no type information ({BTF})")]
    NoBtf(#[source] io::Error),
}

/// Capabilities that are missing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    bpf: bool,
    net_admin: bool,
}

/// Asks for everything that needs no loading.
pub(crate) fn probe() -> Result<(), ProbeError> {
    // Without a readable status the kernel's answer to the calls themselves must do.
    if let Some(missing) = fs::read_to_string(STATUS).ok().and_then(|status| missing(&status)) {
        return Err(ProbeError::Capabilities(missing));
    }
    syscall::bpf_allowed().map_err(ProbeError::Refused)?;
    fs::File::open(Path::new(BTF)).map_err(ProbeError::NoBtf)?;
    Ok(())
}

fn missing(status: &str) -> Option<Missing> {
    const CAP_NET_ADMIN: u32 = 12;
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_BPF: u32 = 39;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let has = |capability: u32| effective >> capability & 1 == 1;
    let bpf = !has(CAP_BPF) && !has(CAP_SYS_ADMIN);
    let net_admin = !has(CAP_NET_ADMIN) && !has(CAP_SYS_ADMIN);
    (bpf || net_admin).then_some(Missing { bpf, net_admin })
}

// === impl Missing ===

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bpf, net_admin } = self;
        f.write_str(match (bpf, net_admin) {
            (true, true) => "CAP_BPF and CAP_NET_ADMIN",
            (true, false) => "CAP_BPF",
            _ => "CAP_NET_ADMIN",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(effective: &str) -> Option<String> {
        missing(&format!("Name:\tx\nCapInh:\t0\nCapEff:\t{effective}\n")).map(|missing| missing.to_string())
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(of("0000000000000000").unwrap(), "CAP_BPF and CAP_NET_ADMIN");
        assert_eq!(of("0000000000001000").unwrap(), "CAP_BPF");
        assert_eq!(of("0000008000000000").unwrap(), "CAP_NET_ADMIN");
    }

    #[test]
    fn the_old_capability_for_everything_will_do() {
        assert_eq!(of("0000008000001000"), None);
        assert_eq!(of("0000000000200000"), None);
        assert_eq!(of("000001ffffffffff"), None);
    }

    #[test]
    fn a_status_that_cannot_be_read_leaves_it_to_the_kernel() {
        assert_eq!(of("what"), None);
        assert_eq!(missing(""), None);
    }
}
