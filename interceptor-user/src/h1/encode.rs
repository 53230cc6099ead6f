//! Bytes of messages: start lines, fields, chunks. What is written was checked when it was read or made.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use super::{
    fields::{Field, Fields},
    framing::Framing,
    io::Io,
};

/// Where the fields of a message go: bytes of HTTP/1.1, or the map of an HTTP/2 message.
pub(crate) trait Sink {
    /// A field as it came.
    fn line(&mut self, fields: &Fields, field: &Field);

    /// A field made here; its name is in lower case, and is spelled as usual where that can be seen.
    fn pair(&mut self, name: &'static str, value: &[u8]);
}

/// Writes a body's pieces onto a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoder {
    chunked: bool,
    /// What is still to come of a body of known length.
    left: Option<u64>,
}

// === impl Vec ===

impl Sink for Vec<u8> {
    fn line(&mut self, fields: &Fields, field: &Field) {
        self.extend_from_slice(fields.line(field));
        self.extend_from_slice(b"\r\n");
    }

    fn pair(&mut self, name: &'static str, value: &[u8]) {
        self.reserve(name.len() + value.len() + 4);
        spell(name, |part| self.extend_from_slice(part));
        self.extend_from_slice(b": ");
        self.extend_from_slice(value);
        self.extend_from_slice(b"\r\n");
    }
}

// === impl HeaderMap ===

impl Sink for HeaderMap {
    fn line(&mut self, fields: &Fields, field: &Field) {
        let name = http::HeaderName::from_bytes(fields.name(field));
        if let (Ok(name), Ok(value)) = (name, http::HeaderValue::from_bytes(fields.value(field))) {
            self.append(name, value);
        }
    }

    fn pair(&mut self, name: &'static str, value: &[u8]) {
        if let Ok(value) = http::HeaderValue::from_bytes(value) {
            self.append(http::HeaderName::from_static(name), value);
        }
    }
}

// === impl Encoder ===

impl Encoder {
    pub(crate) fn new(framing: Framing) -> Self {
        let left = match framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        Self { chunked: framing == Framing::Chunked, left }
    }

    /// Puts one piece behind what `io` has to send; `false` when it is more than was announced. With `whole` it can be
    /// taken back again.
    #[must_use]
    pub(crate) fn data(&mut self, io: &mut Io, data: Bytes, whole: bool) -> bool {
        let mut tail: &'static [u8] = &[];
        if data.is_empty() {
            return true;
        }
        if let Some(left) = &mut self.left {
            let Some(less) = left.checked_sub(data.len() as u64) else { return false };
            *left = less;
        } else if self.chunked {
            chunk_size(io.output(), data.len());
            tail = b"\r\n";
        }
        if whole {
            io.push_whole(data, tail);
        } else {
            io.push(data, tail);
        }
        true
    }

    /// Whether nothing more may come.
    pub(crate) fn is_full(self) -> bool {
        self.left == Some(0)
    }

    /// The end of the body; `false` when there should have been more.
    #[must_use]
    pub(crate) fn end(self, output: &mut Vec<u8>, trailers: Option<&HeaderMap>) -> bool {
        if !self.chunked {
            return self.left.is_none_or(|left| left == 0);
        }
        output.extend_from_slice(b"0\r\n");
        for (name, value) in trailers.into_iter().flatten() {
            spell(name.as_str(), |part| output.extend_from_slice(part));
            output.extend_from_slice(b": ");
            output.extend_from_slice(value.as_bytes());
            output.extend_from_slice(b"\r\n");
        }
        output.extend_from_slice(b"\r\n");
        true
    }
}

/// Gives `write` the parts of `name`, which is in lower case, as names are usually spelled: `Like-This`. Nobody has to mind,
/// but some clients and workloads do, and the add-on writes them so.
pub(crate) fn spell(name: &str, mut write: impl FnMut(&[u8])) {
    for part in name.as_bytes().split_inclusive(|byte| *byte == b'-') {
        let (first, rest) = part.split_at(1);
        write(&[first[0].to_ascii_uppercase()]);
        write(rest);
    }
}

/// The first line of a request.
pub(crate) fn request_line(output: &mut Vec<u8>, method: &Method, target: &[u8]) {
    output.extend_from_slice(method.as_str().as_bytes());
    output.push(b' ');
    output.extend_from_slice(target);
    output.extend_from_slice(b" HTTP/1.1\r\n");
}

/// The first line of a response.
pub(crate) fn status_line(output: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        return output.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    output.extend_from_slice(b"HTTP/1.1 ");
    output.extend_from_slice(status.as_str().as_bytes());
    output.push(b' ');
    match status.canonical_reason() {
        Some(reason) => output.extend_from_slice(reason.as_bytes()),
        None => output.extend_from_slice(format!("status code {}", status.as_str()).as_bytes()),
    }
    output.extend_from_slice(b"\r\n");
}

/// Makes a status line one for a client of HTTP/1.0, as Go's server does: such clients may know no other version.
pub(crate) fn as_http_1_0(status_line: &mut [u8]) {
    const MINOR: usize = "HTTP/1.".len();
    if let Some(minor) = status_line.get_mut(MINOR) {
        *minor = b'0';
    }
}

/// The field that says how the body is framed, if one does.
pub(crate) fn framing(output: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Chunked => output.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::Length(length) => {
            output.extend_from_slice(b"Content-Length: ");
            decimal(output, length);
            output.extend_from_slice(b"\r\n");
        }
    }
}

fn decimal(output: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).expect("a digit is below ten");
        number /= 10;
        if number == 0 {
            return output.extend_from_slice(&digits[at..]);
        }
    }
}

fn chunk_size(output: &mut Vec<u8>, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    output.extend((0..digits).rev().map(|digit| DIGITS[size >> (4 * digit) & 15]));
    output.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full() {
        let mut output = Vec::new();
        for number in [0, 7, 10, u64::MAX] {
            decimal(&mut output, number);
            output.push(b' ');
        }
        for size in [1, 15, 16, 0xabc, 65536] {
            chunk_size(&mut output, size);
        }
        assert_eq!(output, b"0 7 10 18446744073709551615 1\r\nf\r\n10\r\nabc\r\n10000\r\n");
    }

    #[test]
    fn names_made_here_are_spelled_as_usual() {
        let mut output = Vec::new();
        for name in ["x-keda-http-cold-start", "te", "-a--b-", ""] {
            spell(name, |part| output.extend_from_slice(part));
            output.push(b' ');
        }
        assert_eq!(output, b"X-Keda-Http-Cold-Start Te -A--B-  ");
    }

    #[test]
    fn status_lines_have_the_usual_words() {
        let mut output = Vec::new();
        for code in [200, 404, 299] {
            status_line(&mut output, StatusCode::from_u16(code).unwrap());
        }
        assert_eq!(output, b"HTTP/1.1 200 OK\r\nHTTP/1.1 404 Not Found\r\nHTTP/1.1 299 status code 299\r\n");
    }
}
