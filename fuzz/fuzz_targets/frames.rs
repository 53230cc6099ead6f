//! Segments of HTTP/2 as the programs in the kernel walk over them: in any order, cut anywhere, whatever they are made of.
#![no_main]

use interceptor_common::{
    http1::{HEAD, head_of},
    http2::{Bytes, Entry, Streams},
};
use libfuzzer_sys::{arbitrary, fuzz_target};

/// The programs look at no more frames of one segment.
const FRAMES: usize = 1024;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    rx: u32,
    tx: u32,
    segments: Vec<Segment>,
}

#[derive(Debug, arbitrary::Arbitrary)]
struct Segment {
    is_clients: bool,
    /// Distance from where the last one of the direction ended.
    gap: i16,
    payload: Vec<u8>,
}

struct Payload<'a>(&'a [u8]);

impl Bytes for Payload<'_> {
    fn load(&self, at: u32, part: &mut [u8; HEAD], have: u32, take: u32) -> bool {
        let (at, have, take) = (at as usize, have as usize, take as usize);
        // A read outside of the segment, or of the part, would be one that the kernel refuses.
        part[have..have + take].copy_from_slice(&self.0[at..at + take]);
        true
    }
}

fuzz_target!(|input: Input| {
    let Input { rx, tx, segments } = input;
    let mut streams = Streams::default();
    streams.begin(rx, tx);
    let mut next = [rx, tx];
    let (mut started, mut ended) = (0_u64, 0_u64);
    for Segment { is_clients, gap, payload } in segments {
        let len = u32::try_from(payload.len()).expect("inputs are small");
        if len == 0 {
            continue;
        }
        let seq = next[usize::from(!is_clients)].wrapping_add_signed(gap.into());
        next[usize::from(!is_clients)] = seq.wrapping_add(len);
        let last = streams.last;
        let mut walk = if is_clients { streams.rx } else { streams.tx };
        let Entry::At(mut pos) = walk.enter(seq, len, &head_of(&payload), last) else {
            *(if is_clients { &mut streams.rx } else { &mut streams.tx }) = walk;
            continue;
        };
        for _ in 0..FRAMES {
            let before = pos;
            let Some(frame) = walk.step(&mut pos, len, &Payload(&payload)) else { break };
            assert!(pos >= before, "the walk goes on");
            streams.rx.blind |= u32::from(is_clients) & walk.blind;
            let change = if is_clients { streams.client(frame, true) } else { streams.server(frame) };
            walk.blind &= streams.rx.blind;
            started += u64::from(change.started);
            ended += u64::from(change.ended);
            assert!(ended <= started, "nothing ends that has not begun");
            assert_eq!(started - ended, streams.open.into(), "what has begun and not ended is open");
        }
        walk.leave(seq, pos);
        *(if is_clients { &mut streams.rx } else { &mut streams.tx }) = walk;
    }
});
