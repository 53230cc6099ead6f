//! Walks over frames, by hand and against a list of what was done.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::http1::head_of;

/// A segment's payload.
struct Payload<'a>(&'a [u8]);

impl Bytes for Payload<'_> {
    fn load(&self, at: u32, part: &mut [u8; HEAD], have: u32, take: u32) -> bool {
        let (at, have, take) = (at as usize, have as usize, take as usize);
        part[have..have + take].copy_from_slice(&self.0[at..at + take]);
        true
    }
}

/// Both directions of a connection as the programs see it.
#[derive(Default)]
struct Connection {
    streams: Streams,
    started: u32,
    ended: u32,
}

impl Connection {
    fn client(&mut self, seq: u32, payload: &[u8]) {
        self.walk(seq, payload, true);
    }

    fn server(&mut self, seq: u32, payload: &[u8]) {
        self.walk(seq, payload, false);
    }

    fn walk(&mut self, seq: u32, payload: &[u8], client: bool) {
        let len = u32::try_from(payload.len()).unwrap();
        let last = self.streams.last;
        let mut walk = if client { self.streams.rx } else { self.streams.tx };
        if let Entry::At(mut pos) = walk.enter(seq, len, &head_of(payload), last) {
            while let Some(frame) = walk.step(&mut pos, len, &Payload(payload)) {
                self.streams.rx.blind |= u32::from(client) & walk.blind;
                let change = if client { self.streams.client(frame, true) } else { self.streams.server(frame) };
                walk.blind &= self.streams.rx.blind;
                self.started += change.started;
                self.ended += change.ended;
            }
            walk.leave(seq, pos);
        }
        *(if client { &mut self.streams.rx } else { &mut self.streams.tx }) = walk;
    }

