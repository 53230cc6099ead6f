//! What the first bytes of a TCP segment say in HTTP/1: whether they may begin a request, and which answer they begin.
//! Pure; shared by the programs and the tests on the host.

/// How many bytes of a segment's payload are looked at.
pub const HEAD: usize = 16;

/// Bytes of an answer that tells the client to go on, as all servers write it: `HTTP/1.1 100 Continue` and an empty line.
pub const CONTINUE: u32 = 25;

/// What an answer's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They begin no answer.
    None,
    /// An interim answer (1xx); the final one follows.
    Interim,
    /// 101: from here on it is another protocol.
    Switching,
    /// The answer itself.
    Final,
}

/// The first four bytes of the methods that clients are known to use, of RFC 9110, 5789, 4918, 3253, 5323 and of caches.
const METHODS: [[u8; 4]; 21] = [
    *b"GET ", *b"POST", *b"HEAD", *b"PUT ", *b"DELE", *b"OPTI", *b"PATC", *b"CONN", *b"TRAC", *b"PROP", *b"MKCO",
    *b"COPY", *b"MOVE", *b"LOCK", *b"UNLO", *b"REPO", *b"SEAR", *b"QUER", *b"LINK", *b"UNLI", *b"PURG",
];

/// Whether a segment of `len` bytes that begins with `head` may begin a request. Of a segment shorter than a method's word
/// only capitals are asked for, since a client may write its head byte by byte.
#[inline(always)]
#[must_use]
pub const fn begins_request(head: &[u8; HEAD], len: u32) -> bool {
    if len < 4 {
        let mut at = 0;
        while at < 3 {
            if at < len as usize && !(head[at].is_ascii_uppercase() || (at > 0 && head[at] == b' ')) {
                return false;
            }
            at += 1;
        }
        return len > 0;
    }
    let word = word::<0>(head);
    let mut at = 0;
    while at < METHODS.len() {
        if word == u32::from_le_bytes(METHODS[at]) {
            return true;
        }
        at += 1;
    }
    false
}

/// Which answer a segment of `len` bytes that begins with `head` begins. A status that the segment does not show whole is
/// taken for final: interim answers are too short to be split.
#[inline(always)]
#[must_use]
pub const fn answer(head: &[u8; HEAD], len: u32) -> Answer {
    if len < 4 || word::<0>(head) != u32::from_le_bytes(*b"HTTP") {
        return Answer::None;
    }
    let status = word::<8>(head);
    if len < 12 || status & 0xffff != u32::from_le_bytes(*b" 1\0\0") {
        Answer::Final
    } else if status == u32::from_le_bytes(*b" 101") {
        Answer::Switching
    } else {
        Answer::Interim
    }
}

/// Four bytes at once, the first one lowest: the verifier goes both ways at each comparison, so that there should be few.
#[inline(always)]
pub(crate) const fn word<const AT: usize>(head: &[u8; HEAD]) -> u32 {
    u32::from_le_bytes([head[AT], head[AT + 1], head[AT + 2], head[AT + 3]])
}

/// The bytes of a segment as the programs load them: the first ones, the rest zero.
#[must_use]
pub fn head_of(payload: &[u8]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    for (to, from) in head.iter_mut().zip(payload) {
        *to = *from;
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(payload: &[u8]) -> bool {
        begins_request(&head_of(payload), u32::try_from(payload.len()).unwrap())
    }

    fn answers(payload: &[u8]) -> Answer {
        answer(&head_of(payload), u32::try_from(payload.len()).unwrap())
    }

    #[test]
    fn a_method_begins_a_request_and_other_words_do_not() {
        for method in
            ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "PROPFIND", "PURGE"]
        {
            assert!(begins(format!("{method} / HTTP/1.1\r\n").as_bytes()), "{method}");
        }
        for other in ["get / ", "HTTP/1.1 200", "GETX /", "PRI * HTTP/2.0", "\x16\x03\x01\x02", "GETTY images", ""] {
            assert!(!begins(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn a_head_that_is_written_byte_by_byte_begins_with_capitals() {
        assert!(begins(b"G"));
        assert!(begins(b"GE"));
        assert!(begins(b"GET"));
        assert!(!begins(b"g"));
        assert!(!begins(b"\r\n"));
        assert!(!begins(b" GE"));
    }

    #[test]
    fn an_answers_status_is_told_apart() {
        assert_eq!(answers(b"HTTP/1.1 200 OK\r\n"), Answer::Final);
        assert_eq!(answers(b"HTTP/1.0 404 Not Found\r\n"), Answer::Final);
        assert_eq!(answers(b"HTTP/1.1 100 Continue\r\n\r\n"), Answer::Interim);
        assert_eq!(answers(b"HTTP/1.1 103 Early Hints\r\n"), Answer::Interim);
        assert_eq!(answers(b"HTTP/1.1 101 Switching Protocols\r\n"), Answer::Switching);
        assert_eq!(answers(b"HTTP"), Answer::Final, "the rest follows");
        assert_eq!(answers(b"HTT"), Answer::None);
        assert_eq!(answers(b"GET / HTTP/1.1"), Answer::None);
    }
}
