//! Requests of HTTP/2 in clear: walks the frames of one segment. Programs of their own, to which the others jump: together
//! they would be too much for the verifier where it may not trust (without CAP_PERFMON).
#![expect(unsafe_code, reason = "the kernel's loop hands its context over as a pointer")]

use core::ffi::c_void;

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_loop, programs::SkBuffContext};
use interceptor_common::{
    flow::{Flow, Kind, Moved},
    http2::{Change, Entry, Streams},
};
use interceptor_ebpf::segment::{self, Payload, Tcp};

use crate::maps;

/// Frames of one segment that are looked at: more than there is room for in one of half a megabyte. What is beyond is a gap, in which
/// ends of streams are lost.
const FRAMES: u32 = 1 << 16;

/// What the loop needs. Numbers that change are in map memory or in [`Moved`]: the verifier would follow each value of what
/// is on the stack.
struct Loop<'a> {
    payload: Payload<'a>,
    flow: &'a mut Flow,
    streams: &'a mut Streams,
    pos: u32,
    len: u32,
    started: u32,
    ended: u32,
    opened: u32,
}

/// The connection speaks HTTP/2 from these sequence numbers on; false when there is no memory for its streams.
#[inline(always)]
pub(crate) fn begin(sk: *mut bpf_sock, (rx, tx): (u32, u32)) -> bool {
    match maps::streams_or_new(sk) {
        Some(streams) => {
            streams.begin(rx, tx);
            true
        }
        None => {
            maps::count_missed();
            false
        }
    }
}

/// A segment for a socket that speaks HTTP/2.
#[inline(always)]
pub(crate) fn try_received(ctx: &SkBuffContext) {
    walk::<true>(ctx);
}

/// A segment from a socket that speaks HTTP/2.
#[inline(always)]
pub(crate) fn try_sent(ctx: &SkBuffContext) {
    walk::<false>(ctx);
}

#[inline(always)]
fn walk<const CLIENT: bool>(ctx: &SkBuffContext) {
    let sk = segment::socket(ctx);
    let (Some(flow), Some(streams)) = (maps::flow(sk), maps::streams(sk)) else { return };
    let Some(tcp) = Tcp::read(ctx) else { return };
    let payload = Payload { ctx, at: tcp.at };
    let head = payload.head(0, tcp.len);
    let last = streams.last;
    let walk = if CLIENT { &mut streams.rx } else { &mut streams.tx };
    let Entry::At(pos) = walk.enter(tcp.seq, tcp.len, &head, last) else { return };
    let mut state = Loop { payload, flow, streams, pos, len: tcp.len, started: 0, ended: 0, opened: 0 };
    let step: extern "C" fn(u32, *mut c_void) -> i64 = if CLIENT { step_client } else { step_server };
    // SAFETY: the kernel calls `step` with that pointer while this waits.
    unsafe {
        bpf_loop(FRAMES, step as *mut c_void, (&raw mut state).cast(), 0);
    }
    let Loop { flow, streams, pos, started, ended, opened, .. } = state;
    let walk = if CLIENT { &mut streams.rx } else { &mut streams.tx };
    walk.leave(tcp.seq, pos);
    // For the slot that the connection has now: what was counted before has gone with it, if it has come to another one, or has ended.
    let slot = maps::locked(flow, |flow| {
        streams.count_now(Change { started, ended });
        flow.slot
    });
    let now = maps::now();
    let mut moved = Moved { flags: if opened != 0 { Moved::OPENED } else { 0 }, ..Moved::NOTHING };
    moved.start(started, now);
    moved.end(ended, now);
    maps::count(slot, &moved, now);
}

/// Looks at one frame of a client; 1 when there is no more.
#[inline(never)]
extern "C" fn step_client(_: u32, state: *mut c_void) -> i64 {
    look::<true>(state)
}

/// Looks at one frame of a server; 1 when there is no more.
#[inline(never)]
extern "C" fn step_server(_: u32, state: *mut c_void) -> i64 {
    look::<false>(state)
}

/// One program needs one direction alone; a pointer to either would be computed, which the verifier refuses without
/// CAP_PERFMON.
#[inline(always)]
fn look<const CLIENT: bool>(state: *mut c_void) -> i64 {
    // SAFETY: it is the pointer that `walk` gave, and `walk` waits.
    let state = unsafe { &mut *state.cast::<Loop<'_>>() };
    let mut pos = state.pos;
    let walk = if CLIENT { &mut state.streams.rx } else { &mut state.streams.tx };
    let frame = walk.step(&mut pos, state.len, &state.payload);
    state.pos = pos;
    let Some(frame) = frame else { return 1 };
    let streams = &mut *state.streams;
    let (change, moved) = maps::locked(state.flow, |flow| {
        let mut moved = Moved::NOTHING;
        // Closed in the meantime on another CPU, which has ended all streams that were open.
        let change = if flow.kind != Kind::HTTP2 {
            Change { started: 0, ended: 0 }
        } else if CLIENT {
            let counts = !streams.begins(&frame) || flow.streams(&mut moved);
            streams.client(frame, counts)
        } else {
            streams.server(frame)
        };
        streams.count_later(change);
        (change, moved)
    });
    state.started += change.started;
    state.ended += change.ended;
    state.opened |= u32::from(moved.has(Moved::OPENED));
    0
}
