//! Tells the kubelet's probes from other requests of its machine: they name themselves `kube-probe/`.
#![expect(unsafe_code, reason = "map memory is reached through pointers that the verifier has checked")]

use core::ptr::{addr_of, read, write_volatile};

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_skb_load_bytes, macros::map, maps::PerCpuArray, programs::SkBuffContext,
};

use interceptor_ebpf::segment::some;

use crate::maps;

/// Bytes of a request's head that are searched. The kubelet's own have the name in the first 200, if path and host are not
/// very long.
const SEARCHED: usize = 256;
const WORDS: usize = SEARCHED / size_of::<u64>();
/// Of `kube-probe/` as many bytes as a word has.
const NAME: u64 = u64::from_le_bytes(*b"kube-pro");

#[map]
static SCRATCH: PerCpuArray<[u64; WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Whether the `len` bytes at `at` are a request of the kubelet's.
#[inline(always)]
pub(crate) fn is_kubelets(ctx: &SkBuffContext, at: u32, len: u32) -> bool {
    let Some(scratch) = maps::element::<u64>(addr_of!(SCRATCH).cast(), 0) else { return false };
    if len == 0 {
        return false;
    }
    let size = some::<SEARCHED>(if len < SEARCHED as u32 { len } else { SEARCHED as u32 });
    // SAFETY: `scratch` points to this CPU's value, of which the helper writes at most its size, and no other program comes
    // between: they run one after the other on a CPU.
    unsafe {
        clear(scratch);
        bpf_skb_load_bytes(ctx.as_ptr().cast(), at, scratch.cast(), size) == 0 && has_name(scratch.cast())
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
