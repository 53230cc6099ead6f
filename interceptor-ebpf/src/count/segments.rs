//! What the segments of tagged connections say: requests that begin and answers that go out.

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use interceptor_common::{
    Origin,
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
    let known = maps::flow(sk);
    let flow = match known {
        Some(flow) if !flow.is_outdated(version) => flow,
        Some(flow) if flow.slot != 0 => {
            follow(sk, flow, version);
            flow
        }
        // What was none of ours may have become so, and what is older than the programs was never looked at.
        _ => match adopt(sk, &tcp, Way::In) {
            Some(flow) => flow,
            None => return,
        },
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
    let says = server_says(ctx, &tcp, now);
    let known = maps::flow(sk);
    let flow = match known {
        Some(flow) if flow.kind == Kind::IGNORED => return,
        Some(flow) => {
            if flow.is_outdated(version) {
                follow(sk, flow, version);
            }
            flow
        }
        // What is answered here may have been asked before the programs were there. Of other protocols the first bytes do not tell whether
        // they answer anything.
        None if says & Says::ANSWER != 0 => match adopt(sk, &tcp, Way::Out) {
            Some(flow) => flow,
            None => return,
        },
        None => return,
    };
    // Of a connection that is older than the programs the kernel does not tell that it ends. Of HTTP/2 none is old.
    let ends = (tcp.is_reset() || tcp.is_last()) && flow.traits & Trait::ADOPTED != 0;
    if tcp.len > 0 {
        sent(ctx, sk, flow, (&tcp, says, now));
    }
    if ends {
        maps::ended(sk, flow);
    }
}

/// The list of addresses has changed: the connection counts for whom its own leads to now.
#[inline(always)]
fn follow(sk: *mut bpf_sock, flow: &mut Flow, version: u32) {
    let Some((local, client)) = segment::peers(sk) else { return };
    // One that leads nowhere any more leaves its connections where they are, and so does one that leads where it did.
    let Some(slot) = maps::slot_of(&local).filter(|slot| *slot != flow.slot) else {
        flow.version = version;
        return;
    };
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

#[inline(always)]
fn received(ctx: &SkBuffContext, sk: *mut bpf_sock, flow: &mut Flow, tcp: &Tcp) {
    if flow.kind != Kind::HTTP2 {
        let now = maps::now();
        let segment = Segment { seq: tcp.seq, len: tcp.len, says: client_says(ctx, flow, tcp, now) };
        let (slot, kind, first, moved) = maps::locked(flow, |flow| {
            let moved = flow.received(&segment, now);
            (flow.slot, flow.kind, (flow.first_frame(), flow.tx_next), moved)
        });
        maps::count(slot, &moved, now);
        if kind != Kind::HTTP2 || !streams::begin(sk, first) {
            return;
        }
    }
    maps::go_on_received(ctx);
    without_streams(flow);
}

#[inline(always)]
fn sent(ctx: &SkBuffContext, sk: *mut bpf_sock, flow: &mut Flow, (tcp, says, now): (&Tcp, u32, u64)) {
    if flow.kind != Kind::HTTP2 {
        let segment = Segment { seq: tcp.seq, len: tcp.len, says };
        let (slot, kind, first, moved) = maps::locked(flow, |flow| {
            let moved = flow.sent(&segment, now);
            (flow.slot, flow.kind, flow.first_frame(), moved)
        });
        maps::count(slot, &moved, now);
        if kind != Kind::HTTP2 || !streams::begin(sk, (first, tcp.seq)) {
            return;
        }
    }
    maps::go_on_sent(ctx);
    without_streams(flow);
}

/// What a client's segment says.
#[inline(always)]
fn client_says(ctx: &SkBuffContext, flow: &Flow, tcp: &Tcp, now: u64) -> u32 {
    let payload = Payload { ctx, at: tcp.at };
    let head = payload.head(0, tcp.len);
    let shaken = flow.traits & Trait::SHAKEN != 0;
    let says = unknown(Says::client(shaken, &head, tcp.len, |at| payload.head(at, tcp.len)).into(), now) as u32;
    if flow.kind != Kind::UNKNOWN
        || says & (Says::REQUEST | Says::RECORD | Says::PREFACE) == 0
        || !is_probe(ctx, flow, tcp, says)
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
fn is_probe(ctx: &SkBuffContext, flow: &Flow, tcp: &Tcp, says: u32) -> bool {
    let payload = Payload { ctx, at: tcp.at };
    is_ours(&payload.head(place(says, tcp.len), tcp.len))
        || (flow.traits & Trait::HOST != 0 && says & Says::REQUEST != 0 && probe::is_kubelets(ctx, tcp.at, tcp.len))
}

/// Which way a segment goes, seen from the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// Takes a connection that was not tagged when it was established into account, if it is to one of our addresses. What goes out to the
/// machine itself may be the answer to a probe, and is left alone.
#[inline(always)]
fn adopt<'a>(sk: *mut bpf_sock, tcp: &Tcp, way: Way) -> Option<&'a mut Flow> {
    if tcp.len == 0 || tcp.is_reset() {
        return None;
    }
    let (local, client) = segment::peers(sk)?;
    let version = maps::version();
    // Zero for none: of an `Option` that is asked twice, the verifier follows the wrong guess to the number that is not there.
    let slot = maps::slot_of(&local).unwrap_or(0);
    let origin = if slot == 0 { 0 } else { maps::origin(slot, &client) };
    if way == Way::Out && origin == Origin::HOST {
        return None;
    }
    let Some(flow) = maps::flow_or_new(sk) else {
        maps::count_missed();
        return None;
    };
    if slot == 0 || origin == Origin::OUT {
        maps::locked(flow, |flow| flow.foreign(version));
        return None;
    }
    let now = maps::now();
    let (rx_first, tx_next) = if way == Way::In { (tcp.seq, tcp.ack) } else { (tcp.ack, tcp.seq) };
    let moved = maps::locked(flow, |flow| {
        flow.version = version;
        flow.adopt(slot, origin == Origin::HOST, rx_first, tx_next)
    });
    maps::count(slot, &moved, now);
    Some(flow)
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
