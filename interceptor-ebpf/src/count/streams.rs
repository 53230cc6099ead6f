//! Requests of HTTP/2 in clear: walks the frames of one segment.
#![expect(unsafe_code, reason = "the kernel's loop hands its context over as a pointer")]

use core::ffi::c_void;

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_loop};
use interceptor_common::{
    flow::{Flow, Moved},
    http1::HEAD,
    http2::{Entry, Streams},
};
use interceptor_ebpf::segment::{Payload, Tcp};

use crate::maps;

/// Frames of one segment that are looked at. What is beyond is a gap, after which the walk finds its way again.
const FRAMES: u32 = 1024;

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
    client: bool,
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

#[inline(always)]
pub(crate) fn received(payload: &Payload<'_>, sk: *mut bpf_sock, flow: &mut Flow, tcp: &Tcp, head: &[u8; HEAD]) {
    let Some(streams) = maps::streams(sk) else { return };
    let last = streams.last;
    if let Entry::At(pos) = streams.rx.enter(tcp.seq, tcp.len, head, last) {
        walk(payload, flow, streams, tcp, pos, true);
    }
}

#[inline(always)]
pub(crate) fn sent(payload: &Payload<'_>, sk: *mut bpf_sock, flow: &mut Flow, tcp: &Tcp, head: &[u8; HEAD]) {
    let Some(streams) = maps::streams(sk) else { return };
    let last = streams.last;
    if let Entry::At(pos) = streams.tx.enter(tcp.seq, tcp.len, head, last) {
        walk(payload, flow, streams, tcp, pos, false);
    }
}

#[inline(always)]
fn walk(payload: &Payload<'_>, flow: &mut Flow, streams: &mut Streams, tcp: &Tcp, pos: u32, client: bool) {
    let mut state =
        Loop { payload: *payload, flow, streams, pos, len: tcp.len, started: 0, ended: 0, opened: 0, client };
    // SAFETY: the kernel calls `step` with that pointer while this waits.
    unsafe {
        bpf_loop(FRAMES, (step as extern "C" fn(u32, *mut c_void) -> i64) as *mut c_void, (&raw mut state).cast(), 0);
    }
    let Loop { flow, streams, pos, started, ended, opened, .. } = state;
    if client {
        streams.rx.leave(tcp.seq, pos)
    } else {
        streams.tx.leave(tcp.seq, pos)
    }
    let now = maps::now();
    let mut moved = Moved { flags: if opened != 0 { Moved::OPENED } else { 0 }, ..Moved::NOTHING };
    moved.start(started, now);
    moved.end(ended, now);
    maps::count(flow.slot, &moved, now);
}

/// Looks at one frame; 1 when there is no more.
#[inline(never)]
extern "C" fn step(_: u32, state: *mut c_void) -> i64 {
    // SAFETY: it is the pointer that `walk` gave, and `walk` waits.
    let state = unsafe { &mut *state.cast::<Loop<'_>>() };
    let walk = if state.client { &mut state.streams.rx } else { &mut state.streams.tx };
    let mut pos = state.pos;
    let frame = walk.step(&mut pos, state.len, &state.payload);
    state.pos = pos;
    let Some(frame) = frame else { return 1 };
    let (streams, client) = (&mut *state.streams, state.client);
    let (change, moved) = maps::locked(state.flow, |flow| {
        let mut moved = Moved::NOTHING;
        let change = if client {
            let counts = !streams.begins(&frame) || flow.streams(&mut moved);
            streams.client(frame, counts)
        } else {
            streams.server(frame)
        };
        (change, moved)
    });
    state.started += change.started;
    state.ended += change.ended;
    state.opened |= u32::from(moved.has(Moved::OPENED));
    0
}
