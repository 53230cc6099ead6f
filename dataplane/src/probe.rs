//! What this process may do, asked step by step before anything is loaded, so that the reason for doing without the kernel
//! is named and not guessed from an error number.

use std::{fmt, fs, io, path::Path};

use aya::util::KernelVersion;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::syscall;

const STATUS: &str = "/proc/thread-self/status";
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What all maps of a node's agent take, with some to spare: 50 MiB were measured.
const LOCKED_MEMORY: u64 = 64 << 20;

/// Why the kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("no eBPF programs were built in: run `cargo xtask build-ebpf` and build again")]
    NoObject,
    #[error("missing {0}")]
    Capabilities(Missing),
    #[error("bpf(2) is refused in spite of the capabilities (seccomp or a user namespace)")]
    Refused(#[source] io::Error),
    #[error("before Linux 5.11 maps count as locked memory: missing CAP_SYS_RESOURCE, or a limit (ulimit -l) above {} KiB", .0 / 1024)]
    LockedMemory(u64),
    #[error("the kernel has no type information ({BTF})")]
    NoBtf(#[source] io::Error),
}

/// Capabilities that are missing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    bpf: bool,
    net_admin: bool,
}

/// What was found beyond the necessary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probed {
    /// Whether the verifier lets programs compute with pointers.
    pub(crate) perfmon: bool,
}

/// The effective capabilities of this thread.
#[derive(Clone, Copy, Debug)]
struct Capabilities(u64);

/// Asks for everything that needs no loading.
pub(crate) fn probe() -> Result<Probed, ProbeError> {
    // Without a readable status the kernel's answer to the calls themselves must do.
    let capabilities = fs::read_to_string(STATUS).ok().and_then(|status| Capabilities::parse(&status));
    if let Some(missing) = capabilities.and_then(Capabilities::missing) {
        return Err(ProbeError::Capabilities(missing));
    }
    syscall::bpf_allowed().map_err(ProbeError::Refused)?;
    raise_locked_memory()?;
    fs::File::open(Path::new(BTF)).map_err(ProbeError::NoBtf)?;
    Ok(Probed { perfmon: capabilities.is_some_and(Capabilities::perfmon) })
}

/// What may be the reason if the kernel is older than the first that has something, to be put before what it says itself: others bring
/// it to older ones, so that it is worth a try.
pub(crate) fn too_old((major, minor): (u8, u8), what: &str) -> String {
    let first = KernelVersion::new(major, minor, 0);
    let too_old = KernelVersion::current().is_ok_and(|version| version < first);
    if too_old { format!("{what} is missing, which Linux has from {major}.{minor} on: ") } else { String::new() }
}

/// Before 5.11 maps and programs count as locked memory.
fn raise_locked_memory() -> Result<(), ProbeError> {
    let counts = KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(5, 11, 0));
    if !counts || setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
        return Ok(());
    }
    // What cannot be read must do.
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(RLIM_INFINITY, |(soft, _)| soft);
    if limit < LOCKED_MEMORY { Err(ProbeError::LockedMemory(limit)) } else { Ok(()) }
}

// === impl Probed ===

impl Probed {
    /// What may be the reason if a program that reads packets is refused, to be appended to what is said of it.
    pub(crate) const fn lacks(self) -> &'static str {
        if self.perfmon { "" } else { " without CAP_PERFMON, which kernels before 6.12 ask for" }
    }
}

// === impl Capabilities ===

impl Capabilities {
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;

    fn parse(status: &str) -> Option<Self> {
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(effective.trim(), 16).ok().map(Self)
    }

    /// Whether it is there, or the old one that stands for all of them.
    fn has(self, capability: u32) -> bool {
        let one = |capability: u32| self.0 >> capability & 1 == 1;
        one(capability) || one(Self::SYS_ADMIN)
    }

    fn perfmon(self) -> bool {
        self.has(Self::PERFMON)
    }

    fn missing(self) -> Option<Missing> {
        let (bpf, net_admin) = (!self.has(Self::BPF), !self.has(Self::NET_ADMIN));
        (bpf || net_admin).then_some(Missing { bpf, net_admin })
    }
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
        let status = format!("Name:\tx\nCapInh:\t0\nCapEff:\t{effective}\n");
        Capabilities::parse(&status).and_then(Capabilities::missing).map(|missing| missing.to_string())
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
        assert!(Capabilities::parse("").is_none());
    }
}
