//! Level `node`, steering: entry points alone.
//!
//! ```text
//! a process below the pods' cgroup, connect() ─► FRONTENDS (address → service) ─ SERVICES (cold, which port?)
//!     ─ OUT (an interceptor?) ─► CHOICES, INTERCEPTORS (one by chance) ─► STEERED (with the socket), another destination
//! the same process, getpeername() ─► STEERED ─► what it has asked for
//! ```
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![deny(unsafe_code)]

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

mod address;
mod maps;
mod steer;

use address::Family;

/// Sees where sockets of IPv4 are to connect. Whatever happens it returns 1, which lets them: on any doubt to where they asked.
#[cgroup_sock_addr(connect4)]
fn steer_connect4(ctx: SockAddrContext) -> i32 {
    steer::connect(&ctx, Family::V4);
    1
}

/// Sees where sockets of IPv6 are to connect, which may be mapped addresses of IPv4. Returns 1 likewise.
#[cgroup_sock_addr(connect6)]
fn steer_connect6(ctx: SockAddrContext) -> i32 {
    steer::connect(&ctx, Family::V6);
    1
}

/// Sees what sockets of IPv4 are told of their peers. Returns 1: the kernel takes nothing else.
#[cgroup_sock_addr(getpeername4)]
fn steer_peer4(ctx: SockAddrContext) -> i32 {
    steer::peer(&ctx, Family::V4);
    1
}

/// Sees what sockets of IPv6 are told of their peers. Returns 1 likewise.
#[cgroup_sock_addr(getpeername6)]
fn steer_peer6(ctx: SockAddrContext) -> i32 {
    steer::peer(&ctx, Family::V6);
    1
}
