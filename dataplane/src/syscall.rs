//! System calls that no crate of ours wraps.
#![expect(unsafe_code, reason = "raw system calls")]

use std::io;

/// Whether `bpf(2)` may be called at all: asks for a command that does not exist, which the kernel answers with `EINVAL`
/// and everything that stands before it (seccomp, a kernel without it) with something else.
pub(crate) fn bpf_allowed() -> io::Result<()> {
    const NO_SUCH_COMMAND: libc::c_int = 0x7fff;
    let attr = [0_u64; 16];
    // SAFETY: the kernel reads at most the size that is given from `attr`, which lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, NO_SUCH_COMMAND, attr.as_ptr(), size_of_val(&attr)) };
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) }
}

/// Waits until every program that was running when it was called has ended: an RCU grace period.
pub(crate) fn wait_for_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
