//! Connections that pods take: tagged when they are established, counted when they end; and that a pod listens.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE,
    },
    programs::SockOpsContext,
};
use interceptor_common::{Origin, flow::Kind};
use interceptor_ebpf::packet;

use crate::maps;

/// Which calls a counted socket needs, besides those that it has already.
const FLAGS: u32 = BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG;

/// Takes one call of the kernel. Anything unexpected is left uncounted, never refused.
#[inline(always)]
pub(crate) fn try_sockops(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => closed(ctx),
        BPF_SOCK_OPS_RTT_CB => round_trip(ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listens(ctx),
        _ => {}
    }
}

/// Whoever holds connections for the pod need not wait for the next try.
#[inline(always)]
fn listens(ctx: &SockOpsContext) {
    if let Some(addr) = packet::local(ctx) {
        maps::tell_listens(addr);
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    // Before the list is looked at: a later one is noticed.
    let version = maps::version();
    let Some(slot) = packet::local(ctx).and_then(|key| maps::slot_of(&key)) else { return };
    let Some(client) = packet::remote(ctx) else { return };
    let origin = maps::origin(slot, &client);
    let (rx, tx) = packet::sequence(ctx);
    let unseen = packet::payload(ctx);
    let now = maps::now();
    let Some(flow) = maps::flow_or_new(packet::socket(ctx)) else { return maps::count_missed() };
    if origin == Origin::OUT {
        flow.kind = Kind::IGNORED;
        return;
    }
    if ctx.set_cb_flags((ctx.cb_flags() | FLAGS) as i32).is_err() {
        return maps::count_missed();
    }
    let moved = maps::locked(flow, |flow| {
        flow.version = version;
        flow.accept(slot, origin == Origin::HOST, (rx, unseen), tx, now)
    });
    maps::count(slot, &moved, now);
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let sk = packet::socket(ctx);
    if let Some(flow) = maps::flow(sk) {
        maps::ended(sk, flow);
    }
}

#[inline(always)]
fn round_trip(ctx: &SockOpsContext) {
    if let Some(flow) = maps::flow(packet::socket(ctx))
        && flow.slot != 0
    {
        maps::sample(flow.slot, packet::srtt_us(ctx));
    }
}
