//! What the first bytes of a segment say, told once: each comparison doubles what the verifier has to go through.

use crate::{
    http1::{self, Answer, HEAD},
    tls,
};

/// What a segment says; bits.
#[derive(Clone, Copy, Debug)]
pub struct Says;

// === impl Says ===

impl Says {
    /// Of a client: it may begin a request of HTTP/1.
    pub const REQUEST: u32 = 1;
    /// Of a client: it may begin HTTP/2 (RFC 9113 §3.4).
    pub const PREFACE: u32 = 2;
    /// It begins with a TLS record.
    pub const RECORD: u32 = 4;
    /// It carries application data of TLS.
    pub const DATA: u32 = 8;
    /// Of a client: its TLS handshake has ended, with this segment or before it.
    pub const DONE: u32 = 16;
    /// Of a client: it asks the pod how it is, for the kubelet of this machine or for an agent.
    pub const PROBE: u32 = 32;
    /// Of a server: it begins an answer of HTTP/1, the final one if neither of the next two is said.
    pub const ANSWER: u32 = 64;
    /// Of a server: an interim answer (1xx); the final one follows.
    pub const INTERIM: u32 = 128;
    /// Of a server: 101, from here on it is another protocol.
    pub const SWITCHING: u32 = 256;
    /// Of a server: it begins with HTTP/2's settings.
    pub const SETTINGS: u32 = 512;

    /// What a client's segment of `len` bytes says that begins with `head`, but for [`PROBE`](Self::PROBE); `load` shows what is at an
    /// offset, and `shaken` tells whether the end of a TLS handshake was seen.
    #[inline(always)]
    #[must_use]
    pub fn client(shaken: bool, head: &[u8; HEAD], len: u32, load: impl Fn(u32) -> [u8; HEAD]) -> u32 {
        if tls::is_record(head) {
            let tls::Client { data, done } = tls::client(shaken, head, load);
            Self::RECORD | if data { Self::DATA } else { 0 } | if done { Self::DONE } else { 0 }
        } else if http1::begins_request(head, len) {
            Self::REQUEST
        } else if is_preface(head) {
            Self::PREFACE
        } else {
            0
        }
    }

    /// What a server's segment of `len` bytes says that begins with `head`.
    #[inline(always)]
    #[must_use]
    pub const fn server(head: &[u8; HEAD], len: u32) -> u32 {
        match http1::answer(head, len) {
            Answer::Final => Self::ANSWER,
            Answer::Interim => Self::ANSWER | Self::INTERIM,
            Answer::Switching => Self::ANSWER | Self::SWITCHING,
            Answer::None if tls::is_data(head) => Self::RECORD | Self::DATA,
            Answer::None if tls::is_record(head) => Self::RECORD,
            Answer::None if is_settings(head) => Self::SETTINGS,
            Answer::None => 0,
        }
    }
}

/// Whether these are the first bytes of HTTP/2's preface.
#[inline(always)]
const fn is_preface(head: &[u8; HEAD]) -> bool {
    http1::word::<0>(head) == u32::from_le_bytes(*b"PRI ")
}

/// Whether these bytes are the header of a SETTINGS frame, with which a server of HTTP/2 begins.
#[inline(always)]
const fn is_settings(head: &[u8; HEAD]) -> bool {
    // Shorter than 256 bytes, of type 4, with any flags, of no stream.
    http1::word::<0>(head) & 0xff00_ffff == 4 << 24 && http1::word::<5>(head) == 0
}
