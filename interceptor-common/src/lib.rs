//! The ABI between kernel and user space, and decisions that both share.
//!
//! Rules of the ABI: `#[repr(C)]`, `Copy`, fixed-width integers, every byte of padding a field of its own, no `bool`,
//! `enum`, `Option` or `usize`; byte order in the name; a size assert for each type. `Pod` exists under `user` alone.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]
#![cfg_attr(feature = "user", deny(unsafe_code))]

mod addr;
mod conn;
pub mod hold;
mod stats;

pub use self::{
    addr::AddrKey,
    conn::{Conn, Event, Phase, Step},
    stats::Stats,
};
