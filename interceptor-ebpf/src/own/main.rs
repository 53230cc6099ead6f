//! Level `self`: entry points alone.
//!
//! ```text
//! own cgroup ─► sockops ─► sockops::try_sockops ─► UPSTREAM_OF (address → slot) ─► CONN (per socket) ─► STATS (per slot)
//! ```
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![deny(unsafe_code)]

use aya_ebpf::{macros::sock_ops, programs::SockOpsContext};

mod maps;
mod sockops;

/// Counts the connections that sockets of this cgroup open to pods. Whatever happens it returns 1, which leaves the
/// connection alone: counting must never cost a request.
#[sock_ops]
fn count_connections(ctx: SockOpsContext) -> u32 {
    sockops::try_sockops::<false>(&ctx);
    1
}

/// The same, with a word on what fails. Apart, because what writes it is refused without CAP_PERFMON, by some kernels even where
/// it is never reached.
#[sock_ops]
fn tell_connections(ctx: SockOpsContext) -> u32 {
    sockops::try_sockops::<true>(&ctx);
    1
}
