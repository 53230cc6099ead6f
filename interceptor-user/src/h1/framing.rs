//! Where a message's body ends (RFC 9112 §6.3), and whether its connection may carry another message.

use http::{Method, StatusCode, Version};

use super::{
    Malformed,
    fields::{Fields, Known},
    parse::{RequestHead, ResponseHead},
};

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none, and nothing is said of it.
    None,
    /// This many bytes.
    Length(u64),
    Chunked,
    /// All that comes until the connection is closed; responses alone.
    UntilClose,
}

/// Where a request's body ends.
pub(crate) fn request(head: &RequestHead) -> Result<Framing, Malformed> {
    if head.fields.has(Known::TransferEncoding) {
        // A length beside it is an attempt to smuggle, or looks like one to whoever is next (RFC 9112 §6.1).
        if head.version == Version::HTTP_10 || head.fields.has(Known::ContentLength) {
            return Err(Malformed::Coding);
        }
        return chunked(&head.fields);
    }
    let mut lengths = head.fields.all(Known::ContentLength);
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(Framing::None),
        // Said twice, even if the same, it is read in two ways by somebody.
        (Some(only), None) => number(only).map(Framing::Length).ok_or(Malformed::Length),
        (Some(_), Some(_)) => Err(Malformed::Length),
    }
}

/// Where the body of the response to a request of `method` ends. The head must not be an interim one.
pub(crate) fn response(head: &ResponseHead, method: &Method) -> Result<Framing, Malformed> {
    let length = length(&head.fields)?;
    if *method == Method::HEAD || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Framing::None);
    }
    if head.fields.has(Known::TransferEncoding) {
        return chunked(&head.fields);
    }
    Ok(length.map_or(Framing::UntilClose, Framing::Length))
}

/// Whether the connection may carry another message after this one.
pub(crate) fn is_persistent(version: Version, fields: &Fields) -> bool {
    let mut keep = version == Version::HTTP_11;
    for token in fields.all(Known::Connection).flat_map(|list| list.split(|byte| *byte == b',')) {
        let token = token.trim_ascii();
        if token.eq_ignore_ascii_case(b"close") {
            return false;
        }
        keep |= token.eq_ignore_ascii_case(b"keep-alive");
    }
    // A length beside chunks may be an attempt to smuggle; what follows the message is not to be trusted.
    keep && !(fields.has(Known::TransferEncoding) && (fields.has(Known::ContentLength) || version == Version::HTTP_10))
}

fn chunked(fields: &Fields) -> Result<Framing, Malformed> {
    let mut codings = fields.all(Known::TransferEncoding);
    match (codings.next(), codings.next()) {
        (Some(only), None) if only.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        _ => Err(Malformed::Coding),
    }
}

/// The one length, even if it is given several times.
pub(crate) fn length(fields: &Fields) -> Result<Option<u64>, Malformed> {
    let mut found = None;
    for value in fields.all(Known::ContentLength).flat_map(|list| list.split(|byte| *byte == b',')) {
        let value = number(value.trim_ascii()).ok_or(Malformed::Length)?;
        if found.is_some_and(|found| found != value) {
            return Err(Malformed::Length);
        }
        found = Some(value);
    }
    Ok(found)
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{super::parse::Progress, *};

    fn of_request(lines: &str) -> Result<Framing, Malformed> {
        let text = format!("POST / HTTP/1.1\r\n{lines}\r\n");
        request(&Progress::default().request(&mut BytesMut::from(&*text)).unwrap().unwrap())
    }

    fn of_response(method: &Method, start: &str, lines: &str) -> Result<Framing, Malformed> {
        response(&head(start, lines), method)
    }

    fn head(start: &str, lines: &str) -> ResponseHead {
        Progress::default().response(&mut BytesMut::from(&*format!("{start}\r\n{lines}\r\n"))).unwrap().unwrap()
    }

    #[test]
    fn a_request_s_body_ends_where_its_head_says() {
        assert_eq!(of_request(""), Ok(Framing::None));
        assert_eq!(of_request("Content-Length: 0\r\n"), Ok(Framing::Length(0)));
        assert_eq!(of_request("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(of_request("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for lines in [
            "5\r\nContent-Length: 6",
            "5\r\nContent-Length: 5",
            "5, 5",
            "+5",
            "-1",
            "",
            "5,",
            "99999999999999999999999",
            "0x5",
            "5 5",
        ] {
            assert_eq!(of_request(&format!("Content-Length: {lines}\r\n")), Err(Malformed::Length), "{lines}");
        }
        for lines in ["gzip", "chunked, identity", "chunked\r\nTransfer-Encoding: chunked", "gzip, chunked", "xchunked"]
        {
            assert_eq!(of_request(&format!("Transfer-Encoding: {lines}\r\n")), Err(Malformed::Coding), "{lines}");
        }
        let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(of_request(both), Err(Malformed::Coding));
        // A response's is believed as Go's transport does, but nothing behind it.
        assert_eq!(of_response(&Method::GET, "HTTP/1.1 200 OK", both), Ok(Framing::Chunked));
        assert_eq!(of_response(&Method::GET, "HTTP/1.1 200 OK", "Content-Length: 5, 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(of_response(&Method::GET, "HTTP/1.1 200 OK", "Content-Length: 5, 6\r\n"), Err(Malformed::Length));
    }

    #[test]
    fn some_responses_have_no_body_whatever_they_say() {
        let length = "Content-Length: 5\r\n";
        assert_eq!(of_response(&Method::HEAD, "HTTP/1.1 200 OK", length), Ok(Framing::None));
        assert_eq!(of_response(&Method::GET, "HTTP/1.1 304 Not Modified", length), Ok(Framing::None));
        assert_eq!(of_response(&Method::GET, "HTTP/1.1 204 No Content", length), Ok(Framing::None));
        assert_eq!(of_response(&Method::GET, "HTTP/1.1 200 OK", length), Ok(Framing::Length(5)));
        assert_eq!(of_response(&Method::GET, "HTTP/1.1 200 OK", ""), Ok(Framing::UntilClose));
    }

    #[test]
    fn a_connection_is_kept_as_version_and_field_say() {
        let kept = |start: &str, lines: &str| {
            let head = head(start, lines);
            is_persistent(head.version, &head.fields)
        };
        assert!(kept("HTTP/1.1 200 OK", ""));
        assert!(!kept("HTTP/1.1 200 OK", "Connection: x, Close\r\n"));
        assert!(!kept("HTTP/1.0 200 OK", ""));
        assert!(kept("HTTP/1.0 200 OK", "Connection: keep-alive\r\n"));
        assert!(!kept("HTTP/1.1 200 OK", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"));
    }
}
