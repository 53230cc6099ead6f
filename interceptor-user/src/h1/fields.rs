//! A message's header fields as they came: one buffer, and where in it each line lies. Made by `parse` or from the map
//! of an HTTP/2 message; read by the rules in `proxy::headers`.

use std::{cell::OnceCell, ops::Range};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use interceptor_core::route::Headers;

use super::encode;

/// Fields that the proxy itself acts upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Known {
    Other,
    ColdStart,
    Connection,
    ContentLength,
    Date,
    Expect,
    Forwarded,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    Host,
    KeepAlive,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    Te,
    TransferEncoding,
    Upgrade,
}

/// One field's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    name: u32,
    name_len: u32,
    value: u32,
    value_len: u32,
    pub(crate) known: Known,
}

/// The fields of one message in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields {
    bytes: Bytes,
    list: Vec<Field>,
    /// One bit for each [`Known`] that is there.
    present: u32,
}

/// Fields as the routing table asks for them: as a map, which is made when a rule asks for a header at all.
#[derive(Debug)]
pub(crate) struct Lazy<'a> {
    fields: &'a Fields,
    map: OnceCell<HeaderMap>,
}

// === impl Known ===

impl Known {
    /// What `name`, a token, is. Told apart by length first: nearly every other name ends there.
    pub(crate) fn of(name: &[u8]) -> Self {
        match name.len() {
            2 if is(name, b"te") => Self::Te,
            4 if is(name, b"host") => Self::Host,
            4 if is(name, b"date") => Self::Date,
            6 if is(name, b"expect") => Self::Expect,
            7 if is(name, b"upgrade") => Self::Upgrade,
            9 if is(name, b"forwarded") => Self::Forwarded,
            10 if is(name, b"connection") => Self::Connection,
            10 if is(name, b"keep-alive") => Self::KeepAlive,
            14 if is(name, b"content-length") => Self::ContentLength,
            15 if is(name, b"x-forwarded-for") => Self::ForwardedFor,
            16 if is(name, b"x-forwarded-host") => Self::ForwardedHost,
            16 if is(name, b"proxy-connection") => Self::ProxyConnection,
            17 if is(name, b"transfer-encoding") => Self::TransferEncoding,
            17 if is(name, b"x-forwarded-proto") => Self::ForwardedProto,
            18 if is(name, b"proxy-authenticate") => Self::ProxyAuthenticate,
            19 if is(name, b"proxy-authorization") => Self::ProxyAuthorization,
            22 if is(name, b"x-keda-http-cold-start") => Self::ColdStart,
            _ => Self::Other,
        }
    }

    /// Whether the field concerns one connection alone (RFC 9110 §7.6.1, and two that are older). `Trailer` goes on:
    /// so do trailers.
    pub(crate) fn is_hop_by_hop(self) -> bool {
        match self {
            Self::Connection
            | Self::KeepAlive
            | Self::ProxyAuthenticate
            | Self::ProxyAuthorization
            | Self::ProxyConnection
            | Self::Te
            | Self::TransferEncoding
            | Self::Upgrade => true,
            Self::Other
            | Self::ColdStart
            | Self::ContentLength
            | Self::Date
            | Self::Expect
            | Self::Forwarded
            | Self::ForwardedFor
            | Self::ForwardedHost
            | Self::ForwardedProto
            | Self::Host => false,
        }
    }

    /// Whether a 1xx response may have it: what is of one connection stays there, and a body has none (RFC 9110 §8.6).
    pub(crate) fn passes_before_a_response(self) -> bool {
        !self.is_hop_by_hop() && self != Self::ContentLength
    }

    const fn bit(self) -> u32 {
        1 << (self as u32)
    }
}

// === impl Fields ===

impl Fields {
    /// Fields whose lines lie in `bytes`; `lines` says where.
    pub(crate) fn new(bytes: Bytes, list: Vec<Field>) -> Self {
        let present = list.iter().fold(0, |present, field| present | field.known.bit());
        Self { bytes, list, present }
    }

