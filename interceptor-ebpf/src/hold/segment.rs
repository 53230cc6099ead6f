//! TCP segments in Ethernet frames: the only arithmetic with packet pointers. IPv4 with options, fragments, VLAN tags and
//! IPv6 extension headers are not looked into: such packets go on as if we were not there.
#![expect(unsafe_code, reason = "packets are reached through pointers that the verifier has checked")]

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::generated::bpf_clone_redirect,
    programs::TcContext,
};
use interceptor_common::AddrKey;
use interceptor_ebpf::word;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

const MARK: usize = offset_of!(__sk_buff, mark);
const ETH: usize = 14;
const ETH_IPV4: u16 = 0x0800_u16.to_be();
const ETH_IPV6: u16 = 0x86dd_u16.to_be();
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP_FLAGS: usize = 13;
/// Version 4, no options.
const PLAIN_IPV4: u8 = 0x45;
/// More fragments follow, or this is not the first.
const FRAGMENT: u16 = 0x3fff_u16.to_be();

/// What tells whether a packet is of interest, at the least cost.
pub(crate) struct Header {
    pub(crate) family: Family,
    pub(crate) flags: u8,
}

#[derive(Clone, Copy)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The ends of a segment.
pub(crate) struct Segment {
    pub(crate) source: AddrKey,
    pub(crate) destination: AddrKey,
}

/// Family and TCP flags of a segment whose flags are wanted; `None` for everything else. Flags come first: most packets have
/// others, and cost no more than this.
#[inline(always)]
pub(crate) fn header(ctx: &TcContext, is_wanted: impl Fn(u8) -> bool) -> Option<Header> {
    let wanted = |at| read::<u8>(ctx, at).filter(|flags| is_wanted(*flags));
    match read::<u16>(ctx, ETH - 2)? {
        ETH_IPV4 => {
            let flags = wanted(ETH + IPV4 + TCP_FLAGS)?;
            let plain = read::<u8>(ctx, ETH)? == PLAIN_IPV4 && read::<u8>(ctx, ETH + 9)? == AddrKey::TCP;
            let whole = read::<u16>(ctx, ETH + 6)? & FRAGMENT == 0;
            (plain && whole).then_some(Header { family: Family::V4, flags })
        }
        ETH_IPV6 => {
            let flags = wanted(ETH + IPV6 + TCP_FLAGS)?;
            (read::<u8>(ctx, ETH + 6)? == AddrKey::TCP).then_some(Header { family: Family::V6, flags })
        }
        _ => None,
    }
}

/// Source and destination of a segment that has a [`Header`].
#[inline(always)]
pub(crate) fn addresses(ctx: &TcContext, family: Family) -> Option<Segment> {
    Some(match family {
        Family::V4 => Segment {
            source: AddrKey::v4(read(ctx, ETH + 12)?, read(ctx, ETH + IPV4)?),
            destination: AddrKey::v4(read(ctx, ETH + 16)?, read(ctx, ETH + IPV4 + 2)?),
        },
        Family::V6 => Segment {
            source: AddrKey::v6(read(ctx, ETH + 8)?, read(ctx, ETH + IPV6)?),
            destination: AddrKey::v6(read(ctx, ETH + 24)?, read(ctx, ETH + IPV6 + 2)?),
        },
    })
}

/// The packet's mark.
#[inline(always)]
pub(crate) fn mark(ctx: &TcContext) -> u32 {
    // SAFETY: one aligned word of the program's context.
    unsafe { word::load::<MARK, _>(ctx.skb.skb) }
}

#[inline(always)]
pub(crate) fn set_mark(ctx: &TcContext, mark: u32) {
    // SAFETY: as above; the kernel lets programs write this word.
    unsafe { word::store::<MARK, _>(ctx.skb.skb, mark) }
}

/// The device that the packet enters or leaves.
#[inline(always)]
pub(crate) fn device(ctx: &TcContext) -> u32 {
    // SAFETY: one aligned word of the program's context.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Puts a copy of the packet on the device that the first control word names: into the node if the second one is not
/// zero, out to who is behind the device otherwise. The mark stays. The copy is all that is wanted.
#[inline(always)]
pub(crate) fn send(ctx: &TcContext) -> i32 {
    // SAFETY: aligned words of the program's context, and a helper that only takes numbers beside it.
    let sent = unsafe {
        let skb = ctx.skb.skb;
        let flags = if (*skb).cb[1] == 0 { 0 } else { u64::from(BPF_F_INGRESS) };
        bpf_clone_redirect(skb, (*skb).cb[0], flags)
    };
    if sent == 0 { 0 } else { TC_ACT_SHOT }
}

/// A value at a constant offset; `None` beyond the packet's linear part, where headers are.
#[inline(always)]
fn read<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    let at = ctx.data() + offset;
    if at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet, as was just checked.
    Some(unsafe { (at as *const T).read_unaligned() })
}
