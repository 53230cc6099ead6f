//! What TLS records tell without being decrypted: their types and lengths (RFC 8446 §5.1). Pure; shared by the programs and
//! the tests on the host.

use crate::http1::HEAD;

/// Bytes of a record's header.
pub const HEADER: u32 = 5;
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// An encrypted alert of TLS 1.3 is application data to look at: two bytes, the inner type, a tag of 16. Nothing that begins
/// a request is as short.
const ALERT: u16 = 19;

/// What a client's segment, which begins with a record, says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// It carries no request.
    Nothing,
    /// It carries application data.
    Data,
    /// It changes keys. The client's last message of the handshake follows, and what comes after that decides.
    Changing,
}

/// Whether these bytes are a record's header.
#[inline(always)]
#[must_use]
pub const fn is_record(head: &[u8; HEAD]) -> bool {
    head[0] >= CHANGE_CIPHER_SPEC && head[0] <= APPLICATION_DATA && head[1] == 3 && head[2] <= 4
}

/// Whether these bytes begin a handshake.
#[inline(always)]
#[must_use]
pub const fn is_handshake(head: &[u8; HEAD]) -> bool {
    head[0] == HANDSHAKE && is_record(head)
}

/// The length of a record without its header.
#[inline(always)]
#[must_use]
pub const fn length(head: &[u8; HEAD]) -> u16 {
    u16::from_be_bytes([head[3], head[4]])
}

/// What a client's segment says by its first record.
#[inline(always)]
#[must_use]
pub const fn client(head: &[u8; HEAD]) -> Client {
    if !is_record(head) {
        return Client::Nothing;
    }
    match head[0] {
        APPLICATION_DATA if length(head) > ALERT => Client::Data,
        CHANGE_CIPHER_SPEC => Client::Changing,
        _ => Client::Nothing,
    }
}

/// Whether a server's segment, which begins with a record, carries application data.
#[inline(always)]
#[must_use]
pub const fn server_data(head: &[u8; HEAD]) -> bool {
    is_record(head) && head[0] == APPLICATION_DATA && length(head) > ALERT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::head_of;

    #[test]
    fn application_data_is_told_from_alerts_and_handshakes() {
        assert_eq!(client(&head_of(&[23, 3, 3, 0, 200])), Client::Data);
        assert_eq!(client(&head_of(&[23, 3, 3, 0, 19])), Client::Nothing, "close_notify of TLS 1.3");
        assert_eq!(client(&head_of(&[21, 3, 3, 0, 26])), Client::Nothing, "an alert of TLS 1.2");
        assert_eq!(client(&head_of(&[22, 3, 1, 2, 0])), Client::Nothing);
        assert_eq!(client(&head_of(&[20, 3, 3, 0, 1, 1])), Client::Changing);
        assert_eq!(client(&head_of(b"GET /")), Client::Nothing);
        assert!(server_data(&head_of(&[23, 3, 3, 1, 0])));
        assert!(is_handshake(&head_of(&[22, 3, 1, 2, 0])));
    }
}
