//! Level `node`, counting: entry points alone. All are attached to the cgroups of the pods that routes lead to.
//!
//! ```text
//! accept ─► sockops  ─► SLOT_OF (address → slot), ORIGINS (client → counts?) ─► FLOWS (per socket)
//! bytes  ─► segments ─► FLOWS, PROBES ─► flow::Flow, http2::Streams: what they mean ─► SERVED (per slot)
//! ```
#![no_std]
#![no_main]
#![deny(unsafe_code)]
#![feature(asm_experimental_arch)]

use aya_ebpf::{
    macros::{cgroup_skb, sock_ops},
    programs::{SkBuffContext, SockOpsContext},
};

mod maps;
mod probe;
mod segments;
mod settle;
mod sockops;
mod streams;

/// Counts the connections that pods take. Whatever happens it returns 1, which leaves the connection alone: counting must
/// never cost a request.
#[sock_ops]
fn count_accepted(ctx: SockOpsContext) -> u32 {
    sockops::try_sockops(&ctx);
    1
}

/// Sees what clients send. Whatever happens it returns 1, which lets the segment pass.
#[cgroup_skb(ingress)]
fn count_received(ctx: SkBuffContext) -> i32 {
    segments::try_ingress(&ctx);
    1
}

/// Finds out whose the connection is of what clients send. Returns 1 likewise.
#[cgroup_skb(ingress)]
fn settle_received(ctx: SkBuffContext) -> i32 {
    settle::try_received(&ctx);
    1
}

/// Finds out whose the connection is of what pods answer. Returns 1 likewise.
#[cgroup_skb(egress)]
fn settle_sent(ctx: SkBuffContext) -> i32 {
    settle::try_sent(&ctx);
    1
}

/// Goes on with what clients send by HTTP/2. Returns 1 likewise.
#[cgroup_skb(ingress)]
fn streams_received(ctx: SkBuffContext) -> i32 {
    streams::try_received(&ctx);
    1
}

/// Goes on with what pods answer by HTTP/2. Returns 1 likewise.
#[cgroup_skb(egress)]
fn streams_sent(ctx: SkBuffContext) -> i32 {
    streams::try_sent(&ctx);
    1
}

/// Sees what pods answer. Whatever happens it returns 1, which lets the segment pass.
#[cgroup_skb(egress)]
fn count_sent(ctx: SkBuffContext) -> i32 {
    segments::try_egress(&ctx);
    1
}
