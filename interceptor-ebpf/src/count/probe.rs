//! Tells the kubelet's probes from other requests of its machine: they name themselves `kube-probe/`.
#![expect(unsafe_code, reason = "map memory is reached through pointers that the verifier has checked")]

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_skb_load_bytes, macros::map, maps::PerCpuArray, programs::SkBuffContext,
};

/// Bytes of a request's head that are searched. The kubelet's own have the name in the first 200, if path and host are not
/// very long.
const SEARCHED: usize = 512;
const NAME: &[u8; 11] = b"kube-probe/";

#[map]
static SCRATCH: PerCpuArray<[u8; SEARCHED]> = PerCpuArray::with_max_entries(1, 0);

/// Whether the `len` bytes at `at` are a request of the kubelet's.
#[inline(always)]
pub(crate) fn is_probe(ctx: &SkBuffContext, at: u32, len: u32) -> bool {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return false };
    let take = if len < SEARCHED as u32 { len } else { SEARCHED as u32 };
    // SAFETY: `scratch` points to this CPU's value, of which the helper writes at most its size; bytes behind `take` may be
    // an older request's, and are not searched.
    unsafe {
        let size = core::ptr::read_volatile(&raw const take);
        if size == 0 || size > SEARCHED as u32 {
            return false;
        }
        if bpf_skb_load_bytes(ctx.as_ptr().cast(), at, scratch.cast(), size) != 0 {
            return false;
        }
        let bytes = scratch.cast::<u8>();
        let mut matched = 0_usize;
        let mut at = 0_usize;
        while at < SEARCHED {
            // No byte but the first of the name begins it anew, so one pass will do.
            let byte = core::ptr::read_volatile(bytes.add(at));
            matched = if byte == *NAME.get_unchecked(matched) { matched + 1 } else { usize::from(byte == NAME[0]) };
            at += 1;
            if matched == NAME.len() {
                return at <= size as usize;
            }
        }
    }
    false
}
