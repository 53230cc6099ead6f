//! Reads of the kernel's context structures, word by word.
#![expect(unsafe_code, reason = "contexts are reached through pointers that the verifier has checked")]

use core::{
    mem::offset_of,
    ptr::{addr_of, read_volatile},
};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_ops},
    programs::SockOpsContext,
};
use interceptor_common::AddrKey;

use crate::word;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IP6: usize = offset_of!(bpf_sock_ops, remote_ip6);
const LOCAL_IP6: usize = offset_of!(bpf_sock_ops, local_ip6);
/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;
/// Where the header's own length is, in words, in the upper half of a byte.
const TCP_OFFSET: usize = 12;

/// Whom the socket connects to; `None` for other families.
#[inline(always)]
pub fn remote(ctx: &SockOpsContext) -> Option<AddrKey> {
    // The kernel gives the port in network byte order in the upper half of a little-endian word.
    let port_be = (word::<{ offset_of!(bpf_sock_ops, remote_port) }>(ctx) >> 16) as u16;
    match word::<{ offset_of!(bpf_sock_ops, family) }>(ctx) {
        AF_INET => Some(AddrKey::v4(word::<{ offset_of!(bpf_sock_ops, remote_ip4) }>(ctx), port_be)),
        AF_INET6 => {
            let addr_be =
                [word::<IP6>(ctx), word::<{ IP6 + 4 }>(ctx), word::<{ IP6 + 8 }>(ctx), word::<{ IP6 + 12 }>(ctx)];
            Some(AddrKey::v6(addr_be, port_be))
        }
        _ => None,
    }
}

/// Whom the socket is reached at; `None` for other families.
#[inline(always)]
pub fn local(ctx: &SockOpsContext) -> Option<AddrKey> {
    let port_be = (word::<{ offset_of!(bpf_sock_ops, local_port) }>(ctx) as u16).to_be();
    match word::<{ offset_of!(bpf_sock_ops, family) }>(ctx) {
        AF_INET => Some(AddrKey::v4(word::<{ offset_of!(bpf_sock_ops, local_ip4) }>(ctx), port_be)),
        AF_INET6 => {
            let addr_be = [
                word::<LOCAL_IP6>(ctx),
                word::<{ LOCAL_IP6 + 4 }>(ctx),
                word::<{ LOCAL_IP6 + 8 }>(ctx),
                word::<{ LOCAL_IP6 + 12 }>(ctx),
            ];
            Some(AddrKey::v6(addr_be, port_be))
        }
        _ => None,
    }
}

/// Sequence numbers of the next byte that is awaited and of the next that is sent.
#[inline(always)]
pub fn sequence(ctx: &SockOpsContext) -> (u32, u32) {
    (word::<{ offset_of!(bpf_sock_ops, rcv_nxt) }>(ctx), word::<{ offset_of!(bpf_sock_ops, snd_nxt) }>(ctx))
}

/// How many bytes of payload the segment has that made the kernel call: only the header of it can be read.
#[inline(always)]
pub fn payload(ctx: &SockOpsContext) -> u32 {
    // SAFETY: two aligned pointers of the context, which the kernel fills.
    let (data, end) = unsafe {
        (
            read_volatile(addr_of!((*ctx.ops).__bindgen_anon_3.skb_data)) as usize,
            read_volatile(addr_of!((*ctx.ops).__bindgen_anon_4.skb_data_end)) as usize,
        )
    };
    if data + TCP_HEADER > end {
        return 0;
    }
    // SAFETY: inside of the header, whose end was compared with.
    let offset = unsafe { *((data + TCP_OFFSET) as *const u8) };
    let header = u32::from(offset >> 4) * 4;
    word::<{ offset_of!(bpf_sock_ops, skb_len) }>(ctx).saturating_sub(header)
}

/// The socket; null when it is not a full one.
#[inline(always)]
pub fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: one aligned pointer of the context, which the kernel fills.
    unsafe { read_volatile(addr_of!((*ctx.ops).__bindgen_anon_2.sk)) }
}

/// The connection's smoothed round-trip time in microseconds.
#[inline(always)]
pub fn srtt_us(ctx: &SockOpsContext) -> u64 {
    // The kernel keeps it times eight.
    u64::from(word::<{ offset_of!(bpf_sock_ops, srtt_us) }>(ctx) >> 3)
}

#[inline(always)]
fn word<const OFFSET: usize>(ctx: &SockOpsContext) -> u32 {
    // SAFETY: one aligned word of the program's context, whose layout gives the offset.
    unsafe { word::load::<OFFSET, _>(ctx.ops) }
}
