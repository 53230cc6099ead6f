//! The address in the context of a program, read and written word by word.
#![expect(unsafe_code, reason = "contexts are reached through pointers that the verifier has checked")]

use core::mem::offset_of;

use aya_ebpf::{EbpfContext as _, bindings::bpf_sock_addr, programs::SockAddrContext};
use interceptor_common::AddrKey;
use interceptor_ebpf::word;

const IP4: usize = offset_of!(bpf_sock_addr, user_ip4);
const IP6: usize = offset_of!(bpf_sock_addr, user_ip6);
const PORT: usize = offset_of!(bpf_sock_addr, user_port);
const PROTOCOL: usize = offset_of!(bpf_sock_addr, protocol);

/// Of which family the socket is.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The socket's protocol.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> u32 {
    load::<PROTOCOL>(ctx)
}

/// Where it connects, or is connected.
#[inline(always)]
pub(crate) fn destination(ctx: &SockAddrContext, family: Family) -> AddrKey {
    // The kernel gives the port in network byte order in the lower half.
    let port_be = load::<PORT>(ctx) as u16;
    match family {
        Family::V4 => AddrKey::v4(load::<IP4>(ctx), port_be),
        Family::V6 => {
            let addr_be =
                [load::<IP6>(ctx), load::<{ IP6 + 4 }>(ctx), load::<{ IP6 + 8 }>(ctx), load::<{ IP6 + 12 }>(ctx)];
            AddrKey::v6(addr_be, port_be)
        }
    }
}

/// Sets it. A socket of IPv4 takes an address of IPv4 alone.
#[inline(always)]
pub(crate) fn set_destination(ctx: &SockAddrContext, family: Family, to: &AddrKey) {
    let [a, b, c, d] = to.addr_be;
    match family {
        Family::V4 => store::<IP4>(ctx, d),
        Family::V6 => {
            store::<IP6>(ctx, a);
            store::<{ IP6 + 4 }>(ctx, b);
            store::<{ IP6 + 8 }>(ctx, c);
            store::<{ IP6 + 12 }>(ctx, d);
        }
    }
    store::<PORT>(ctx, to.port_be.into());
}

#[inline(always)]
fn load<const OFFSET: usize>(ctx: &SockAddrContext) -> u32 {
    // SAFETY: one aligned word of the program's context, whose layout gives the offset.
    unsafe { word::load::<OFFSET, _>(ctx.as_ptr()) }
}

#[inline(always)]
fn store<const OFFSET: usize>(ctx: &SockAddrContext, word: u32) {
    // SAFETY: as above; the kernel lets programs write this word.
    unsafe { word::store::<OFFSET, _>(ctx.as_ptr(), word) }
}
