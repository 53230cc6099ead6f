//! Level `node`, holding: entry points alone.
//!
//! ```text
//! client's device, in ──► hold_ingress ─ FRONTENDS (address → service) ─ SERVICES (cold?) ─► SEEN (copy), dropped
//! client's device, out ─► hold_egress ── TRIED (flow) ─► a pod's refusal: SEEN, dropped; its answer: SEEN, goes on
//!                                  └─ WITHDRAWN (flow) ─► dropped
//! agent, BPF_PROG_TEST_RUN ─► send ─► the packet enters or leaves the device
//! ```
#![no_std]
#![no_main]
#![deny(unsafe_code)]

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use interceptor_common::hold::Verdict;

mod hold;
mod maps;
mod segment;

/// Sees what clients behind a device send. On any doubt the packet goes on: what is not held at worst meets the node's own
/// refusal, what is held without reason reaches nobody.
#[classifier]
fn hold_ingress(ctx: TcContext) -> i32 {
    action(hold::first_packet(&ctx))
}

/// Sees what those clients receive. On any doubt the packet goes on.
#[classifier]
fn hold_egress(ctx: TcContext) -> i32 {
    action(hold::answer(&ctx))
}

/// Puts the packet that it is run with on a device. Attached nowhere.
#[classifier]
fn send(ctx: TcContext) -> i32 {
    segment::send(&ctx)
}

/// What is passed goes to whatever comes after us, and is never accepted on behalf of others.
fn action(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Hold => TC_ACT_SHOT,
    }
}
