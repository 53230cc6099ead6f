//! Level `node`, holding: entry points alone.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use interceptor_ebpf as _;

/// Sees the packets that enter a device. What it does not decide it leaves to whatever comes after it.
#[classifier]
fn hold_ingress(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
