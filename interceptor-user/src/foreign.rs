//! What must hold of foreign bytes, whatever they are. The fuzz targets run it, and tests with bytes at random; nothing else.

use bytes::BytesMut;
use http::{Method, StatusCode, Version};

use crate::{
    h1::{
        decode::{Decoder, Step},
        encode,
        fields::{Fields, Known},
        framing::{self, Framing},
        parse::{Progress, RequestHead, ResponseHead},
    },
    proxy::{
        forward::Outbound,
        headers::{self, Hop, Outgoing},
        target::Target,
    },
    trust::Trust,
};

/// A request's head: the same however its bytes come, and for the pod what it was here. The first byte says where the bytes
/// are cut.
pub fn request_head(bytes: &[u8]) {
    let Some((left, right)) = cut(bytes) else { return };
    let read = |progress: &mut Progress, input: &mut BytesMut| progress.request(input);
    let whole = heads(&[left, right].concat(), &[], read);
    let pieces = heads(left, right, read);
    if let Some((head, rest)) = &whole {
        let (again, again_rest) = pieces.as_ref().expect("a head comes in pieces, too");
        assert_eq!((lines(&head.fields), rest), (lines(&again.fields), again_rest));
        assert_eq!((&head.method, &head.target, head.version), (&again.method, &again.target, again.version));
        assert_goes_on(head);
    } else {
        assert!(pieces.is_none(), "pieces make no head of what is none");
    }
}

/// A response's head, likewise.
pub fn response_head(bytes: &[u8]) {
    let Some((left, right)) = cut(bytes) else { return };
    let read = |progress: &mut Progress, input: &mut BytesMut| progress.response(input);
    let whole = heads(&[left, right].concat(), &[], read);
    let pieces = heads(left, right, read);
    if let Some((head, rest)) = &whole {
        let (again, again_rest) = pieces.as_ref().expect("a head comes in pieces, too");
        assert_eq!((lines(&head.fields), rest), (lines(&again.fields), again_rest));
        assert_eq!((head.status, head.version), (again.status, again.version));
        assert_comes_back(head);
    } else {
        assert!(pieces.is_none(), "pieces make no head of what is none");
    }
}

/// A chunked body: the same however its bytes come.
pub fn chunked_body(bytes: &[u8]) {
    let Some((left, right)) = cut(bytes) else { return };
    assert_eq!(decoded(&[&[left, right].concat()]), decoded(&[left, right]));
}

fn cut(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (cut, bytes) = bytes.split_first()?;
    Some(bytes.split_at(usize::from(*cut).min(bytes.len())))
}

/// The head of what comes in two pieces, and what is behind it.
fn heads<H, E>(
    left: &[u8],
    right: &[u8],
    read: impl Fn(&mut Progress, &mut BytesMut) -> Result<Option<H>, E>,
) -> Option<(H, BytesMut)> {
    let (mut progress, mut input) = (Progress::default(), BytesMut::from(left));
    let first = read(&mut progress, &mut input).ok()?;
    input.extend_from_slice(right);
    let head = match first {
        Some(head) => head,
        None => read(&mut progress, &mut input).ok()??,
    };
    Some((head, input))
}

fn lines(fields: &Fields) -> Vec<&[u8]> {
    fields.iter().map(|field| fields.line(field)).collect()
}

/// What a pod is sent is one request, and the one that was asked.
fn assert_goes_on(head: &RequestHead) {
    let Ok(framing) = framing::request(head) else { return };
    let connect = || (head.method == Method::CONNECT && !head.target.is_empty()).then(|| Target::connect(&head.target));
    let Some(target) = Target::parse(&head.target).or_else(connect) else { return };
    let Some(host) = headers::host(&head.fields, &target, head.version) else { return };
    let hop = Hop::of(&head.fields);
    let outbound = Outbound {
        method: &head.method,
        path_and_query: &target.path_and_query,
        fields: &head.fields,
        outgoing: Outgoing {
            host: &host,
            client: b"192.0.2.1",
            encrypted: false,
            trust: Trust::Given,
            trace: None,
            hop: &hop,
            upgradable: head.version == Version::HTTP_11,
        },
        interim: None,
        extended: None,
    };
    let mut output = Vec::new();
    outbound.write(framing, &mut output);
    let mut input = BytesMut::from(&output[..]);
    let again = Progress::default().request(&mut input).expect("what goes on is a head").expect("and all of one");
    assert!(input.is_empty(), "and nothing else");
    assert_eq!((&again.method, framing::request(&again)), (&head.method, Ok(framing)));
    assert_eq!(again.fields.all(Known::Host).collect::<Vec<_>>(), [&host[..]]);
    assert_eq!(again.fields.all(Known::ForwardedFor).count(), 1);
    let sent = if target.path_and_query.is_empty() { &host } else { &target.path_and_query };
    assert_eq!(&again.target, sent);
}

