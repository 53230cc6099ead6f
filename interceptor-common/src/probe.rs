//! How the first segment of a connection shows that it is an agent's own question whether a pod is ready, which is no demand
//! on whichever node it is asked. Pure; written by user space, read by the programs.
//!
//! Whoever can send to the pod can write the same. All it gains is that what it asked for itself does not count.

use crate::{flow::Says, http1::HEAD, http2, tls};

/// The header that a request of HTTP/1.1 ends with, in lower case, as hyper writes it.
pub const HEADER: &str = "rouse";
/// That header's value.
pub const VALUE: &str = "probe";
/// The two, and the end of the request's head.
const END: [u8; HEAD] = *b"rouse: probe\r\n\r\n";

/// The window, in bytes, that a client of HTTP/2 offers for each stream: `\0rou`, which no other is likely to choose.
pub const WINDOW: u32 = 0x0072_6f75;
/// Where a client's first settings begin: behind the preface and the frame's header.
const SETTINGS_AT: u32 = http2::PREFACE + http2::HEADER;
/// As hyper writes them (RFC 9113, 6.5.1): no pushes (2), the window (4), and the beginning of the largest frame (5).
const SETTINGS: [u8; HEAD] = *b"\0\x02\0\0\0\0\0\x04\0rou\0\x05\0\0";

/// What the random of a client's hello begins with (RFC 8446, 4.1.2).
pub const HELLO: [u8; HEAD] = *b"rouse: readiness";
/// Where that is: behind the headers of the record (5) and of the message (4), and a version (2).
const HELLO_AT: u32 = tls::HEADER + 4 + 2;

/// Where to look in a client's first segment of `len` bytes, which [`Says`] this, for [`is_ours`].
#[inline(always)]
#[must_use]
pub const fn place(says: u32, len: u32) -> u32 {
    if says & Says::REQUEST != 0 {
        len.saturating_sub(HEAD as u32)
    } else if says & Says::RECORD != 0 {
        HELLO_AT
    } else {
        SETTINGS_AT
    }
}

/// Whether what is at that [`place`] shows that an agent asks.
#[inline(always)]
#[must_use]
pub const fn is_ours(there: &[u8; HEAD]) -> bool {
    let there = u128::from_ne_bytes(*there);
    there == u128::from_ne_bytes(END) || there == u128::from_ne_bytes(SETTINGS) || there == u128::from_ne_bytes(HELLO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_ours_ends_with_our_header() {
        assert_eq!(END, *format!("{HEADER}: {VALUE}\r\n\r\n").as_bytes());
    }

    #[test]
    fn each_protocols_mark_has_a_place_of_its_own() {
        assert_eq!(place(Says::REQUEST, 100), 84);
        assert_eq!(place(Says::RECORD, 100), 11);
        assert_eq!(place(Says::PREFACE, 100), 33);
    }

    #[test]
    fn the_settings_have_the_window() {
        assert_eq!(SETTINGS[8..12], WINDOW.to_be_bytes());
    }
}
