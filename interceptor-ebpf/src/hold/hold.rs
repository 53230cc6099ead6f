//! Takes first packets to cold Services from the wire, and keeps refusals of pods that do not listen yet from clients.

use aya_ebpf::programs::TcContext;
use interceptor_common::hold::{Flow, MARK, Verdict, What, decide};

use crate::{
    maps,
    segment::{self, ACK, RST, SYN, Segment},
};

/// What becomes of a packet that a client sends.
#[inline(always)]
pub(crate) fn first_packet(ctx: &TcContext) -> Verdict {
    let Some(header) = segment::header(ctx, |flags| flags & (SYN | ACK) == SYN) else { return Verdict::Pass };
    let Some(Segment { source, destination }) = segment::addresses(ctx, header.family) else { return Verdict::Pass };
    let heat = maps::heat(&destination);
    // Also where the Service has gone meanwhile: in our mark others may find a bit of theirs.
    if segment::mark(ctx) == MARK {
        segment::set_mark(ctx, 0);
        return Verdict::Pass;
    }
    let Some(heat) = heat else { return Verdict::Pass };
    let verdict = decide(heat, maps::now_ns(), maps::heartbeat_ns());
    if verdict == Verdict::Hold {
        maps::tell(ctx, What::SYN, Flow { client: source, service: destination });
    }
    verdict
}

/// What becomes of a packet that a client is sent.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext) -> Verdict {
    let is_answer = |flags| flags & RST != 0 || flags & (SYN | ACK) == SYN | ACK;
    let Some(header) = segment::header(ctx, is_answer) else { return Verdict::Pass };
    let what = if header.flags & RST == 0 { What::TAKEN } else { What::REFUSED };
    let Some(Segment { source, destination }) = segment::addresses(ctx, header.family) else { return Verdict::Pass };
    let flow = Flow { client: destination, service: source };
    // Who takes a flow from `TRIED` decides: a pod whose answer passes has the client, one that is withdrawn before must not get it.
    if what == What::TAKEN && maps::is_tried(&flow) && maps::tried_no_more(&flow) {
        maps::tell(ctx, what, flow);
        return Verdict::Pass;
    }
    if maps::is_withdrawn(&flow) && maps::is_alive() {
        return Verdict::Hold;
    }
    if what == What::TAKEN || !maps::is_tried(&flow) {
        return Verdict::Pass;
    }
    // Nobody must be refused by a pod that is not there yet because its agent is not there any more.
    if !maps::is_alive() {
        return Verdict::Pass;
    }
    maps::tell(ctx, what, flow);
    Verdict::Hold
}
