//! Tells the kubelet's probes from other requests of its machine: they name themselves `kube-probe/`.
#![expect(unsafe_code, reason = "map memory is reached through pointers that the verifier has checked")]

use core::{
    arch::asm,
    ptr::{addr_of, read_unaligned},
};

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_skb_load_bytes, macros::map, maps::PerCpuArray, programs::SkBuffContext,
};

use interceptor_ebpf::segment::some;

use crate::maps;

/// Bytes of a request's head that are searched. The kubelet's own have the name in the first 200, if path and host are not
/// very long.
const SEARCHED: u32 = 512;
/// Of `kube-probe/` as many as a word has.
const NAME: u64 = u64::from_ne_bytes(*b"kube-pro");
const WORD: u32 = 8;

/// With room for the word that begins at the last byte, so that a mask is all that the verifier needs to see.
#[map]
static SCRATCH: PerCpuArray<[u8; (SEARCHED + WORD) as usize]> = PerCpuArray::with_max_entries(1, 0);

/// Whether the `len` bytes at `at` are a request of the kubelet's.
#[inline(always)]
pub(crate) fn is_kubelets(ctx: &SkBuffContext, at: u32, len: u32) -> bool {
    let Some(scratch) = maps::element::<u8>(addr_of!(SCRATCH).cast(), 0) else { return false };
    if len < WORD {
        return false;
    }
    let size = some::<{ SEARCHED as usize }>(if len < SEARCHED { len } else { SEARCHED });
    // SAFETY: `scratch` points to this CPU's value, of which the helper writes at most its size, and no other program comes
    // between: they run one after the other on a CPU. What is behind `size` is not searched.
    unsafe { bpf_skb_load_bytes(ctx.as_ptr().cast(), at, scratch.cast(), size) == 0 && names(scratch, size) }
}

/// Whether the name is among the first `size` bytes. A loop that the verifier walks through: `bpf_loop` is too new (Linux 5.17).
///
/// # Safety
///
/// There must be [`SEARCHED`] bytes and a word more.
#[inline(always)]
unsafe fn names(bytes: *const u8, size: u32) -> bool {
    let mut bytes = bytes;
    for at in 0..=SEARCHED - WORD {
        if at + WORD > size {
            return false;
        }
        // SAFETY: the caller's promise. A step is a constant in the instruction: another one the verifier refuses without CAP_PERFMON,
        // where it may not differ from round to round.
        unsafe {
            if read_unaligned(bytes.cast::<u64>()) == NAME {
                return true;
            }
            asm!("{bytes} += 1", bytes = inout(reg) bytes, options(nomem, nostack));
        }
    }
    false
}
