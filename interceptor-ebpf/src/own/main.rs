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
    sockops::try_sockops(&ctx);
    1
}
