//! Words of what the kernel hands to programs (contexts, sockets), read and written at constant offsets: the verifier refuses anything else,
//! and the compiler would merge two accesses into one at a computed offset.
#![expect(unsafe_code, reason = "assembly, so that each access stays as it is written")]

use core::arch::asm;

/// The word that is so many bytes behind a pointer.
///
/// # Safety
///
/// There must be an aligned word that the kernel lets programs read.
#[inline(always)]
pub unsafe fn load<const OFFSET: usize, T>(from: *const T) -> u32 {
    let word: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{word} = *(u32 *)({from} + {offset})",
            word = out(reg) word,
            from = in(reg) from,
            offset = const OFFSET,
            options(nostack, readonly),
        );
    }
    word as u32
}

/// Sets it.
///
/// # Safety
///
/// There must be an aligned word that the kernel lets programs write.
#[inline(always)]
pub unsafe fn store<const OFFSET: usize, T>(to: *mut T, word: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "*(u32 *)({to} + {offset}) = {word}",
            to = in(reg) to,
            offset = const OFFSET,
            word = in(reg) u64::from(word),
            options(nostack),
        );
    }
}

/// The same number, of which the verifier knows nothing. Without CAP_PERFMON it also goes the way that a branch on a known number would
/// not take, and refuses pointers that differ by a known number from way to way. `any` is one that it does not know.
#[inline(always)]
pub fn unknown(number: u64, any: u64) -> u64 {
    let mut word = number;
    // SAFETY: changes a register twice, back to what it was.
    unsafe {
        asm!(
            "{word} ^= {any}",
            "{word} ^= {any}",
            word = inout(reg) word,
            any = in(reg) any,
            options(nomem, nostack, preserves_flags),
        );
    }
    word
}
