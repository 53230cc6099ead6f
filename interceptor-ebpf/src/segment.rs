//! TCP segments as `cgroup_skb` programs see them: they begin with the IP header, and their bytes are copied out, since only
//! headers can be read in place.
#![expect(unsafe_code, reason = "contexts and sockets are reached through pointers that the verifier has checked")]

use core::{
    arch::asm,
    mem::{MaybeUninit, offset_of, transmute},
    ptr::{addr_of, read_volatile, write_volatile},
};

use aya_ebpf::{EbpfContext as _, bindings::bpf_sock, helpers::generated::bpf_skb_load_bytes, programs::SkBuffContext};
use interceptor_common::{
    AddrKey,
    http1::HEAD,
    http2::{Bytes, HEADER},
};

use crate::word;

const PROTO_TCP: u8 = 6;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const ESTABLISHED: u32 = 1;
const CLOSE_WAIT: u32 = 8;

/// A segment's header, as far as it matters.
#[derive(Clone, Copy)]
pub struct Tcp {
    /// Sequence number of its first byte.
    pub seq: u32,
    /// Where its payload begins.
    pub at: u32,
    /// How many bytes of payload it has.
    pub len: u32,
    /// The peer's sequence number that it awaits.
    pub ack: u32,
    flags: u8,
}

/// One program's segment.
#[derive(Clone, Copy)]
pub struct Payload<'a> {
    /// The program's context.
    pub ctx: &'a SkBuffContext,
    /// Where the payload begins.
    pub at: u32,
}

// === impl Tcp ===

impl Tcp {
    /// Reads the headers; `None` if it is no TCP, or has headers in between.
    #[inline(always)]
    pub fn read(ctx: &SkBuffContext) -> Option<Self> {
        let ip = ctx.load::<[u8; 10]>(0).ok()?;
        let (offset, proto) = match ip[0] >> 4 {
            4 => (usize::from(ip[0] & 15) * 4, ip[9]),
            6 => (40, ip[6]),
            _ => return None,
        };
        if proto != PROTO_TCP {
            return None;
        }
        let tcp = ctx.load::<[u8; 14]>(offset).ok()?;
        let at = offset as u32 + u32::from(tcp[12] >> 4) * 4;
        Some(Self {
            seq: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            ack: u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]),
            at,
            // A length of the IP header would be zero for the largest packets.
            len: ctx.len().saturating_sub(at),
            flags: tcp[13],
        })
    }

    /// Whether it breaks the connection off.
    #[inline(always)]
    pub fn is_reset(&self) -> bool {
        self.flags & 4 != 0
    }

    /// Whether it is the last one of its side.
    #[inline(always)]
    pub fn is_last(&self) -> bool {
        self.flags & 1 != 0
    }
}

// === impl Payload ===

impl Payload<'_> {
    /// The first bytes of what is at `at` of `len` bytes of payload; zero where there are fewer.
    #[inline(always)]
    pub fn head(&self, at: u32, len: u32) -> [u8; HEAD] {
        let left = len.saturating_sub(at);
        let mut words = MaybeUninit::<[u64; 2]>::uninit();
        // Two stores: what is zeroed as a whole is by a function, whose loop the verifier refuses without CAP_PERFMON.
        // SAFETY: both words of a local.
        unsafe {
            write_volatile(words.as_mut_ptr().cast::<u64>(), 0);
            write_volatile(words.as_mut_ptr().cast::<u64>().add(1), 0);
        }
        let (ctx, to, at) = (self.ctx.as_ptr().cast(), words.as_mut_ptr().cast(), self.at + at);
        if left >= HEAD as u32 {
            // SAFETY: the helper writes so many bytes, which is what there is room for, or none.
            unsafe { bpf_skb_load_bytes(ctx, at, to, HEAD as u32) };
        } else if left != 0 {
            // SAFETY: as above; no more than `HEAD`.
            unsafe { bpf_skb_load_bytes(ctx, at, to, some::<HEAD>(left)) };
        }
        // SAFETY: both were written; as many bytes, of which any are good.
        unsafe { transmute::<[u64; 2], [u8; HEAD]>(words.assume_init()) }
    }
}

