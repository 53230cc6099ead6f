//! Tells the kubelet's probes from other requests of its machine: they name themselves `kube-probe/`.
#![expect(unsafe_code, reason = "map memory is reached through pointers that the verifier has checked")]

use core::{
    ffi::c_void,
    ptr::{addr_of, read_unaligned},
};

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_loop, bpf_skb_load_bytes},
    macros::map,
    maps::PerCpuArray,
    programs::SkBuffContext,
};

use interceptor_ebpf::segment::opaque;

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

/// What the loop needs.
struct Search {
    bytes: *const u8,
    size: u32,
    found: u32,
}

/// Whether the `len` bytes at `at` are a request of the kubelet's.
#[inline(always)]
pub(crate) fn is_probe(ctx: &SkBuffContext, at: u32, len: u32) -> bool {
    let Some(scratch) = maps::element::<u8>(addr_of!(SCRATCH).cast(), 0) else { return false };
    if len < WORD {
        return false;
    }
    let size = if len < SEARCHED { len } else { SEARCHED - 1 };
    let size = opaque(size) & u64::from(SEARCHED - 1);
    if size == 0 {
        return false;
    }
    // SAFETY: `scratch` points to this CPU's value, of which the helper writes at most its size, and no other program comes
    // between: they run one after the other on a CPU. What is behind `size` is not searched.
    unsafe {
        if bpf_skb_load_bytes(ctx.as_ptr().cast(), at, scratch.cast(), size as u32) != 0 {
            return false;
        }
        let mut search = Search { bytes: scratch.cast(), size: size as u32, found: 0 };
        let step = step as extern "C" fn(u32, *mut c_void) -> i64;
        bpf_loop(SEARCHED - WORD + 1, step as *mut c_void, (&raw mut search).cast(), 0);
        search.found != 0
    }
}

/// Compares one place; 1 when there is no more to do.
#[inline(never)]
extern "C" fn step(at: u32, search: *mut c_void) -> i64 {
    // SAFETY: it is the pointer that `is_probe` gave, and `is_probe` waits.
    let search = unsafe { &mut *search.cast::<Search>() };
    if at > SEARCHED - WORD || at + WORD > search.size {
        return 1;
    }
    let at = (opaque(at) & u64::from(SEARCHED - 1)) as usize;
    // SAFETY: at most eight bytes before the end of the map's value, as was just compared.
    if unsafe { read_unaligned(search.bytes.add(at).cast::<u64>()) } == NAME {
        search.found = 1;
        return 1;
    }
    0
}
