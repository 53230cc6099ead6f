//! What the counting programs tell at once, and do not leave to the next reading.

use crate::AddrKey;

/// Record of the ring buffer `NOTICES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Notice {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub at_ns: u64,
    /// A [`Subject`].
    pub subject: u32,
    /// Whose slot, for [`Subject::BUSY`].
    pub slot: u32,
    /// Where a pod listens, for [`Subject::LISTENS`]; its address may be the unspecified one.
    pub addr: AddrKey,
    /// Always zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Notice>() == 40);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
// SAFETY: `repr(C)`, Copy, 'static, integers alone, and the assert above shows that there is no padding.
unsafe impl aya::Pod for Notice {}

/// What a notice is about; a number, because it crosses from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Subject;

impl Subject {
    /// A socket of a pod has begun to listen.
    pub const LISTENS: u32 = 1;
    /// A slot that was said to rest has something to do.
    pub const BUSY: u32 = 2;
}
