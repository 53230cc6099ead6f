//! The eBPF programs: entry points alone.
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
mod packet;
mod sockops;

/// Counts the connections that sockets of this cgroup open to pods. Whatever happens it returns 1, which leaves the
/// connection alone: counting must never cost a request.
#[sock_ops]
fn count_connections(ctx: SockOpsContext) -> u32 {
    sockops::try_sockops(&ctx);
    1
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[expect(unsafe_code, reason = "the section's name is how the loader finds the licence")]
mod licence {
    // SAFETY: the section is read by loaders alone, which expect a string that ends in zero.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
