//! Requests, segment by segment: what the peers did is what was counted.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::node::{Node, pair};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// Sends and waits until it has arrived, so that the kernel has seen it.
fn send(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).unwrap();
    let mut read = vec![0; bytes.len()];
    to.read_exact(&mut read).unwrap();
    assert_eq!(read, bytes);
}

fn one(addr: &str) -> (Node, TcpListener) {
    let mut node = Node::new();
    let listener = node.listen(1, "a1", addr);
    (node, listener)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn requests_of_kept_connections_are_counted_and_are_in_flight_until_they_are_answered() {
    let (node, listener) = one("127.0.8.1:0");
    let (mut client, mut server) = pair(&listener);
    assert_eq!((node.requests(1), node.connections(1)), ((0, 0), (1, 0, 0)));
    for number in 1..=50 {
        send(&mut client, &mut server, GET);
        assert_eq!(node.requests(1), (number, 1));
        send(&mut server, &mut client, OK);
        assert_eq!(node.requests(1), (number, 0));
    }
    drop((client, server));
    let sum = node.settles(1);
    assert_eq!((sum.requests(), sum.opened, sum.failed), (50, 1, 0));
    assert_eq!(sum.first_bytes.iter().sum::<u64>(), 50);
    assert!(sum.srtt_us > 0, "{sum:?}");
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn ipv6_and_dual_stack_listeners_are_counted_alike() {
    let mut node = Node::new();
    let six = node.listen(1, "a1", "[::1]:0");
    let any = node.socket_of("b2", || TcpListener::bind("[::]:0").unwrap());
    let port = any.local_addr().unwrap().port();
    node.list(2, "b2", ([127, 0, 8, 2], port).into());
    for (listener, id, addr) in [(&six, 1, six.local_addr().unwrap()), (&any, 2, ([127, 0, 8, 2], port).into())] {
        let mut client = TcpStream::connect(addr).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        send(&mut client, &mut server, GET);
        assert_eq!(node.requests(id), (1, 1));
        send(&mut server, &mut client, OK);
        drop((client, server));
        assert_eq!(node.settles(id).requests(), 1);
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn bodies_of_methods_split_heads_and_interim_answers_are_one_request_each() {
    let (node, listener) = one("127.0.8.1:0");
    let (mut client, mut server) = pair(&listener);
    send(&mut client, &mut server, b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n");
    send(&mut server, &mut client, b"HTTP/1.1 100 Continue\r\n\r\n");
    for _ in 0..20 {
        send(&mut client, &mut server, &b"GET / HTTP/1.1\r\n".repeat(100));
        assert_eq!(node.requests(1), (1, 1));
    }
    send(&mut server, &mut client, OK);
    assert_eq!(node.requests(1), (1, 0));
    for byte in GET {
        send(&mut client, &mut server, &[*byte]);
    }
    assert_eq!(node.requests(1), (2, 1));
    send(&mut server, &mut client, OK);
    send(&mut client, &mut server, b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n\r\nbody");
    send(&mut server, &mut client, &[b"HTTP/1.1 100 Continue\r\n\r\n", OK].concat());
    assert_eq!(node.requests(1), (3, 0), "both answers in one segment");
    drop((client, server));
    assert_eq!(node.settles(1).requests(), 3);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_connection_that_turns_into_another_protocol_is_in_flight_until_it_closes() {
    let (node, listener) = one("127.0.8.1:0");
    let (mut client, mut server) = pair(&listener);
    send(&mut client, &mut server, b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n");
    send(&mut server, &mut client, b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
    for _ in 0..50 {
        send(&mut client, &mut server, b"GET a frame");
        send(&mut server, &mut client, b"HTTP a frame");
    }
    assert_eq!(node.requests(1), (1, 1));
    drop((client, server));
    assert_eq!(node.settles(1).requests(), 1);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_reset_ends_what_is_in_flight_and_is_a_failure() {
    let (node, listener) = one("127.0.8.1:0");
    for by_client in [true, false] {
        let (mut client, mut server) = pair(&listener);
        send(&mut client, &mut server, GET);
        assert_eq!(node.requests(1).1, 1);
        let breaks_off = if by_client { &client } else { &server };
        socket2::SockRef::from(breaks_off).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(if by_client { client } else { server });
        node.settles(1);
    }
    assert_eq!((node.requests(1), node.connections(1)), ((2, 0), (2, 2, 2)));
}

/// A reset that somebody else sends in the client's name, who knows its address and nothing more.
fn forge_reset(client: &TcpStream) {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (client.local_addr().unwrap(), client.peer_addr().unwrap()) else {
        panic!("of IPv4 alone")
    };
    let mut segment = [0_u8; 20];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    (segment[7], segment[12], segment[13]) = (1, 5 << 4, 4);
    let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, 6, 0, 20], &segment].concat();
    let words = pseudo.chunks(2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let sum = words.fold(0_u16, |sum, word| {
        let (sum, carried) = sum.overflowing_add(word);
        sum + u16::from(carried)
    });
    segment[16..18].copy_from_slice(&(!sum).to_be_bytes());
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
    raw.bind(&SocketAddr::from((*from.ip(), 0)).into()).unwrap();
    raw.send_to(&segment, &SocketAddr::from((*to.ip(), 0)).into()).unwrap();
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_reset_that_the_pods_kernel_does_not_accept_ends_nothing() {
    let (node, listener) = one("127.0.8.1:0");
    let (mut client, mut server) = pair(&listener);
    send(&mut client, &mut server, GET);
    forge_reset(&client);
    assert_eq!((node.requests(1), node.connections(1)), ((1, 1), (1, 0, 0)));
    send(&mut server, &mut client, OK);
    send(&mut client, &mut server, GET);
    assert_eq!(node.requests(1), (2, 1));
    drop((client, server));
    assert_eq!(node.settles(1).requests(), 2);
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn another_protocol_counts_by_the_time_in_which_its_bytes_move() {
    let (node, listener) = one("127.0.8.1:0");
    let (mut client, mut server) = pair(&listener);
    send(&mut server, &mut client, b"220 mail ready\r\n");
    send(&mut client, &mut server, b"EHLO h\r\n");
    let sum = node.counted(1);
    assert_eq!((sum.requests(), sum.outstanding()), (1, 0));
    assert!((1..=2).contains(&sum.moving), "{sum:?}");
    drop((client, server));
    node.settles(1);
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(content.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(content);
    bytes
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[test]
#[ignore = "needs root and Linux 5.17: run by cargo xtask test"]
fn streams_of_http2_are_requests_however_their_frames_are_cut() {
    let (node, listener) = one("127.0.8.1:0");
    for cut in [1, 2, 3, 7, 8, 9, 10, 11, 1000] {
        let before = node.requests(1).0;
        let (mut client, mut server) = pair(&listener);
        // Nobody cuts the preface; a first byte alone would be taken for a method's.
        send(&mut client, &mut server, PREFACE);
        let mut asked = frame(4, 0, 0, &[]);
        for stream in [1, 3, 5] {
            asked.extend(frame(1, 4, stream, b"head"));
            asked.extend(frame(0, 1, stream, &frame(1, 5, 99, b"content that looks like a frame")));
        }
        for bytes in asked.chunks(cut) {
            send(&mut client, &mut server, bytes);
        }
        assert_eq!(node.requests(1), (before + 3, 3), "cut into {cut}");
        let mut answered = frame(4, 0, 0, &[]);
        answered.extend(frame(1, 4, 3, b"head"));
        answered.extend(frame(0, 1, 3, b"body"));
        answered.extend(frame(1, 5, 1, b"trailers alone"));
        for bytes in answered.chunks(cut) {
            send(&mut server, &mut client, bytes);
        }
        assert_eq!(node.requests(1), (before + 3, 1));
        send(&mut client, &mut server, &frame(3, 0, 5, &[0; 4]));
        assert_eq!(node.requests(1), (before + 3, 0));
        send(&mut client, &mut server, &frame(1, 4, 7, b"head"));
        assert_eq!(node.requests(1), (before + 4, 1));
        drop((client, server));
        node.settles(1);
    }
}

#[test]
#[ignore = "needs root and Linux 5.17: run by cargo xtask test"]
fn a_server_of_http2_that_speaks_first_is_understood() {
    let (node, listener) = one("127.0.8.1:0");
    let (mut client, mut server) = pair(&listener);
    send(&mut server, &mut client, &frame(4, 0, 0, &[0; 6]));
    send(&mut client, &mut server, PREFACE);
    send(&mut client, &mut server, &[frame(4, 0, 0, &[]), frame(1, 5, 1, b"head")].concat());
    assert_eq!(node.requests(1), (1, 1));
    send(&mut server, &mut client, &frame(1, 5, 1, b"head"));
    assert_eq!(node.requests(1), (1, 0));
    drop((client, server));
    node.settles(1);
}

#[test]
#[ignore = "needs root and Linux 5.17: run by cargo xtask test"]
fn a_segment_of_thousands_of_frames_is_looked_at_to_its_end() {
    let (node, listener) = one("127.0.8.1:0");
    let (mut client, mut server) = pair(&listener);
    send(&mut client, &mut server, PREFACE);
    let acknowledged = frame(8, 0, 0, &[0, 0, 0, 1]).repeat(3000);
    send(&mut client, &mut server, &[acknowledged, frame(1, 5, 1, b"head")].concat());
    assert_eq!(node.requests(1), (1, 1));
    let streamed = frame(0, 0, 1, b"a message").repeat(3000);
    send(&mut server, &mut client, &[frame(1, 4, 1, b"head"), streamed, frame(1, 5, 1, b"trailers")].concat());
    assert_eq!(node.requests(1), (1, 0));
    drop((client, server));
    assert_eq!(node.settles(1).requests(), 1);
}
