//! The eBPF programs, and what all of them share. Each object is a program of this package:
//!
//! ```text
//! own    level self: connections that an interceptor's own sockets open
//! count  level node: connections and requests that pods of direct routes take
//! hold   level node: first packets to workloads at zero
//! queue  level node: connections that pods have not accepted yet
//! steer  level node: connections to workloads at zero that are an interceptor's to take
//! ```
#![no_std]
#![feature(asm_experimental_arch)]
#![deny(unsafe_code)]

pub mod packet;
pub mod segment;
pub mod word;

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
