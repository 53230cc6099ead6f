//! Whose a connection is that the others do not know, or know from a list of addresses that has changed. Programs of their own, to which
//! the others jump and which jump back: together they would be too much for the verifier without CAP_PERFMON.

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use interceptor_common::{Jump, Origin, flow::Flow};
use interceptor_ebpf::segment::{self, Tcp};

use crate::maps;

/// Which way a segment goes, seen from the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// A segment for a pod's socket.
#[inline(always)]
pub(crate) fn try_received(ctx: &SkBuffContext) {
    if settles(ctx, Way::In) {
        maps::jump_received(ctx, Jump::AGAIN);
    }
}

/// A segment from a pod's socket.
#[inline(always)]
pub(crate) fn try_sent(ctx: &SkBuffContext) {
    if settles(ctx, Way::Out) {
        maps::jump_sent(ctx, Jump::AGAIN);
    }
}

/// Whether it is known by now whose the connection is, and somebody's.
#[inline(always)]
fn settles(ctx: &SkBuffContext, way: Way) -> bool {
    let sk = segment::socket(ctx);
    if sk.is_null() {
        return false;
    }
    let Some(tcp) = Tcp::read(ctx) else { return false };
    let version = maps::version();
    match maps::flow(sk) {
        Some(flow) if flow.slot != 0 => {
            follow(sk, flow, version);
            true
        }
        // What was none of ours may have become so, and what is older than the programs was never looked at.
        _ => adopt(sk, &tcp, way),
    }
}

/// The list of addresses has changed: the connection counts for whom its own leads to now.
#[inline(always)]
fn follow(sk: *mut bpf_sock, flow: &mut Flow, version: u32) {
    flow.version = version;
    // One of which a side has closed stays where it is.
    let Some((local, client)) = segment::peers(sk) else { return };
    // One that leads nowhere any more leaves its connections where they are, and so does one that leads where it did.
    let Some(slot) = maps::slot_of(&local).filter(|slot| *slot != flow.slot) else { return };
    let slot = if maps::origin(slot, &client) == Origin::OUT { 0 } else { slot };
    let streams = maps::streams(sk);
    let now = maps::now();
    let (before, left, come) = maps::locked(flow, |flow| {
        let open = match streams {
            Some(streams) => streams.counted(),
            None => 0,
        };
        let before = flow.slot;
        let (left, come) = flow.change_slot(slot, version, open, now);
        (before, left, come)
    });
    maps::count(before, &left, now);
    maps::count(slot, &come, now);
}

/// Takes a connection that was not tagged when it was established into account, if it is to one of our addresses. What goes out to the
/// machine itself may be the answer to a probe, and is left alone.
#[inline(always)]
fn adopt(sk: *mut bpf_sock, tcp: &Tcp, way: Way) -> bool {
    if tcp.len == 0 || tcp.is_reset() {
        return false;
    }
    let Some((local, client)) = segment::peers(sk) else { return false };
    let version = maps::version();
    // Zero for none: of an `Option` that is asked twice, the verifier follows the wrong guess to the number that is not there.
    let slot = maps::slot_of(&local).unwrap_or(0);
    let origin = if slot == 0 { 0 } else { maps::origin(slot, &client) };
    if way == Way::Out && origin == Origin::HOST {
        return false;
    }
    let Some(flow) = maps::flow_or_new(sk) else {
        maps::count_missed();
        return false;
    };
    if slot == 0 || origin == Origin::OUT {
        maps::locked(flow, |flow| flow.foreign(version));
        return false;
    }
    let now = maps::now();
    let (rx_first, tx_next) = if way == Way::In { (tcp.seq, tcp.ack) } else { (tcp.ack, tcp.seq) };
    let moved = maps::locked(flow, |flow| {
        flow.version = version;
        flow.adopt(slot, origin == Origin::HOST, rx_first, tx_next)
    });
    maps::count(slot, &moved, now);
    true
}
