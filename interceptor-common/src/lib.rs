//! The ABI between kernel and user space, and decisions that both share.
//!
//! Rules of the ABI: `#[repr(C)]`, `Copy`, fixed-width integers, every byte of padding a field of its own, no `bool`,
//! `enum`, `Option` or `usize`; byte order in the name; a size assert for each type. `Pod` exists under `user` alone.
#![cfg_attr(not(test), no_std)]
#![expect(clippy::inline_always, reason = "programs of kernels before 5.10 may not call, and under a lock none may")]
#![expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "sequence numbers and times wrap")]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]
#![cfg_attr(feature = "user", deny(unsafe_code))]

mod addr;
mod conn;
pub mod flow;
pub mod hold;
pub mod http1;
pub mod http2;
pub mod kubelet;
mod notice;
pub mod probe;
pub mod queue;
mod served;
mod stats;
pub mod steer;
pub mod tls;

pub use self::{
    addr::AddrKey,
    conn::{Conn, Event, Phase, Step},
    notice::{Notice, Subject},
    served::{Counters, FIRST_BYTE_NS, Jump, Origin, Run, Served, SlotUse},
    stats::Stats,
};
