//! Reads of the kernel's context structures, field by field: the verifier refuses wider or merged loads.
#![expect(unsafe_code, reason = "contexts are reached through pointers that the verifier has checked")]

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{bindings::bpf_sock, programs::SockOpsContext};
use interceptor_common::AddrKey;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Whom the socket connects to; `None` for other families.
#[inline(always)]
pub(crate) fn remote(ctx: &SockOpsContext) -> Option<AddrKey> {
    // SAFETY: `ops` is the program's context; each read is one aligned word of it, volatile so that none are merged.
    unsafe {
        let ops = ctx.ops;
        // The kernel gives the port in network byte order in the upper half of a little-endian word.
        let port_be = (read_volatile(addr_of!((*ops).remote_port)) >> 16) as u16;
        match read_volatile(addr_of!((*ops).family)) {
            AF_INET => Some(AddrKey::v4(read_volatile(addr_of!((*ops).remote_ip4)), port_be)),
            AF_INET6 => {
                let words = addr_of!((*ops).remote_ip6).cast::<u32>();
                Some(AddrKey::v6(
                    [
                        read_volatile(words),
                        read_volatile(words.add(1)),
                        read_volatile(words.add(2)),
                        read_volatile(words.add(3)),
                    ],
                    port_be,
                ))
            }
            _ => None,
        }
    }
}

/// The socket; null when it is not a full one.
#[inline(always)]
pub(crate) fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: one aligned pointer of the context, which the kernel fills.
    unsafe { read_volatile(addr_of!((*ctx.ops).__bindgen_anon_2.sk)) }
}

/// The connection's smoothed round-trip time in microseconds.
#[inline(always)]
pub(crate) fn srtt_us(ctx: &SockOpsContext) -> u64 {
    // SAFETY: one aligned word of the context. The kernel keeps it times eight.
    u64::from(unsafe { read_volatile(addr_of!((*ctx.ops).srtt_us)) } >> 3)
}