    fn outstanding(&self) -> u32 {
        assert_eq!(self.started - self.ended, self.streams.open);
        self.streams.open
    }
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(content.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(content);
    bytes
}

fn request(stream: u32) -> Vec<u8> {
    frame(HEADERS, 0x5, stream, b"head")
}

fn answer(stream: u32) -> Vec<u8> {
    frame(HEADERS, 0x5, stream, b"head")
}

#[test]
fn a_request_ends_with_the_end_of_its_stream() {
    let mut connection = Connection::default();
    connection.client(0, &request(1));
    assert_eq!(connection.outstanding(), 1);
    connection.server(0, &frame(HEADERS, 0x4, 1, b"head"));
    assert_eq!(connection.outstanding(), 1);
    connection.server(13, &frame(DATA, END_STREAM, 1, b"body"));
    assert_eq!((connection.started, connection.outstanding()), (1, 0));
}

#[test]
fn trailers_begin_nothing_and_a_reset_ends_once() {
    let mut connection = Connection::default();
    let sent = [request(1), frame(DATA, 0, 1, b"body"), request(1), frame(RST_STREAM, 0, 1, &[0; 4])].concat();
    connection.client(0, &sent);
    connection.server(0, &answer(1));
    assert_eq!((connection.started, connection.ended), (1, 1));
}

#[test]
fn content_that_looks_like_frames_is_content() {
    let mut connection = Connection::default();
    let fake = request(3).repeat(100);
    connection.client(0, &[request(1), frame(DATA, 0, 1, &fake)].concat());
    assert_eq!(connection.started, 1);
}

#[test]
fn streams_that_share_a_bit_are_told_apart() {
    let mut connection = Connection::default();
    let (mut at, mut back) = (0, 0);
    let mut send = |connection: &mut Connection, stream| {
        connection.client(at, &request(stream));
        at += 13;
    };
    send(&mut connection, 1);
    for stream in (3..=2 * BITS + 1).step_by(2) {
        send(&mut connection, stream);
        connection.server(back, &answer(stream));
        back += 13;
    }
    assert_eq!(connection.outstanding(), 1, "the first is still open");
    connection.server(back, &answer(1));
    assert_eq!((connection.started, connection.outstanding()), (BITS + 1, 0));
}

#[test]
fn after_a_gap_identifiers_tell_what_was_missed() {
    let mut connection = Connection::default();
    connection.client(0, &request(1));
    // Segments with 3, 5 and 7 do not show; the one with 9 does.
    connection.client(13 * 4, &request(9));
    assert_eq!(connection.outstanding(), 5);
    for (at, stream) in (0..).step_by(13).zip([9, 3, 1, 7, 5]) {
        connection.server(at, &answer(stream));
    }
    assert_eq!((connection.started, connection.outstanding()), (5, 0));
}

#[test]
fn an_answer_reveals_a_request_that_was_not_seen() {
    let mut connection = Connection::default();
    connection.client(13, b"in the middle of something");
    connection.server(0, &answer(1));
    assert_eq!((connection.started, connection.outstanding()), (1, 0));
    connection.client(0, &request(1));
    assert_eq!(connection.started, 1, "the late segment adds nothing");
}

#[test]
fn a_leap_of_a_stranger_cannot_cost_more_than_a_stream() {
    let mut connection = Connection::default();
    connection.client(100, &request(2 * 4000 + 1));
    assert_eq!((connection.started, connection.outstanding()), (4001, MISSED + 1));
}

/// What one side does.
#[derive(Clone, Debug)]
enum Act {
    Begin,
    Answer(prop::sample::Index),
    Body(prop::sample::Index, Vec<u8>),
    Reset(prop::sample::Index),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let index = any::<prop::sample::Index>;
    let act = prop_oneof![
        4 => Just(Act::Begin),
        3 => index().prop_map(Act::Answer),
        2 => (index(), vec(any::<u8>(), 0..40)).prop_map(|(of, body)| Act::Body(of, body)),
        1 => index().prop_map(Act::Reset),
    ];
    vec(act, 0..80)
}

/// Splits both sides' bytes into segments of any size, and compares with what was done.
fn replay(acts: Vec<Act>, sizes: &[usize]) -> (Connection, u32, BTreeSet<u32>) {
    let (mut connection, mut open, mut started) = (Connection::default(), BTreeSet::new(), 0);
    let (mut rx, mut tx) = (0_u32, 0_u32);
    let mut sizes = sizes.iter().copied().cycle();
    let mut send = |connection: &mut Connection, client: bool, bytes: &[u8]| {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (segment, after) = rest.split_at(sizes.next().unwrap().clamp(1, rest.len()));
            let seq = if client { &mut rx } else { &mut tx };
            connection.walk(*seq, segment, client);
            // A segment that comes again changes nothing.
            connection.walk(*seq, segment, client);
            *seq += u32::try_from(segment.len()).unwrap();
            rest = after;
        }
    };
    for act in acts {
        let pick = |of: prop::sample::Index| open.iter().nth(of.index(open.len().max(1))).copied();
        match act {
            Act::Begin => {
                started += 1;
                open.insert(2 * started - 1);
                send(&mut connection, true, &request(2 * started - 1));
            }
            Act::Answer(of) => {
                if let Some(stream) = pick(of) {
                    open.remove(&stream);
                    send(&mut connection, false, &answer(stream));
                }
            }
            Act::Body(of, body) => {
                if let Some(stream) = pick(of) {
                    send(&mut connection, true, &frame(DATA, 0, stream, &body));
                    send(&mut connection, false, &frame(DATA, 0, stream, &body));
                }
            }
            Act::Reset(of) => {
                if let Some(stream) = pick(of) {
                    open.remove(&stream);
                    send(&mut connection, true, &frame(RST_STREAM, 0, stream, &[0; 4]));
                }
            }
        }
    }
    (connection, started, open)
}

proptest! {
    #[test]
    fn however_the_bytes_are_cut_and_repeated_the_count_is_that_of_the_streams(
        acts in acts(), sizes in vec(1_usize..60, 1..20),
    ) {
        let (connection, started, open) = replay(acts, &sizes);
        prop_assert_eq!(connection.started, started);
        prop_assert_eq!(connection.outstanding() as usize, open.len());
    }

    #[test]
    fn no_bytes_make_more_ends_than_starts(segments in vec((any::<bool>(), 0_u32..200, vec(any::<u8>(), 1..60)), 0..50)) {
        let mut connection = Connection::default();
        for (client, seq, payload) in segments {
            connection.walk(seq, &payload, client);
            prop_assert!(connection.ended <= connection.started);
            connection.outstanding();
        }
    }
}

#[test]
fn streams_of_a_segment_are_counted_when_all_of_it_was_looked_at() {
    let mut streams = Streams::default();
    let (one, two) = (Change { started: 2, ended: 1 }, Change { started: 1, ended: 0 });
    streams.open = 3;
    streams.count_later(one);
    streams.open += 1;
    assert_eq!(streams.counted(), 3);
    streams.count_later(two);
    streams.open += 1;
    assert_eq!(streams.counted(), 3);
    streams.count_now(Change { started: 3, ended: 1 });
    assert_eq!((streams.counted(), streams.uncounted), (5, 0));
}
