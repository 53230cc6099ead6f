//! Rules of a connection, one by one and as properties of whatever is sent.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{http1::head_of, probe};

const MS: u64 = 1_000_000;

/// One connection with both sides' bytes in order.
struct Peers {
    flow: Flow,
    rx: u32,
    tx: u32,
    now: u64,
    sum: Sum,
}

/// What was added in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    opened: u32,
    closed: u32,
    failed: u32,
    started: u32,
    ended: u32,
    undone: u32,
    moving: u32,
    busy_ns: u64,
    tagged: u32,
}

impl Peers {
    fn new() -> Self {
        Self::with(false, 0)
    }

    fn with(host: bool, unseen: u32) -> Self {
        let (rx, tx) = (u32::MAX - 5, 1000);
        let mut peers =
            Self { flow: Flow::default(), rx: rx.wrapping_add(unseen), tx, now: 1 << 31, sum: Sum::default() };
        let moved = peers.flow.accept(7, host, (rx, unseen), tx, peers.now);
        peers.add(moved);
        peers
    }

    fn adopted() -> Self {
        let mut peers = Self::new();
        (peers.flow, peers.sum) = (Flow::default(), Sum::default());
        let moved = peers.flow.adopt(7, false, peers.rx, peers.tx);
        peers.add(moved);
        peers
    }

    fn add(&mut self, moved: Moved) {
        let sum = &mut self.sum;
        let one = |flag| u32::from(moved.has(flag));
        sum.tagged = sum.tagged + one(Moved::TAGGED.flags) - one(Moved::RELEASED);
        sum.opened += one(Moved::OPENED);
        sum.closed += one(Moved::CLOSED);
        sum.failed += one(Moved::FAILED);
        sum.started += moved.starts();
        sum.ended += moved.ends();
        sum.undone += moved.undos();
        sum.moving += one(Moved::MOVING);
        sum.busy_ns = sum.busy_ns.wrapping_add(moved.busy_ns);
    }

    fn clients(&self, seq: u32, payload: &[u8]) -> Segment {
        let head = head_of(payload);
        let len = u32::try_from(payload.len()).unwrap();
        let shaken = self.flow.traits & Trait::SHAKEN != 0;
        let mut says = Says::client(shaken, &head, len, |at| head_of(payload.get(at as usize..).unwrap_or_default()));
        let at = usize::try_from(probe::place(says, len)).unwrap();
        let kubelets = payload.windows(11).any(|bytes| bytes == b"kube-probe/");
        if probe::is_ours(&head_of(payload.get(at..).unwrap_or_default()))
            || (self.flow.traits & Trait::HOST != 0 && kubelets)
        {
            says |= Says::PROBE;
        }
        Segment { seq, len, says }
    }

    fn client(&mut self, payload: &[u8]) {
        self.client_at(self.rx, payload);
        self.rx = self.rx.wrapping_add(u32::try_from(payload.len()).unwrap());
    }

    fn client_at(&mut self, seq: u32, payload: &[u8]) {
        let moved = self.flow.received(&self.clients(seq, payload), self.now);
        self.add(moved);
    }

    fn server(&mut self, payload: &[u8]) {
        self.server_at(self.tx, payload);
        self.tx = self.tx.wrapping_add(u32::try_from(payload.len()).unwrap());
    }

    fn server_at(&mut self, seq: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        let moved = self.flow.sent(&Segment { seq, len, says: Says::server(&head_of(payload), len) }, self.now);
        self.add(moved);
    }

    fn close(&mut self) {
        let moved = self.flow.closed(0, self.now);
        self.add(moved);
    }

    fn outstanding(&self) -> u32 {
        self.sum.started - self.sum.ended
    }

