//! Heads out of bytes: start line and fields, or that more bytes are needed. Foreign input: refuses, never panics.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version};
use httparse::{Header, ParserConfig, Status};

use super::{
    MAX_HEAD, MAX_LINES, Malformed,
    fields::{Field, Fields, Known},
};

/// Lines for which there is room without an allocation.
const USUAL_LINES: usize = 48;

/// A request's head.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    /// As it came: origin form, absolute form or an asterisk.
    pub(crate) target: Bytes,
    pub(crate) version: Version,
    pub(crate) fields: Fields,
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) fields: Fields,
}

/// Finds the end of a head that comes in pieces, without looking at any byte twice.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    seen: usize,
}

// === impl Progress ===

impl Progress {
    /// Whether `input` is worth parsing: the first time, and then when it has an empty line.
    fn is_due(&mut self, input: &[u8]) -> bool {
        let from = self.seen.saturating_sub(3);
        let first = self.seen == 0;
        self.seen = input.len();
        first || input[from..].windows(2).any(|pair| pair == b"\n\n" || pair == b"\n\r")
    }

    fn pending<T>(input: &[u8]) -> Result<Option<T>, Malformed> {
        if input.len() >= MAX_HEAD { Err(Malformed::TooLarge) } else { Ok(None) }
    }

    /// Takes a request's head from the front of `input`, once it is there.
    pub(crate) fn request(&mut self, input: &mut BytesMut) -> Result<Option<RequestHead>, Malformed> {
        if input.is_empty() || !self.is_due(input) {
            return Self::pending(input);
        }
        let mut room = [const { MaybeUninit::uninit() }; USUAL_LINES];
        let parsed = match parse_request(input, &mut room) {
            Err(httparse::Error::TooManyHeaders) => parse_request(input, &mut vec![MaybeUninit::uninit(); MAX_LINES]),
            parsed => parsed,
        };
        let Some(RawRequest { length, method, target, version, list }) =
            parsed.map_err(|error| malformed_request(error, input))?
        else {
            return Self::pending(input);
        };
        *self = Self::default();
        if length > MAX_HEAD {
            return Err(Malformed::TooLarge);
        }
        let bytes = input.split_to(length).freeze();
        let target = bytes.slice(target);
        Ok(Some(RequestHead { method, target, version, fields: Fields::new(bytes, list) }))
    }

    /// Takes a response's head from the front of `input`, once it is there.
    pub(crate) fn response(&mut self, input: &mut BytesMut) -> Result<Option<ResponseHead>, Malformed> {
        if input.is_empty() || !self.is_due(input) {
            return Self::pending(input);
        }
        let mut parsed = parse_response_of_any_length(input);
        if parsed.is_err() {
            match unfold(input) {
                Folds::None => {}
                Folds::Unfinished => return Self::pending(input),
                Folds::Unfolded(unfolded) => {
                    *input = unfolded;
                    parsed = parse_response_of_any_length(input);
                }
            }
        }
        let Some(RawResponse { length, code, version, list }) = parsed.map_err(malformed)? else {
            return Self::pending(input);
        };
        *self = Self::default();
        if length > MAX_HEAD {
            return Err(Malformed::TooLarge);
        }
        let status = StatusCode::from_u16(code).map_err(|_invalid| Malformed::Head)?;
        let bytes = input.split_to(length).freeze();
        Ok(Some(ResponseHead { status, version, fields: Fields::new(bytes, list) }))
    }
}

struct RawRequest {
    length: usize,
    method: Method,
    target: std::ops::Range<usize>,
    version: Version,
    list: Vec<Field>,
}

struct RawResponse {
    length: usize,
    code: u16,
    version: Version,
    list: Vec<Field>,
}

fn parse_request<'a>(
    input: &'a [u8],
    room: &mut [MaybeUninit<Header<'a>>],
) -> Result<Option<RawRequest>, httparse::Error> {
    let mut request = httparse::Request::new(&mut []);
    let status = ParserConfig::default().parse_request_with_uninit_headers(&mut request, input, room)?;
    let Status::Complete(length) = status else { return Ok(None) };
    let method = request.method.unwrap_or_default();
    let method = Method::from_bytes(method.as_bytes()).map_err(|_invalid| httparse::Error::Token)?;
    let target = place(input, request.path.unwrap_or_default().as_bytes());
    let version = version(request.version);
    Ok(Some(RawRequest { length, method, target, version, list: list(input, request.headers) }))
}

fn parse_response_of_any_length(input: &[u8]) -> Result<Option<RawResponse>, httparse::Error> {
    let mut room = [const { MaybeUninit::uninit() }; USUAL_LINES];
    match parse_response(input, &mut room) {
        Err(httparse::Error::TooManyHeaders) => parse_response(input, &mut vec![MaybeUninit::uninit(); MAX_LINES]),
        parsed => parsed,
    }
}