/// What a client is sent is one response, and the one that was given.
fn assert_comes_back(head: &ResponseHead) {
    let Ok(framing) = framing::response(head, &Method::GET) else { return };
    if head.status.is_informational() || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return;
    }
    let framing = if framing == Framing::UntilClose { Framing::Chunked } else { framing };
    let mut output = Vec::new();
    encode::status_line(&mut output, head.status);
    headers::response(&head.fields, &Hop::of(&head.fields), Some(true), false, &mut output);
    encode::framing(&mut output, framing);
    output.extend_from_slice(b"\r\n");
    let mut input = BytesMut::from(&output[..]);
    let again = Progress::default().response(&mut input).expect("what comes back is a head").expect("and all of one");
    assert!(input.is_empty(), "and nothing else");
    assert_eq!((again.status, framing::response(&again, &Method::GET)), (head.status, Ok(framing)));
    assert_eq!(again.fields.all(Known::ColdStart).collect::<Vec<_>>(), [b"true"]);
}

/// A body's data and trailers, whether that was all, and what is behind it.
type Decoded = (Vec<u8>, Option<http::HeaderMap>, bool, Vec<u8>);

/// What comes of pieces; `None` for what is no body.
fn decoded(pieces: &[&[u8]]) -> Option<Decoded> {
    let (mut decoder, mut input) = (Decoder::new(Framing::Chunked), BytesMut::new());
    let (mut data, mut trailers) = (Vec::new(), None);
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input).ok()? {
                Step::Data(bytes) => data.extend_from_slice(&bytes),
                Step::Trailers(map) => trailers = Some(map),
                Step::End | Step::Need => break,
            }
        }
    }
    Some((data, trailers, decoder.is_done(), input.to_vec()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces of heads and bodies, and bytes at random.
    fn bytes(known: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let random = prop::collection::vec(any::<u8>(), 0..8);
        let known = prop::sample::select(known).prop_map(|piece| piece.as_bytes().to_vec());
        let pieces = prop::collection::vec(prop_oneof![1 => random, 8 => known], 0..12);
        (any::<u8>(), pieces).prop_map(|(cut, pieces)| [&[cut][..], &pieces.concat()].concat())
    }

    const FIELDS: &[&str] = &[
        "GET / HTTP/1.1\r\n",
        "HTTP/1.1 200 OK\r\n",
        "Host: a\r\n",
        "Host: [::1]:80\r\n",
        "Connection: close, x, upgrade\r\n",
        "Upgrade: y\r\n",
        "X: \r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "TE: trailers\r\n",
        "Forwarded: for=a\r\n",
        "X-Forwarded-For: b\r\n",
        " ",
        "\t",
        " \n",
        " goes on\r\n",
        "\r",
        "\n",
        "\r\n",
    ];

    proptest! {
        #[test]
        fn heads_are_read_in_one_way(bytes in bytes(FIELDS)) {
            let begun = |start: &str| [&bytes[..1.min(bytes.len())], start.as_bytes(), &bytes[1.min(bytes.len())..], b"\r\n"].concat();
            request_head(&bytes);
            response_head(&bytes);
            request_head(&begun("POST http://b/?c HTTP/1.1\r\n"));
            request_head(&begun("CONNECT b:1 HTTP/1.1\r\n"));
            response_head(&begun("HTTP/1.1 200 OK\r\n"));
        }

        #[test]
        fn chunks_are_read_in_one_way(bytes in bytes(&["3\r\nabc\r\n", "0\r\n", "\r\n", "a;b=c\r\n", "X: y\r\n", "ffffffffffffffff\r\n"])) {
            chunked_body(&bytes);
        }
    }
}