    /// Requests ever.
    fn requests(&self) -> u32 {
        self.sum.started - self.sum.undone
    }
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[test]
fn requests_of_a_kept_connection_are_counted_one_by_one() {
    let mut peers = Peers::new();
    for number in 1..=3 {
        peers.client(GET);
        assert_eq!((peers.requests(), peers.outstanding()), (number, 1));
        peers.now += 5 * MS;
        peers.server(OK);
        assert_eq!(peers.outstanding(), 0);
    }
    peers.close();
    assert_eq!((peers.sum.opened, peers.sum.closed, peers.sum.failed, peers.sum.tagged), (1, 1, 0, 0));
    assert_eq!(peers.sum.busy_ns, 15 * MS);
}

#[test]
fn segments_that_come_again_count_once() {
    let mut peers = Peers::new();
    let (rx, tx) = (peers.rx, peers.tx);
    peers.client(GET);
    peers.client_at(rx, GET);
    peers.server(OK);
    peers.client_at(rx, GET);
    peers.server_at(tx, OK);
    assert_eq!((peers.requests(), peers.outstanding()), (1, 0));
}

#[test]
fn a_body_of_methods_is_a_body_and_an_interim_answer_is_no_answer() {
    let mut peers = Peers::new();
    peers.client(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n");
    peers.server(b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(peers.outstanding(), 1);
    for _ in 0..10 {
        peers.client(b"GET GET GET");
    }
    peers.server(OK);
    assert_eq!((peers.requests(), peers.outstanding()), (1, 0));
}

#[test]
fn a_head_behind_a_bodys_end_is_revealed_by_its_answer() {
    let mut peers = Peers::new();
    peers.client(b"POST / HTTP/1.1\r\n\r\n");
    peers.server(OK);
    peers.client(b"end of the bodyGET / HTTP/1.1\r\n\r\n");
    peers.server(OK);
    assert_eq!((peers.requests(), peers.outstanding()), (2, 0));
}

#[test]
fn a_connection_that_turns_into_another_protocol_is_one_request_until_it_closes() {
    let mut peers = Peers::new();
    peers.client(b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n");
    peers.server(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
    for _ in 0..5 {
        peers.client(b"GET data in a frame");
        peers.server(b"HTTP data in a frame");
    }
    assert_eq!((peers.requests(), peers.outstanding()), (1, 1));
    peers.close();
    assert_eq!((peers.outstanding(), peers.sum.failed), (0, 0));
}

#[test]
fn a_connection_that_closes_without_an_answer_has_failed() {
    let mut peers = Peers::new();
    peers.client(GET);
    peers.close();
    peers.close();
    assert_eq!((peers.requests(), peers.outstanding()), (1, 0));
    assert_eq!((peers.sum.failed, peers.sum.closed, peers.sum.tagged), (1, 1, 0));
}

#[test]
fn a_first_byte_that_overtakes_nothing_decides_what_is_spoken() {
    let mut peers = Peers::new();
    let first = peers.rx;
    peers.client_at(first.wrapping_add(100), b"GET in a body that came too early");
    assert_eq!(peers.requests(), 0);
    peers.client_at(first, b"\x16\x03\x01\x02\x00\x01");
    assert_eq!(peers.flow.kind, Kind::TLS);
}

#[test]
fn of_tls_only_application_data_is_a_request() {
    let mut peers = Peers::new();
    peers.client(&[22, 3, 1, 2, 0, 1]);
    peers.server(&[22, 3, 3, 0, 90, 2]);
    peers.client(&[20, 3, 3, 0, 1, 1]);
    assert_eq!(peers.requests(), 0);
    for number in 1..=2 {
        peers.client(&[23, 3, 3, 0, 80, 9]);
        assert_eq!((peers.requests(), peers.outstanding()), (number, 1));
        peers.server(&[23, 3, 3, 0, 120, 9]);
        assert_eq!(peers.outstanding(), 0);
    }
    peers.client(&[23, 3, 3, 0, 19, 9]);
    peers.close();
    assert_eq!(peers.requests(), 2, "an alert is none");
}

#[test]
fn a_pod_that_accepts_only_with_data_is_probed_by_the_kubelet_without_demand() {
    let mut peers = Peers::with(true, 90);
    peers.server(OK);
    peers.close();
    assert_eq!((peers.requests(), peers.sum.opened, peers.sum.moving), (0, 0, 0));

    let mut https = Peers::with(true, 300);
    https.server(&[22, 3, 3, 0, 90, 2]);
    https.client(&[&[20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 53][..], &[9; 53]].concat());
    https.client(&[23, 3, 3, 0, 80, 9]);
    https.server(&[23, 3, 3, 0, 120, 9]);
    https.close();
    assert_eq!((https.requests(), https.sum.opened), (0, 0));
}

#[test]
fn what_follows_a_beginning_that_was_not_seen_goes_on_with_it() {
    let mut peers = Peers::with(false, 120);
    peers.client(b"{\"the\": \"body\"}");
    assert_eq!((peers.requests(), peers.outstanding(), peers.flow.kind), (1, 1, Kind::UNKNOWN));
    peers.server(OK);
    peers.client(GET);
    peers.server(OK);
    peers.close();
    assert_eq!((peers.requests(), peers.outstanding(), peers.sum.failed), (2, 0, 0));
}

#[test]
fn a_first_request_that_came_with_the_handshake_counts_unless_it_was_none() {
    let mut peers = Peers::with(false, 30);
    assert_eq!((peers.requests(), peers.outstanding()), (1, 1));
    peers.server(OK);
    peers.client(GET);
    peers.server(OK);
    assert_eq!((peers.requests(), peers.outstanding()), (2, 0));

    let mut peers = Peers::with(false, 300);
    peers.server(&[22, 3, 3, 0, 90, 2]);
    assert_eq!((peers.requests(), peers.outstanding(), peers.flow.kind), (0, 0, Kind::TLS));

    let mut peers = Peers::with(false, 24);
    peers.server(&[0, 0, 6, 4, 0, 0, 0, 0, 0]);
    assert_eq!((peers.requests(), peers.outstanding(), peers.flow.kind), (0, 0, Kind::HTTP2));
}

#[test]
fn the_kubelets_probes_do_not_count_and_other_requests_of_its_machine_do() {
    let probe = b"GET /healthz HTTP/1.1\r\nHost: h\r\nUser-Agent: kube-probe/1.36\r\n\r\n";
    let mut peers = Peers::with(true, 0);
    peers.client(probe);
    peers.server(OK);
    peers.close();
    assert_eq!(peers.sum, Sum::default());

    let mut mute = Peers::with(true, 0);
    mute.close();
    assert_eq!(mute.sum, Sum::default());

    let mut client = Peers::with(true, 0);
    client.client(GET);
    client.server(OK);
    client.close();
    assert_eq!((client.requests(), client.sum.opened, client.sum.closed), (1, 1, 1));

    let mut from_a_pod = Peers::new();
    from_a_pod.client(probe);
    assert_eq!(from_a_pod.requests(), 1, "a pod that says that it is the kubelet is not believed");
}

#[test]
fn what_agents_ask_does_not_count_on_any_machine() {
    let probe = b"GET /healthz HTTP/1.1\r\nhost: h\r\nrouse: probe\r\n\r\n";
    let settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0\0\x02\0\0\0\0\0\x04\0rou\0\x05\0\0\x40\0";
    for (host, opened) in [(false, 1), (true, 0)] {
        for asked in [&probe[..], settings] {
            let mut peers = Peers::with(host, 0);
            peers.client(asked);
            peers.server(OK);
            peers.close();
            let counted = Sum { opened, closed: opened, ..Sum::default() };
            assert_eq!(peers.sum, counted, "{}", String::from_utf8_lossy(asked));
        }
    }
    let mut client = Peers::new();
    client.client(GET);
    client.client(probe);
    client.server(OK);
    assert_eq!(client.requests(), 1, "only a first request can say so");
}

#[test]
fn what_agents_ask_by_tls_does_not_count_on_any_machine() {
    let hello = |random: [u8; 16]| [&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &random, &[7; 178]].concat();
    let request = [&[20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 53][..], &[9; 53], &[23, 3, 3, 0, 80], &[9; 80]].concat();
    let counted = |host: bool, hello: &[u8]| {
        let mut peers = Peers::with(host, 0);
        peers.client(hello);
        peers.server(&[22, 3, 3, 0, 90, 2]);
        peers.client(&request);
        peers.server(&[23, 3, 3, 0, 80, 9]);
        peers.close();
        (peers.requests(), peers.sum.opened, peers.sum.closed, peers.outstanding())
    };
    assert_eq!(counted(false, &hello(probe::HELLO)), (0, 1, 1, 0));
    assert_eq!(counted(true, &hello(probe::HELLO)), (0, 0, 0, 0));
    assert_eq!(counted(false, &hello([5; 16])), (1, 1, 1, 0), "another's random");
    assert_eq!(counted(false, &hello(probe::HELLO)[..20]), (1, 1, 1, 0), "not all of it can be seen");
}

#[test]
fn of_its_machines_encrypted_requests_the_first_may_be_a_probe() {
    let mut peers = Peers::with(true, 0);
    peers.client(&[22, 3, 1, 2, 0, 1]);
    peers.server(&[22, 3, 3, 0, 90, 2]);
    peers.client(&[23, 3, 3, 0, 80, 9]);
    peers.server(&[23, 3, 3, 0, 80, 9]);
    assert_eq!((peers.requests(), peers.sum.opened), (0, 0));
    peers.client(&[23, 3, 3, 0, 80, 9]);
    assert_eq!((peers.requests(), peers.sum.opened, peers.outstanding()), (1, 1, 1));
}

#[test]
fn another_protocol_counts_as_one_while_bytes_move() {
    let mut peers = Peers::new();
    peers.server(b"220 mail ready\r\n");
    peers.client(b"EHLO h\r\n");
    assert_eq!((peers.requests(), peers.outstanding(), peers.sum.moving), (1, 0, 1));
    peers.now += 1 << 30;
    peers.client(b"NOOP\r\n");
    peers.server(b"250\r\n");
    assert_eq!((peers.requests(), peers.sum.moving), (1, 2));
}

#[test]
fn a_server_of_http2_may_speak_first() {
    let mut peers = Peers::new();
    peers.server(&[0, 0, 6, 4, 0, 0, 0, 0, 0]);
    assert_eq!(peers.flow.kind, Kind::HTTP2);
    assert_eq!(peers.flow.first_frame(), peers.rx.wrapping_add(24));
    assert_eq!((peers.requests(), peers.sum.opened), (0, 1));
}

#[test]
fn http2_of_which_nobody_counts_the_streams_counts_as_another_protocol_but_for_what_may_be_probes() {
    for (host, counted) in [(false, (1, 1, 2)), (true, (0, 0, 0))] {
        let mut peers = Peers::with(host, 0);
        peers.client(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert_eq!(peers.flow.kind, Kind::HTTP2);
        let moved = peers.flow.without_streams(peers.now);
        peers.add(moved);
        peers.server(&[0, 0, 6, 4, 0, 0, 0, 0, 0]);
        peers.now += 1 << 30;
        peers.client(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 130]);
        assert_eq!((peers.requests(), peers.sum.opened, peers.sum.moving), counted);
        peers.close();
        assert_eq!((peers.outstanding(), peers.sum.tagged, peers.sum.closed), (0, 0, counted.1));
    }
}

#[test]
fn a_long_answer_counts_as_one_while_bytes_move() {
    let mut peers = Peers::new();
    peers.client(GET);
    peers.server(OK);
    peers.now += 20 * MS;
    peers.server(b"more");
    assert_eq!((peers.sum.moving, peers.sum.busy_ns), (0, 20 * MS));
    for moving in 1..4 {
        peers.now += 1 << 30;
        peers.server(b"event");
        peers.server(b"event");
        assert_eq!((peers.sum.moving, peers.outstanding()), (moving, 0));
    }
}

#[test]
fn an_older_connection_counts_from_its_next_request() {
    let mut peers = Peers::adopted();
    peers.client_at(peers.rx.wrapping_sub(40), b"in the middle of a body");
    assert_eq!((peers.sum.opened, peers.sum.moving), (1, 1));
    peers.server(OK);
    peers.client(GET);
    assert_eq!(peers.outstanding(), 1);
    peers.server(OK);
    peers.close();
    assert_eq!((peers.outstanding(), peers.sum.closed), (0, 1));
}

#[test]
fn an_older_connection_s_request_counts_when_it_is_answered() {
    let mut peers = Peers::adopted();
    peers.server(OK);
    assert_eq!((peers.sum.opened, peers.sum.started, peers.outstanding()), (1, 1, 0));
    peers.client(GET);
    peers.server(OK);
    assert_eq!((peers.sum.started, peers.outstanding()), (2, 0));
}

/// What one side sends.
#[derive(Clone, Debug)]
enum Sent {
    Client(Vec<u8>),
    Server(Vec<u8>),
    Again(bool, u32, Vec<u8>),
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(GET.to_vec()),
        3 => Just(OK.to_vec()),
        1 => Just(b"HTTP/1.1 101 X\r\n\r\n".to_vec()),
        1 => Just(b"HTTP/1.1 100 X\r\n\r\n".to_vec()),
        1 => Just(vec![23, 3, 3, 0, 80, 9]),
        1 => Just(vec![20, 3, 3, 0, 1, 1]),
        1 => Just(b"PRI * HTTP/2.0\r\n\r\n".to_vec()),
        2 => vec(any::<u8>(), 1..40),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        bytes().prop_map(Sent::Client),
        bytes().prop_map(Sent::Server),
        (any::<bool>(), any::<u32>(), bytes()).prop_map(|(client, seq, bytes)| Sent::Again(client, seq, bytes)),
    ]
}

proptest! {
    #[test]
    fn whatever_is_sent_nothing_is_left_outstanding_and_nothing_ends_twice(
        all in vec(sent(), 0..40), host in any::<bool>(), unseen in prop_oneof![Just(0_u32), 1_u32..50],
    ) {
        let mut peers = Peers::with(host, unseen);
        for sent in all {
            match sent {
                Sent::Client(bytes) => peers.client(&bytes),
                Sent::Server(bytes) => peers.server(&bytes),
                Sent::Again(true, seq, bytes) => peers.client_at(seq, &bytes),
                Sent::Again(false, seq, bytes) => peers.server_at(seq, &bytes),
            }
            prop_assert!(peers.sum.ended <= peers.sum.started);
            prop_assert!(peers.outstanding() <= 1);
            prop_assert!(peers.sum.opened <= 1);
            prop_assert!(peers.sum.undone <= 1);
            peers.now += MS;
        }
        peers.close();
        peers.close();
        prop_assert_eq!(peers.outstanding(), 0);
        prop_assert_eq!(peers.sum.opened, peers.sum.closed);
        prop_assert_eq!(peers.sum.tagged, 0);
        prop_assert!(peers.sum.busy_ns < 1 << 62, "time that requests were outstanding is not negative");
    }

    #[test]
    fn requests_in_turn_are_counted_exactly_however_bodies_are_cut(
        turns in vec((vec(vec(128_u8..255, 1..30), 0..4), vec(vec(128_u8..255, 1..30), 0..4)), 0..20),
    ) {
        let mut peers = Peers::new();
        let mut expected = 0;
        for (asked, answered) in turns {
            peers.client(GET);
            expected += 1;
            for body in asked {
                peers.client(&body);
            }
            prop_assert_eq!(peers.outstanding(), 1);
            peers.server(OK);
            for body in answered {
                peers.server(&body);
            }
            prop_assert_eq!((peers.requests(), peers.outstanding()), (expected, 0));
        }
    }
}
