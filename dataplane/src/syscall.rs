//! System calls that no crate of ours wraps.
#![expect(unsafe_code, reason = "raw system calls")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Whether `bpf(2)` may be called for what is needed here: makes the smallest of maps and lets it go again, one of a type
/// that wants the capability also where the unprivileged may use `bpf(2)`.
pub(crate) fn bpf_allowed() -> io::Result<()> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
    const BPF_F_NO_PREALLOC: u32 = 1;
    // Type, size of keys, size of values, entries, flags.
    let attr: [u32; 16] = [BPF_MAP_TYPE_LPM_TRIE, 8, 4, 1, BPF_F_NO_PREALLOC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the kernel reads at most the size that is given from `attr`, which lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attr.as_ptr(), size_of_val(&attr)) };
    let Some(fd) = RawFd::try_from(result).ok().filter(|fd| *fd >= 0) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has just made the descriptor for us, and no one else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// A hook of cgroups: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Hook {
    Received = 0,
    Sent = 1,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    PeerName4 = 29,
    PeerName6 = 30,
}

/// The programs on a hook of a cgroup itself, not those of its ancestors.
pub(crate) struct Attached {
    pub(crate) ids: Vec<u32>,
    /// Whether they run no more below where others are attached: `BPF_F_ALLOW_OVERRIDE`.
    pub(crate) gives_way: bool,
}

pub(crate) fn attached(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Attached> {
    const BPF_F_ALLOW_OVERRIDE: u32 = 1;
    let (ids, flags) = programs_of(cgroup, hook, 0)?;
    Ok(Attached { ids, gives_way: flags & BPF_F_ALLOW_OVERRIDE != 0 })
}

/// The ids of the programs that run when a process in a cgroup connects, those of its ancestors included.
pub(crate) fn connect_programs_of(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const BPF_F_QUERY_EFFECTIVE: u32 = 1;
    let (mut ids, _) = programs_of(cgroup, Hook::Connect4, BPF_F_QUERY_EFFECTIVE)?;
    ids.extend(programs_of(cgroup, Hook::Connect6, BPF_F_QUERY_EFFECTIVE)?.0);
    Ok(ids)
}

/// Their ids, and the flags that they were attached with.
fn programs_of(cgroup: BorrowedFd<'_>, hook: Hook, which: u32) -> io::Result<(Vec<u32>, u32)> {
    const BPF_PROG_QUERY: libc::c_int = 16;
    /// The kernel allows 64 on one cgroup. With those of ancestors there may be more, and nobody has as many as this.
    const MOST: u32 = 256;

    /// The part of `union bpf_attr` that this command uses.
    #[repr(C)]
    struct Query {
        cgroup: RawFd,
        hook: u32,
        which: u32,
        flags: u32,
        ids: u64,
        count: u32,
        zero: u32,
    }

    let mut ids = [0_u32; MOST as usize];
    let mut query = Query {
        cgroup: cgroup.as_raw_fd(),
        hook: hook as u32,
        which,
        flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MOST,
        zero: 0,
    };
    // SAFETY: the kernel writes into `query`, and at most `count` ids into `ids`; both live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((ids.into_iter().take(query.count as usize).collect(), query.flags))
}

/// The part of `union bpf_attr` by which objects are pinned, and found at their pins.
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// What is pinned there, a map or a link (`BPF_OBJ_GET`).
pub(crate) fn object_at(pin: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_int = 7;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attr = Object { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads the path, which lives through the call, and no more of `attr` than its size.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<Object>()) };
    let Some(fd) = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has just made the descriptor for us, and no one else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins it where nothing is (`BPF_OBJ_PIN`).
pub(crate) fn pin(object: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    const BPF_OBJ_PIN: libc::c_int = 6;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attr = Object { path: path.as_ptr() as u64, fd: object.as_raw_fd().cast_unsigned(), flags: 0 };
    // SAFETY: the kernel reads the path, which lives through the call, and no more of `attr` than its size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw const attr, size_of::<Object>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts a program in the place of the one that a link has, without a gap (`BPF_LINK_UPDATE`).
pub(crate) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_UPDATE: libc::c_int = 29;

    /// The part of `union bpf_attr` that this command uses.
    #[repr(C)]
    struct Update {
        link: RawFd,
        program: RawFd,
        zero: [u32; 2],
    }

    let update = Update { link: link.as_raw_fd(), program: program.as_raw_fd(), zero: [0; 2] };
    // SAFETY: the kernel reads no more of `update` than its size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const update, size_of::<Update>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits until every program that was running when it was called has ended: an RCU grace period.
pub(crate) fn wait_for_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives memory that glibc has kept after it was freed back to the system.
pub(crate) fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc's own lock makes it safe from any thread, and it only gives back what nobody uses.
    unsafe {
        libc::malloc_trim(0);
    }
}