    /// Fields made here, or of a protocol where names have no case.
    pub(crate) fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let (mut bytes, mut list) = (BytesMut::new(), Vec::new());
        for (name, value) in pairs {
            list.push(append(&mut bytes, name, value));
        }
        Self::new(bytes.freeze(), list)
    }

    /// The fields of an HTTP/2 message.
    pub(crate) fn from_map(map: &HeaderMap) -> Self {
        Self::from_pairs(map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
    }

    /// The same with one more.
    pub(crate) fn and(self, name: &str, value: &[u8]) -> Self {
        let Self { bytes, mut list, present: _ } = self;
        let mut all = BytesMut::from(&bytes[..]);
        list.push(append(&mut all, name, value));
        Self::new(all.freeze(), list)
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Field> {
        self.list.iter()
    }

    pub(crate) fn has(&self, known: Known) -> bool {
        self.present & known.bit() != 0
    }

    /// The values of a field that the proxy knows.
    pub(crate) fn all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let list = if self.has(known) { &self.list[..] } else { &[] };
        list.iter().filter(move |field| field.known == known).map(|field| self.value(field))
    }

    /// The first of them.
    pub(crate) fn first(&self, known: Known) -> Option<&[u8]> {
        self.all(known).next()
    }

    /// Whether the client waits for `100 Continue` (RFC 9110 §10.1.1).
    pub(crate) fn expects_continue(&self) -> bool {
        self.first(Known::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"))
    }

    /// The first value of any field, by its name in lower case.
    pub(crate) fn find(&self, name: &str) -> Option<&[u8]> {
        let mut found = self.list.iter().filter(|field| self.name(field).eq_ignore_ascii_case(name.as_bytes()));
        found.next().map(|field| self.value(field))
    }

    pub(crate) fn name(&self, field: &Field) -> &[u8] {
        &self.bytes[range(field.name, field.name_len)]
    }

    pub(crate) fn value(&self, field: &Field) -> &[u8] {
        &self.bytes[range(field.value, field.value_len)]
    }

    /// Name, colon and value as they came.
    pub(crate) fn line(&self, field: &Field) -> &[u8] {
        &self.bytes[field.name as usize..(field.value + field.value_len) as usize]
    }

    /// The buffer that all lines lie in.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

// === impl Field ===

impl Field {
    /// A field whose name and value lie there in a buffer of at most 4 GiB.
    pub(crate) fn new(name: Range<usize>, value: Range<usize>, known: Known) -> Self {
        let offset = |at: usize| u32::try_from(at).expect("a head is smaller than 4 GiB");
        Self {
            name: offset(name.start),
            name_len: offset(name.len()),
            value: offset(value.start),
            value_len: offset(value.len()),
            known,
        }
    }
}

// === impl Lazy ===

impl<'a> Lazy<'a> {
    pub(crate) fn new(fields: &'a Fields) -> Self {
        Self { fields, map: OnceCell::new() }
    }
}

impl Headers for Lazy<'_> {
    fn map(&self) -> &HeaderMap {
        self.map.get_or_init(|| {
            let fields = self.fields;
            let mut map = HeaderMap::with_capacity(fields.list.len());
            for field in fields.iter() {
                let name = HeaderName::from_bytes(fields.name(field));
                if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(fields.value(field))) {
                    map.append(name, value);
                }
            }
            map
        })
    }
}

/// Whether `name` is `known`, which is in lower case. All bytes are compared at once: the one bit in which the cases differ
/// also differs between no other two bytes of which one is a letter or a hyphen and the other may stand in a token.
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    name.iter().zip(known).fold(0, |differing, (byte, known)| differing | ((byte | 0x20) ^ known)) == 0
}

fn range(start: u32, len: u32) -> Range<usize> {
    start as usize..(start + len) as usize
}

/// Writes a line and tells where it lies.
fn append(bytes: &mut BytesMut, name: &str, value: &[u8]) -> Field {
    let start = bytes.len();
    encode::spell(name, |part| bytes.extend_from_slice(part));
    bytes.extend_from_slice(b": ");
    let value_start = bytes.len();
    bytes.extend_from_slice(value);
    Field::new(start..start + name.len(), value_start..bytes.len(), Known::of(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_known_however_they_are_spelled() {
        assert_eq!(Known::of(b"Transfer-Encoding"), Known::TransferEncoding);
        assert_eq!(Known::of(b"X-FORWARDED-FOR"), Known::ForwardedFor);
        assert_eq!(Known::of(b"x-forwarded-foo"), Known::Other);
        assert_eq!(Known::of(b""), Known::Other);
        for byte in (0..=u8::MAX).filter(|byte| *byte != b't' && *byte != b'T') {
            assert_eq!(Known::of(&[b'h', b'o', b's', byte]), Known::Other, "{byte}");
        }
    }

    #[test]
    fn fields_are_found_with_all_their_values() {
        let fields = Fields::from_pairs([("Host", &b"a"[..]), ("X-A", b"1"), ("host", b"b")]);
        assert_eq!(fields.all(Known::Host).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(fields.first(Known::Te), None);
        assert_eq!(fields.find("x-a"), Some(&b"1"[..]));
        assert_eq!(Lazy::new(&fields).map().get_all("host").iter().count(), 2);
        assert_eq!(fields.iter().map(|field| fields.line(field)).next(), Some(&b"Host: a"[..]));
    }
}