fn parse_response<'a>(
    input: &'a [u8],
    room: &mut [MaybeUninit<Header<'a>>],
) -> Result<Option<RawResponse>, httparse::Error> {
    let mut response = httparse::Response::new(&mut []);
    let status = ParserConfig::default().parse_response_with_uninit_headers(&mut response, input, room)?;
    let Status::Complete(length) = status else { return Ok(None) };
    let (code, version) = (response.code.unwrap_or_default(), version(response.version));
    Ok(Some(RawResponse { length, code, version, list: list(input, response.headers) }))
}

/// What a response's head has of fields that go on in a line that begins with a blank.
enum Folds {
    None,
    /// Some, but the head's end is not there yet: what comes may belong to the last.
    Unfinished,
    /// The input with one line for each field.
    Unfolded(BytesMut),
}

/// Makes one line of each folded field, as RFC 9112 §5.2 leaves to proxies for responses, and Go does it: with one space between. Only
/// of a head that is there to its end, so that it is the same however its bytes come.
fn unfold(input: &[u8]) -> Folds {
    let mut unfolded = BytesMut::with_capacity(input.len() + 2);
    let (mut rest, mut lines, mut folds) = (input, 0, false);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        if line.is_empty() && lines > 0 {
            if !folds {
                return Folds::None;
            }
            unfolded.extend_from_slice(b"\r\n\r\n");
            unfolded.extend_from_slice(rest);
            return Folds::Unfolded(unfolded);
        }
        if goes_on(line, lines) {
            folds = true;
            while let Some(b' ' | b'\t') = unfolded.last() {
                unfolded.truncate(unfolded.len() - 1);
            }
            unfolded.extend_from_slice(b" ");
            unfolded.extend(line.iter().skip_while(|byte| matches!(byte, b' ' | b'\t')));
        } else {
            unfolded.extend_from_slice(if lines == 0 { b"" } else { b"\r\n" });
            unfolded.extend_from_slice(line);
        }
        lines += usize::from(lines > 0 || !line.is_empty());
    }
    if folds || goes_on(rest, lines) { Folds::Unfinished } else { Folds::None }
}

/// Whether a line behind so many others goes on with the one before it: the status line is none that could.
fn goes_on(line: &[u8], lines: usize) -> bool {
    lines > 1 && matches!(line.first(), Some(b' ' | b'\t'))
}

fn list(input: &[u8], headers: &[Header<'_>]) -> Vec<Field> {
    let field = |header: &Header<'_>| {
        let name = header.name.as_bytes();
        Field::new(place(input, name), place(input, header.value), Known::of(name))
    };
    headers.iter().map(field).collect()
}