impl Bytes for Payload<'_> {
    #[inline(always)]
    fn load(&self, at: u32, part: &mut [u8; HEAD], have: u32, take: u32) -> bool {
        // At most 9 bytes, of which at most 8 are there; what exceeds that is refused.
        let (have, take) = (opaque(have) & 15, u64::from(some::<HEAD>(take)));
        if have >= u64::from(HEADER) || take > u64::from(HEADER) - have {
            return false;
        }
        // SAFETY: `have + take` was compared with what there is room for, which the verifier has checked too.
        let result = unsafe {
            let to = part.as_mut_ptr().add(have as usize);
            bpf_skb_load_bytes(self.ctx.as_ptr().cast(), self.at + at, to.cast(), take as u32)
        };
        result == 0
    }
}

/// The socket that the segment is for or from; null when there is none.
#[inline(always)]
pub fn socket(ctx: &SkBuffContext) -> *mut bpf_sock {
    // SAFETY: one aligned pointer of the context, which the kernel fills.
    unsafe { read_volatile(addr_of!((*ctx.skb.skb).__bindgen_anon_2.sk)) }
}

/// Whom a connected socket is reached at, and whom it talks to; `None` for any other. The socket must not be null.
#[inline(always)]
pub fn peers(sk: *mut bpf_sock) -> Option<(AddrKey, AddrKey)> {
    const LOCAL: usize = offset_of!(bpf_sock, src_ip6);
    const REMOTE: usize = offset_of!(bpf_sock, dst_ip6);
    let state = word::<{ offset_of!(bpf_sock, state) }>(sk);
    if state != ESTABLISHED && state != CLOSE_WAIT {
        return None;
    }
    let port_be = (word::<{ offset_of!(bpf_sock, src_port) }>(sk) as u16).to_be();
    match word::<{ offset_of!(bpf_sock, family) }>(sk) {
        AF_INET => {
            let local = word::<{ offset_of!(bpf_sock, src_ip4) }>(sk);
            let remote = word::<{ offset_of!(bpf_sock, dst_ip4) }>(sk);
            Some((AddrKey::v4(local, port_be), AddrKey::v4(remote, 0)))
        }
        AF_INET6 => {
            let local =
                [word::<LOCAL>(sk), word::<{ LOCAL + 4 }>(sk), word::<{ LOCAL + 8 }>(sk), word::<{ LOCAL + 12 }>(sk)];
            let remote = [
                word::<REMOTE>(sk),
                word::<{ REMOTE + 4 }>(sk),
                word::<{ REMOTE + 8 }>(sk),
                word::<{ REMOTE + 12 }>(sk),
            ];
            Some((AddrKey::v6(local, port_be), AddrKey::v6(remote, 0)))
        }
        _ => None,
    }
}

#[inline(always)]
fn word<const OFFSET: usize>(sk: *mut bpf_sock) -> u32 {
    // SAFETY: one aligned word of a socket that is not null, whose layout gives the offset.
    unsafe { word::load::<OFFSET, _>(sk) }
}

/// The same number, if it is from one to `MOST`, a power of two, and otherwise another one that is. Without a comparison with zero,
/// from which verifiers before Linux 6.8 do not learn.
#[inline(always)]
pub fn some<const MOST: usize>(number: u32) -> u32 {
    const { assert!(MOST.is_power_of_two()) };
    ((opaque(number.wrapping_sub(1)) & (MOST as u64 - 1)) + 1) as u32
}

/// The same number, of which the compiler knows nothing: it would join the comparisons that the verifier wants to see one
/// by one. As wide as a register, since the verifier forgets what it knows of a number that is cut.
#[inline(always)]
pub fn opaque(number: u32) -> u64 {
    let mut number = u64::from(number);
    // SAFETY: moves a register to itself; type information about lines asks for an instruction.
    unsafe { asm!("{number} = {number}", number = inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}
