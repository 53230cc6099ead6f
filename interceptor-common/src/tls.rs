//! What TLS records tell without being decrypted: their types and lengths (RFC 8446 §5.1). Pure; shared by the programs and
//! the tests on the host.

use crate::http1::{HEAD, word};

/// Bytes of a record's header.
pub const HEADER: u32 = 5;
const CHANGE_CIPHER_SPEC: u8 = 20;
pub(crate) const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// An encrypted alert of TLS 1.3 is application data to look at: two bytes, the inner type, a tag of 16. Nothing that begins
/// a request is as short.
const ALERT: u16 = 19;

/// How long records are, in bytes, that may be a client's last message of a handshake (Finished): of TLS 1.3 by SHA-256 and SHA-384, with
/// inner type and tag (RFC 8446 §4.4.4, §5.2), and of TLS 1.2 at the most.
const FINISHED: [u16; 2] = [4 + 32 + 17, 4 + 48 + 17];
const FINISHED_BEFORE: u16 = 128;
/// Records of one segment in which a handshake's end is looked for: a change of keys, a certificate, its proof, and the end.
const RECORDS: u32 = 4;

/// What a client's segment says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// It carries application data.
    pub data: bool,
    /// The client's handshake has ended with this segment or before it.
    pub done: bool,
}

/// Whether these bytes are a record's header.
#[inline(always)]
#[must_use]
pub const fn is_record(head: &[u8; HEAD]) -> bool {
    // Types from 20 to 23, of which the lowest two bits are any; version 3.
    const { assert!(CHANGE_CIPHER_SPEC.trailing_zeros() >= 2 && APPLICATION_DATA == CHANGE_CIPHER_SPEC | 3) };
    word::<0>(head) & 0xfffc == u32::from_le_bytes([CHANGE_CIPHER_SPEC, 3, 0, 0]) && head[2] <= 4
}

/// The length of a record without its header.
#[inline(always)]
#[must_use]
pub const fn length(head: &[u8; HEAD]) -> u16 {
    u16::from_be_bytes([head[3], head[4]])
}

/// What a client's segment says that begins with `head`; `load` shows what is at an offset. The end of a handshake looks like application
/// data in TLS 1.3, and is that only until it has been seen, of which `done` tells.
#[inline(always)]
#[must_use]
pub fn client(done: bool, head: &[u8; HEAD], load: impl Fn(u32) -> [u8; HEAD]) -> Client {
    let is_application = is_record(head) && head[0] == APPLICATION_DATA;
    if !done {
        let (mut at, mut record) = (0, *head);
        for _ in 0..RECORDS {
            if !is_record(&record) {
                break;
            }
            at += HEADER + u32::from(length(&record));
            let next = load(at);
            if may_finish(&record) {
                return Client { data: is_data(&next), done: true };
            }
            record = next;
        }
    }
    // Without an end in sight it is none, or was not seen.
    Client { data: is_data(head), done: done || is_application }
}

/// Whether a record has the length of a handshake's last message.
#[inline(always)]
const fn may_finish(head: &[u8; HEAD]) -> bool {
    let length = length(head);
    match head[0] {
        APPLICATION_DATA => is_record(head) && (length == FINISHED[0] || length == FINISHED[1]),
        HANDSHAKE => is_record(head) && length < FINISHED_BEFORE,
        _ => false,
    }
}

/// Whether a segment begins with a record of application data.
#[inline(always)]
#[must_use]
pub const fn is_data(head: &[u8; HEAD]) -> bool {
    is_record(head) && head[0] == APPLICATION_DATA && length(head) > ALERT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::head_of;

    /// Records of these types and lengths, as a client sends them in one segment.
    fn sent(done: bool, records: &[(u8, u16)]) -> Client {
        let mut segment = Vec::new();
        for (kind, length) in records {
            segment.extend([*kind, 3, 3]);
            segment.extend(length.to_be_bytes());
            segment.resize(segment.len() + usize::from(*length), 9);
        }
        client(done, &head_of(&segment), |at| head_of(segment.get(at as usize..).unwrap_or_default()))
    }

    const NOTHING: Client = Client { data: false, done: false };
    const FINISHED: Client = Client { data: false, done: true };
    const DATA: Client = Client { data: true, done: true };

    #[test]
    fn application_data_is_told_from_alerts_and_handshakes() {
        assert_eq!(sent(true, &[(23, 200)]), DATA);
        assert_eq!(sent(true, &[(23, 53)]), DATA, "as short as a handshake's end");
        assert_eq!(sent(true, &[(23, 19)]), FINISHED, "close_notify of TLS 1.3");
        assert_eq!(sent(true, &[(21, 26)]), FINISHED, "an alert of TLS 1.2");
        assert_eq!(sent(false, &[(22, 512)]), NOTHING);
        assert_eq!(client(false, &head_of(b"GET /"), |_| [0; HEAD]), NOTHING);
        assert!(is_data(&head_of(&[23, 3, 3, 1, 0])));
    }

    #[test]
    fn the_end_of_a_handshake_is_no_request() {
        assert_eq!(sent(false, &[(22, 70), (20, 1), (22, 40)]), FINISHED, "of TLS 1.2");
        assert_eq!(sent(false, &[(20, 1)]), NOTHING);
        for end in [&[(20, 1), (23, 53)][..], &[(20, 1), (23, 69)], &[(20, 1), (22, 40)], &[(23, 53)]] {
            assert_eq!(sent(false, end), FINISHED, "{end:?}");
            assert_eq!(sent(false, &[end, &[(23, 80)]].concat()), DATA, "with a request behind it: {end:?}");
        }
        let with_certificate = [(20, 1), (23, 900), (23, 97), (23, 53)];
        assert_eq!(sent(false, &with_certificate), FINISHED);
        assert_eq!(sent(false, &with_certificate[1..]), FINISHED, "whose keys have changed with a second hello");
        assert_eq!(sent(false, &[(20, 1), (22, 400)]), NOTHING, "a second hello, as the server wants another curve");
        assert_eq!(sent(false, &[(23, 80)]), DATA, "whose handshake was not seen");
    }
}
