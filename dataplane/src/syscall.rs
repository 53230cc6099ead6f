//! System calls that no crate of ours wraps.
#![expect(unsafe_code, reason = "raw system calls")]

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

/// Whether `bpf(2)` may be called for what is needed here: makes the smallest of maps and lets it go again.
pub(crate) fn bpf_allowed() -> io::Result<()> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    // Type, size of keys, size of values, entries.
    let attr: [u32; 16] = [BPF_MAP_TYPE_ARRAY, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the kernel reads at most the size that is given from `attr`, which lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attr.as_ptr(), size_of_val(&attr)) };
    let Some(fd) = RawFd::try_from(result).ok().filter(|fd| *fd >= 0) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has just made the descriptor for us, and no one else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Waits until every program that was running when it was called has ended: an RCU grace period.
pub(crate) fn wait_for_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
