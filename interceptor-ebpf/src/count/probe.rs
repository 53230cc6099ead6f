//! Tells the kubelet's probes from other requests of its machine: they name themselves `kube-probe/`, or user space knows how they
//! begin.
#![expect(unsafe_code, reason = "map memory is reached through pointers that the verifier has checked")]

use core::{
    mem::offset_of,
    ptr::{addr_of, read, write_volatile},
};

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sock, helpers::generated::bpf_skb_load_bytes, macros::map, maps::PerCpuArray,
    programs::SkBuffContext,
};
use interceptor_common::{
    AddrKey,
    kubelet::{ProbeHead, SEARCHED},
};
use interceptor_ebpf::segment::{peers, some};

use crate::maps;

const WORDS: usize = SEARCHED / size_of::<u64>();
/// Of `kube-probe/` as many bytes as a word has.
const NAME: u64 = u64::from_le_bytes(*b"kube-pro");

/// A request's first bytes, and before them what makes a key of the first of these.
#[repr(C)]
struct Scratch {
    bits: u32,
    addr: AddrKey,
    head: [u64; WORDS],
}

const _: () =
    assert!(offset_of!(Scratch, head) == 24 && size_of::<Scratch>() >= size_of::<u32>() + size_of::<ProbeHead>());

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Whether the `len` bytes at `at` are a request of the kubelet's.
#[inline(always)]
pub(crate) fn is_kubelets(ctx: &SkBuffContext, sk: *mut bpf_sock, at: u32, len: u32) -> bool {
    let Some(scratch) = maps::element::<Scratch>(addr_of!(SCRATCH).cast(), 0) else { return false };
    if len == 0 {
        return false;
    }
    let size = some::<SEARCHED>(if len < SEARCHED as u32 { len } else { SEARCHED as u32 });
    // SAFETY: `scratch` points to this CPU's value, of which the helper writes at most its size, and no other program comes
    // between: they run one after the other on a CPU.
    unsafe {
        let head: *mut u64 = (&raw mut (*scratch).head).cast();
        clear(head);
        bpf_skb_load_bytes(ctx.as_ptr().cast(), at, head.cast(), size) == 0
            && (has_name(head.cast()) || is_known(scratch, sk, len))
    }
}

/// Whether user space knows that the kubelet's probes of this pod begin like this.
///
/// # Safety
///
/// `scratch` must point to this CPU's value, with the segment's first bytes in it.
#[inline(always)]
unsafe fn is_known(scratch: *mut Scratch, sk: *mut bpf_sock, len: u32) -> bool {
    let Some((AddrKey { addr_be: [a, b, c, d], port_be, proto, reserved }, _)) = peers(sk) else { return false };
    // SAFETY: the caller's promise; the key is shorter than the value.
    unsafe {
        write_volatile(&raw mut (*scratch).bits, ProbeHead::bits(len));
        write_volatile(&raw mut (*scratch).addr.addr_be[0], a);
        write_volatile(&raw mut (*scratch).addr.addr_be[1], b);
        write_volatile(&raw mut (*scratch).addr.addr_be[2], c);
        write_volatile(&raw mut (*scratch).addr.addr_be[3], d);
        write_volatile(&raw mut (*scratch).addr.port_be, port_be);
        write_volatile(&raw mut (*scratch).addr.proto, proto);
        write_volatile(&raw mut (*scratch).addr.reserved, reserved);
        maps::is_probe(scratch.cast())
    }
}

/// `$step` with each number below a multiple of 64.
macro_rules! unrolled {
    ($step:ident: $($at:literal)*) => { $(unrolled!(@64 $step $at);)* };
    (@64 $step:ident $at:literal) => {
        unrolled!(@8 $step $at); unrolled!(@8 $step $at + 8); unrolled!(@8 $step $at + 16); unrolled!(@8 $step $at + 24);
        unrolled!(@8 $step $at + 32); unrolled!(@8 $step $at + 40); unrolled!(@8 $step $at + 48); unrolled!(@8 $step $at + 56);
    };
    (@8 $step:ident $at:expr) => {
        $step!($at); $step!($at + 1); $step!($at + 2); $step!($at + 3);
        $step!($at + 4); $step!($at + 5); $step!($at + 6); $step!($at + 7);
    };
}

/// Leaves nothing of the segment before.
///
/// # Safety
///
/// There must be [`WORDS`] words.
#[inline(always)]
unsafe fn clear(words: *mut u64) {
    const { assert!(WORDS == 32) };
    macro_rules! step {
        ($at:expr) => {
            // SAFETY: the caller's promise.
            unsafe { write_volatile(words.add($at), 0) }
        };
    }
    unrolled!(@8 step 0);
    unrolled!(@8 step 8);
    unrolled!(@8 step 16);
    unrolled!(@8 step 24);
}

/// Whether the name is among them. No loop: without CAP_PERFMON the verifier follows the processor's wrong guesses, too, by which a loop
/// goes on behind its end and reads what it may not.
///
/// # Safety
///
/// There must be [`SEARCHED`] bytes.
#[inline(always)]
unsafe fn has_name(bytes: *const u8) -> bool {
    const { assert!(SEARCHED == 256) };
    let mut word = 0_u64;
    macro_rules! step {
        ($at:expr) => {
            // SAFETY: the caller's promise.
            word = word >> 8 | u64::from(unsafe { read(bytes.add($at)) }) << 56;
            if word == NAME {
                return true;
            }
        };
    }
    unrolled!(step: 0 64 128 192);
    false
}
