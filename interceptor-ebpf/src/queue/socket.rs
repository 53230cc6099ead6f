//! Reads sockets as the kernel has them: found by address in the pod's network namespace, read where the kernel's type
//! information says that the fields are.
#![expect(unsafe_code, reason = "the kernel's memory is read through its helpers")]

use core::{ffi::c_void, mem::MaybeUninit, ptr::read_volatile};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_probe_read_kernel, bpf_sk_lookup_tcp, bpf_sk_release, bpf_skc_to_tcp_sock},
    macros::map,
    maps::Array,
    programs::TcContext,
};
use interceptor_common::queue::{Answer, Ask, Fields, MEMBERS};

/// The third word of an IPv4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();
/// Bytes of what the kernel looks sockets up by.
const V4: u32 = 12;
const V6: u32 = 36;

/// Replaced at load.
// SAFETY: user space finds it by its name, which nothing else has.
#[unsafe(no_mangle)]
static FIELDS: Fields = Fields { backlog: 0, group: 0, members: 0, member: 0 };

/// Whose queue was read last, for user space: one socket may be found by several addresses. It reads this between two runs.
#[map]
static WHOSE: Array<u64> = Array::with_max_entries(1, 0);

/// Connections that the socket, or its group, has not accepted yet.
#[inline(always)]
pub(crate) fn depth(ctx: &TcContext) -> u32 {
    let Some(socket) = lookup(ctx) else { return Answer::NOBODY };
    // SAFETY: `socket` is not null. The full socket is valid until it is released; without `bpf_skc_to_tcp_sock` the verifier
    // shows a selection of its fields alone.
    unsafe {
        let full: *const c_void = bpf_skc_to_tcp_sock(socket.cast()).cast();
        let depth = if full.is_null() { None } else { of_group(full as u64) };
        bpf_sk_release(socket.cast());
        depth.unwrap_or(Answer::UNREADABLE)
    }
}

/// The socket that listens at the address that is asked for.
#[inline(always)]
fn lookup(ctx: &TcContext) -> Option<*mut bpf_sock> {
    let word = |at| ctx.load::<u32>(at).ok();
    let netns = ctx.load::<i32>(Ask::NETNS).ok()?;
    let [a, b, c, d] = [word(Ask::ADDR)?, word(Ask::ADDR + 4)?, word(Ask::ADDR + 8)?, word(Ask::ADDR + 12)?];
    // A client of address and port zero is none: only who listens is found.
    let ports = u32::from(ctx.load::<u16>(Ask::PORT).ok()?) << 16;
    let netns = i64::from(netns) as u64;
    let socket = if a == 0 && b == 0 && c == MAPPED {
        find(ctx, &mut [0, d, ports, 0, 0, 0, 0, 0, 0], V4, netns)
    } else {
        find(ctx, &mut [0, 0, 0, 0, a, b, c, d, ports], V6, netns)
    };
    (!socket.is_null()).then_some(socket)
}

#[inline(always)]
fn find(ctx: &TcContext, tuple: &mut [u32; 9], size: u32, netns: u64) -> *mut bpf_sock {
    let tuple: *mut bpf_sock_tuple = tuple.as_mut_ptr().cast();
    // SAFETY: `tuple` is as long as the longer of both families; the kernel returns a socket of ours to release, or null.
    unsafe { bpf_sk_lookup_tcp(ctx.skb.skb.cast(), tuple, size, netns, 0) }
}

/// The queue of a socket, or, where several listen at its address, of all of them: connections are spread among them.
#[inline(always)]
fn of_group(socket: u64) -> Option<u32> {
    // SAFETY: a static that is never written once the program is loaded.
    let Fields { backlog, group, members, member } = unsafe { read_volatile(&raw const FIELDS) };
    let group: u64 = read(socket + u64::from(group))?;
    WHOSE.set(0, if group == 0 { socket } else { group }, 0).ok()?;
    if group == 0 {
        return read(socket + u64::from(backlog));
    }
    let count = u32::from(read::<u16>(group + u64::from(members))?);
    let mut depth = 0_u32;
    for at in 0..MEMBERS {
        if at >= count {
            break;
        }
        let one: u64 = read(group + u64::from(member) + u64::from(at) * 8)?;
        depth = depth.wrapping_add(read(one + u64::from(backlog))?);
    }
    Some(depth)
}

/// What is at an address of the kernel's; `None` if nothing is.
#[inline(always)]
fn read<T: Copy>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the helper writes as many bytes as the value has, and fails where there is no memory; the types read are integers.
    unsafe {
        let failed = bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const c_void);
        if failed != 0 {
            return None;
        }
        Some(value.assume_init())
    }
}