/// Where in `input` a part of it lies.
fn place(input: &[u8], part: &[u8]) -> std::ops::Range<usize> {
    // What is empty may lie anywhere.
    let start = part.as_ptr().addr().saturating_sub(input.as_ptr().addr()).min(input.len() - part.len());
    start..start + part.len()
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// A request line that is right but for the number of its version has one that is not served.
fn malformed_request(error: httparse::Error, input: &[u8]) -> Malformed {
    let line = input.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    match (error, words.next(), words.next()) {
        (httparse::Error::Version, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Malformed::Version
        }
        _ => malformed(error),
    }
}

fn malformed(error: httparse::Error) -> Malformed {
    match error {
        httparse::Error::TooManyHeaders => Malformed::TooLarge,
        httparse::Error::HeaderName
        | httparse::Error::HeaderValue
        | httparse::Error::NewLine
        | httparse::Error::Status
        | httparse::Error::Token
        | httparse::Error::Version => Malformed::Head,
    }
}

/// The fields of a trailer section, which ends with an empty line at the end of `input`.
pub(crate) fn trailers(input: &[u8]) -> Result<http::HeaderMap, Malformed> {
    let mut room = vec![httparse::EMPTY_HEADER; USUAL_LINES];
    let lines = match httparse::parse_headers(input, &mut room) {
        // An empty line before the end would have ended them for somebody else.
        Ok(Status::Complete((length, lines))) if length == input.len() => lines,
        Ok(_) | Err(_) => return Err(Malformed::Trailers),
    };
    let mut trailers = http::HeaderMap::with_capacity(lines.len());
    for line in lines {
        // What frames or routes a message has no meaning behind it, and must not get one on the next hop.
        let known = Known::of(line.name.as_bytes());
        if known.is_hop_by_hop() || matches!(known, Known::ContentLength | Known::Host) {
            continue;
        }
        let name = http::HeaderName::from_bytes(line.name.as_bytes()).map_err(|_invalid| Malformed::Trailers)?;
        let value = http::HeaderValue::from_bytes(line.value).map_err(|_invalid| Malformed::Trailers)?;
        trailers.append(name, value);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(text: &str) -> Result<Option<RequestHead>, Malformed> {
        Progress::default().request(&mut BytesMut::from(text))
    }

    fn shown(head: &RequestHead) -> String {
        let fields = head.fields.iter().map(|field| String::from_utf8_lossy(head.fields.line(field)).into_owned());
        format!("{} {:?} {:?} {:?}", head.method, head.target, head.version, fields.collect::<Vec<_>>())
    }

    #[test]
    fn a_head_is_taken_and_what_follows_is_left() {
        let mut input = BytesMut::from("GET /a?b HTTP/1.1\r\nHost: x\r\nEmpty:\r\n\r\nrest");
        let head = Progress::default().request(&mut input).unwrap().unwrap();
        assert_eq!((head.method, &head.target[..], head.version), (Method::GET, &b"/a?b"[..], Version::HTTP_11));
        assert_eq!((head.fields.first(Known::Host), head.fields.find("empty")), (Some(&b"x"[..]), Some(&b""[..])));
        assert_eq!(&input[..], b"rest");
    }

    #[test]
    fn a_response_may_lack_its_reason() {
        let mut input = BytesMut::from("HTTP/1.0 204\r\nA: b\r\n\r\n");
        let head = Progress::default().response(&mut input).unwrap().unwrap();
        assert_eq!((head.status, head.version), (StatusCode::NO_CONTENT, Version::HTTP_10));
    }

    #[test]
    fn fields_of_a_response_that_go_on_in_another_line_are_one_line() {
        let mut input = BytesMut::from("HTTP/1.1 200 OK\r\nA: b \r\n \t c\r\n\td\r\nLast: x\n y\n\r\nthe\r\n body");
        let head = Progress::default().response(&mut input).unwrap().unwrap();
        assert_eq!((head.fields.find("a"), head.fields.find("last")), (Some(&b"b c d"[..]), Some(&b"x y"[..])));
        assert_eq!(&input[..], b"the\r\n body");
        for text in [
            "HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n \rc\r\n\r\n",
        ] {
            assert_eq!(
                Progress::default().response(&mut BytesMut::from(text)).unwrap_err(),
                Malformed::Head,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_response_that_goes_on_in_other_lines_may_come_byte_by_byte() {
        let (mut input, mut progress) = (BytesMut::new(), Progress::default());
        let text = b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nD: e\r\n\r\n";
        for (number, byte) in text.iter().enumerate() {
            input.extend_from_slice(&[*byte]);
            let head = progress.response(&mut input).unwrap();
            assert_eq!(head.is_some(), number + 1 == text.len());
            if let Some(head) = head {
                assert_eq!((head.fields.find("a"), head.fields.find("d")), (Some(&b"b c"[..]), Some(&b"e"[..])));
            }
        }
    }

    #[test]
    fn more_lines_than_usual_are_read_up_to_the_limit() {
        let lines = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert_eq!(request(&lines(500)).unwrap().unwrap().fields.iter().count(), 500);
        assert_eq!(request(&lines(MAX_LINES + 1)).unwrap_err(), Malformed::TooLarge);
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for text in [
            "GET / b HTTP/1.1\r\n\r\n",
            "GET / HTTP/x\r\n\r\n",
            "GET /\0 HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\n folded: x\r\n\r\n",
            "\x16\x03",
        ] {
            assert_eq!(request(text).unwrap_err(), Malformed::Head, "{text:?}");
        }
        assert_eq!(request("GET / HTTP/2.0\r\n\r\n").unwrap_err(), Malformed::Version);
        assert!(request("GET / HT").unwrap().is_none());
    }

    #[test]
    fn trailers_cannot_frame_or_route_the_next_message() {
        let map = trailers(b"X-Sum: 1\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\nHost: h\r\n\r\n").unwrap();
        assert_eq!((map.len(), &map["x-sum"]), (1, &http::HeaderValue::from_static("1")));
        for text in ["nonsense\r\n\r\n", "X: y\n\r\nGET / HTTP/1.1\r\n\r\n", " X: y\r\n\r\n", "X : y\r\n\r\n"] {
            assert_eq!(trailers(text.as_bytes()).unwrap_err(), Malformed::Trailers, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_head_is_the_same_however_its_bytes_are_split(
            fields in prop::collection::vec(("[a-zA-Z-]{1,12}", "[ -~]{0,20}"), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let lines = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<Vec<_>>().concat();
            let text = format!("POST /p HTTP/1.1\r\n{lines}\r\nbody");
            let whole = request(&text).unwrap().unwrap();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len())).collect();
            cuts.push(text.len());
            cuts.sort_unstable();
            let (mut progress, mut input, mut from, mut head) = (Progress::default(), BytesMut::new(), 0, None);
            for cut in cuts {
                input.extend_from_slice(&text.as_bytes()[from..cut]);
                from = cut;
                if head.is_none() {
                    head = progress.request(&mut input).unwrap();
                }
            }
            prop_assert_eq!(shown(&head.unwrap()), shown(&whole));
            prop_assert_eq!(&input[..], b"body");
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = Progress::default().request(&mut BytesMut::from(&bytes[..]));
            let _ = Progress::default().response(&mut BytesMut::from(&bytes[..]));
            let _ = trailers(&bytes);
        }
    }
}
