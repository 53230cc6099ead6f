//! Level `node`, accept queues: the entry point alone.
//!
//! ```text
//! agent, BPF_PROG_TEST_RUN with an `Ask` ─► the pod's listening socket ─► how many connections it has not accepted
//! ```
#![no_std]
#![no_main]
#![deny(unsafe_code)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use interceptor_ebpf as _;

mod socket;

/// Tells how many connections wait at the socket that it is asked for. Attached nowhere. Whatever it returns, no packet is
/// concerned.
#[classifier]
fn accept_queue(ctx: TcContext) -> i32 {
    socket::depth(&ctx) as i32
}
