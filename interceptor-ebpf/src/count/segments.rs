//! What the segments of tagged connections say: requests that begin and answers that go out.

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use interceptor_common::{
    Jump,
    flow::{Flow, Kind, Says, Segment, Trait},
    http1::{self, Answer},
    probe::{is_ours, place},
};
use interceptor_ebpf::{
    segment::{self, Payload, Tcp},
    word::unknown,
};

use crate::{maps, probe, streams};

/// A segment for a pod's socket.
#[inline(always)]
pub(crate) fn try_ingress(ctx: &SkBuffContext) {
    let sk = segment::socket(ctx);
    if sk.is_null() {
        return;
    }
    let Some(tcp) = Tcp::read(ctx) else { return };
    let version = maps::version();
    // Looked for last and looked at once: of an `Option` that is asked twice, the verifier follows the wrong guess to what is not there.
    let Some(flow) = maps::flow(sk).filter(|flow| !flow.is_outdated(version)) else {
        return maps::jump_received(ctx, Jump::SETTLE);
    };
    if flow.kind == Kind::IGNORED {
        return;
    }
    if tcp.is_reset() {
        return reset(sk, flow);
    }
    if tcp.len > 0 {
        received(ctx, sk, flow, &tcp);
    }
}

/// A segment from a pod's socket.
#[inline(always)]
pub(crate) fn try_egress(ctx: &SkBuffContext) {
    let sk = segment::socket(ctx);
    if sk.is_null() {
        return;
    }
    let Some(tcp) = Tcp::read(ctx) else { return };
    let (version, now) = (maps::version(), maps::now());
    let flow = match maps::flow(sk) {
        Some(flow) if flow.kind == Kind::IGNORED => return,
        Some(flow) if !flow.is_outdated(version) => flow,
        None if server_says(ctx, &tcp, now) & Says::ANSWER == 0 => return,
        _ => return maps::jump_sent(ctx, Jump::SETTLE),
    };
    // Of a connection that is older than the programs the kernel does not tell that it ends. Of HTTP/2 none is old.
    let ends = (tcp.is_reset() || tcp.is_last()) && flow.traits & Trait::ADOPTED != 0;
    if tcp.len > 0 {
        sent(ctx, sk, flow, (&tcp, now));
    }
    if ends {
        maps::ended(sk, flow);
    }
}

#[inline(always)]
fn received(ctx: &SkBuffContext, sk: *mut bpf_sock, flow: &mut Flow, tcp: &Tcp) {
    if flow.kind != Kind::HTTP2 {
        let now = maps::now();
        let segment = Segment { seq: tcp.seq, len: tcp.len, says: client_says(ctx, sk, (flow, tcp), now) };
        let (slot, kind, first, moved) = maps::locked(flow, |flow| {
            let moved = flow.received(&segment, now);
            (flow.slot, flow.kind, (flow.first_frame(), flow.tx_next), moved)
        });
        maps::count(slot, &moved, now);
        if kind != Kind::HTTP2 || !streams::begin(sk, first) {
            return;
        }
    }
    maps::jump_received(ctx, Jump::STREAMS);
    without_streams(flow);
}

#[inline(always)]
fn sent(ctx: &SkBuffContext, sk: *mut bpf_sock, flow: &mut Flow, (tcp, now): (&Tcp, u64)) {
    if flow.kind != Kind::HTTP2 {
        let segment = Segment { seq: tcp.seq, len: tcp.len, says: server_says(ctx, tcp, now) };
        let (slot, kind, first, moved) = maps::locked(flow, |flow| {
            let moved = flow.sent(&segment, now);
            // So many ways lead here that the verifier would go too far with what it knows on each.
            (flow.slot, unknown(flow.kind.into(), now) as u32, flow.first_frame(), moved)
        });
        maps::count(slot, &maps::forgotten(flow, &moved), now);
        if kind != Kind::HTTP2 || !streams::begin(sk, (first, tcp.seq)) {
            return;
        }
    }
    maps::jump_sent(ctx, Jump::STREAMS);
    without_streams(flow);
}

/// What a client's segment says.
#[inline(always)]
fn client_says(ctx: &SkBuffContext, sk: *mut bpf_sock, (flow, tcp): (&Flow, &Tcp), now: u64) -> u32 {
    let payload = Payload { ctx, at: tcp.at };
    let head = payload.head(0, tcp.len);
    let shaken = flow.traits & Trait::SHAKEN != 0;
    let says = unknown(Says::client(shaken, &head, tcp.len, |at| payload.head(at, tcp.len)).into(), now) as u32;
    if flow.kind != Kind::UNKNOWN
        || says & (Says::REQUEST | Says::RECORD | Says::PREFACE) == 0
        || !is_probe(ctx, sk, (flow, tcp, says))
    {
        return says;
    }
    says | Says::PROBE
}

/// What a pod's segment says: of the final answer, where it follows another in the same segment.
#[inline(always)]
fn server_says(ctx: &SkBuffContext, tcp: &Tcp, now: u64) -> u32 {
    let payload = Payload { ctx, at: tcp.at };
    let mut head = payload.head(0, tcp.len);
    if http1::answer(&head, tcp.len) == Answer::Interim {
        let next = payload.head(http1::CONTINUE, tcp.len);
        if http1::answer(&next, tcp.len.saturating_sub(http1::CONTINUE)) != Answer::None {
            head = next;
        }
    }
    unknown(Says::server(&head, tcp.len).into(), now) as u32
}

/// What the kernel has no program for counts as well as it can.
#[inline(always)]
fn without_streams(flow: &mut Flow) {
    let now = maps::now();
    let (slot, moved) = maps::locked(flow, |flow| (flow.slot, flow.without_streams(now)));
    maps::count(slot, &moved, now);
}

/// Whether a client's first segment asks for an agent how the pod is, or for the kubelet of this machine.
#[inline(always)]
fn is_probe(ctx: &SkBuffContext, sk: *mut bpf_sock, (flow, tcp, says): (&Flow, &Tcp, u32)) -> bool {
    let payload = Payload { ctx, at: tcp.at };
    is_ours(&payload.head(place(says, tcp.len), tcp.len))
        || (flow.traits & Trait::HOST != 0 && says & Says::REQUEST != 0 && probe::is_kubelets(ctx, sk, tcp.at, tcp.len))
}

/// A client's reset. TCP has not judged yet whether it is one, and the kernel tells when the connection has ended by it; not of one that
/// is older than the programs, which ends here, and is taken into account anew if it goes on.
#[inline(always)]
fn reset(sk: *mut bpf_sock, flow: &mut Flow) {
    if flow.traits & Trait::ADOPTED == 0 {
        return;
    }
    maps::ended(sk, flow);
    let before = maps::version().wrapping_sub(1);
    maps::locked(flow, |flow| flow.foreign(before));
}
