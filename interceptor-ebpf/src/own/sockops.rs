//! Counts, per slot, the connections that sockets of the cgroup open to pods.
//!
//! When a socket connects to an address that user space has listed, its storage gets the slot and the kernel is asked to
//! tell of its changes of state and its round trips. The slot stays with the socket for the life of the connection, so
//! that a close is counted where the open was, also after the address was withdrawn.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_ESTABLISHED,
    },
    programs::SockOpsContext,
};
use aya_log_ebpf::{debug, warn};
use interceptor_common::{Conn, Event, Phase, Step};
use interceptor_ebpf::packet;

use crate::maps;

/// Which calls a counted socket needs, besides those that it has already.
const FLAGS: u32 = BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG;

/// Takes one call of the kernel. Anything unexpected is left uncounted, never refused.
#[inline(always)]
pub(crate) fn try_sockops<const TELL: bool>(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting::<TELL>(ctx),
        BPF_SOCK_OPS_STATE_CB => state::<TELL>(ctx),
        BPF_SOCK_OPS_RTT_CB => round_trip(ctx),
        _ => {}
    }
}

#[inline(always)]
fn connecting<const TELL: bool>(ctx: &SockOpsContext) {
    let Some(slot) = packet::remote(ctx).and_then(|key| maps::slot_of(&key)) else { return };
    let Some(conn) = maps::conn_or_new(packet::socket(ctx)) else {
        return missed::<TELL>(ctx, "no memory to tag a connection");
    };
    if ctx.set_cb_flags((ctx.cb_flags() | FLAGS) as i32).is_err() {
        return missed::<TELL>(ctx, "the kernel does not tell of changes of state");
    }
    *conn = Conn { slot, phase: Phase::CONNECTING };
    maps::count_attempt(slot);
}

#[inline(always)]
fn state<const TELL: bool>(ctx: &SockOpsContext) {
    let event = match ctx.arg(1) {
        BPF_TCP_ESTABLISHED => Event::Established,
        BPF_TCP_CLOSE => Event::Closed,
        _ => return,
    };
    let Some(conn) = maps::conn(packet::socket(ctx)) else { return };
    let step = conn.step(event);
    maps::count(conn.slot, step);
    if TELL
        && step == Step::Failed
        && let Some(key) = packet::remote(ctx)
    {
        debug!(ctx, "no connection to [{:i}]:{}", key.octets(), u16::from_be(key.port_be));
    }
}

#[inline(always)]
fn round_trip(ctx: &SockOpsContext) {
    if let Some(conn) = maps::conn(packet::socket(ctx)) {
        maps::sample(conn.slot, packet::srtt_us(ctx));
    }
}

/// Counts and, at the first and then ever more rarely, logs that a connection goes uncounted.
#[inline(always)]
fn missed<const TELL: bool>(ctx: &SockOpsContext, why: &'static str) {
    let before = maps::count_missed();
    if TELL && before & (before + 1) == 0 {
        warn!(ctx, "{}: {} connections not counted on this CPU", why, before + 1);
    }
}
