//! The first packet of a connection, as it is kept and sent on: from the link header on, without data, with checksums that
//! are whole. Pure.
//!
//! A copy from a virtual device has a TCP checksum over the pseudo header alone, for the device was to finish it; and data
//! of TCP Fast Open is not whole. So data is cut off, which the client then sends again, and checksums are made anew.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use interceptor_core::holding::Flow;

const ETH: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const PROTO_TCP: u8 = 6;

pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_TIMESTAMPS: u8 = 8;

/// The client counts the round trip from its time stamp. A hold that is no longer than this it counts by itself.
const UNNOTICED: Duration = Duration::from_secs(1);
/// What is left of the round trip: the stamp must never be ahead of the client's clock, or it refuses the answer.
const MARGIN: Duration = Duration::from_millis(2);

/// A first packet.
#[derive(Clone, PartialEq, Eq)]
pub struct Syn {
    flow: Flow,
    frame: Box<[u8]>,
    /// Where the TCP header begins.
    tcp: usize,
}

/// Any segment, as far as its headers go.
pub(super) struct Segment {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) flags: u8,
    frame: Box<[u8]>,
    tcp: usize,
}

// === impl Segment ===

impl Segment {
    /// Reads a copy that begins with its network header: what the node itself sends has no other yet.
    pub(super) fn read_packet(copy: &[u8]) -> Option<Self> {
        let kind = match copy.first()? >> 4 {
            4 => [0x08, 0x00],
            6 => [0x86, 0xdd],
            _ => return None,
        };
        Self::read(&[&[0; ETH - 2], &kind[..], copy].concat())
    }

    fn read(copy: &[u8]) -> Option<Self> {
        let (tcp, is_ipv4) = match copy.get(ETH - 2..ETH)? {
            [0x08, 0x00] if *copy.get(ETH)? == 0x45 && *copy.get(ETH + 9)? == PROTO_TCP => (ETH + IPV4, true),
            [0x86, 0xdd] if *copy.get(ETH + 6)? == PROTO_TCP => (ETH + IPV6, false),
            _ => return None,
        };
        let length = usize::from(copy.get(tcp + 12)? >> 4) * 4;
        if length < TCP {
            return None;
        }
        let mut frame: Box<[u8]> = copy.get(..tcp + length)?.into();
        let payload = u16::try_from(length).ok()?;
        if is_ipv4 {
            put16(&mut frame, ETH + 2, payload + 20);
        } else {
            put16(&mut frame, ETH + 4, payload);
        }
        let address = |at: usize| -> Option<IpAddr> {
            Some(if is_ipv4 {
                Ipv4Addr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?).into()
            } else {
                Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?).into()
            })
        };
        let (from, to) = if is_ipv4 { (ETH + 12, ETH + 16) } else { (ETH + 8, ETH + 24) };
        let source = SocketAddr::new(address(from)?, get16(&frame, tcp));
        let destination = SocketAddr::new(address(to)?, get16(&frame, tcp + 2));
        let flags = frame[tcp + 13];
        finish(&mut frame, tcp);
        Some(Self { source, destination, flags, frame, tcp })
    }

    /// It without data and with checksums that are whole, from the network header on.
    pub(super) fn packet(&self) -> &[u8] {
        &self.frame[ETH..]
    }
}

// === impl Syn ===

impl Syn {
    /// Reads what a program has copied; `None` if that is no first packet in whole headers.
    pub fn read(copy: &[u8]) -> Option<Self> {
        Self::of(Segment::read(copy)?)
    }

    pub(super) fn of(segment: Segment) -> Option<Self> {
        let Segment { source, destination, flags, frame, tcp } = segment;
        let is_first = flags & (SYN | RST | ACK) == SYN;
        is_first.then_some(Self { flow: Flow { client: source, service: destination }, frame, tcp })
    }

    /// Whose it is.
    pub fn flow(&self) -> Flow {
        self.flow
    }

    /// The packet as it is to be sent on after it was held for that long. Its time stamp is moved on if the client would
    /// otherwise take the hold for the length of the way; stamps are taken to be milliseconds, as Linux has them.
    pub fn replay(&self, held: Duration) -> Vec<u8> {
        let mut frame = self.frame.to_vec();
        if held > UNNOTICED
            && let Some(at) = self.time_stamp()
        {
            let passed = u32::try_from(held.saturating_sub(MARGIN).as_millis()).unwrap_or(0);
            let stamp = get32(&frame, at).wrapping_add(passed);
            frame[at..at + 4].copy_from_slice(&stamp.to_be_bytes());
            finish(&mut frame, self.tcp);
        }
        frame
    }

    /// The answer that ends the client's attempt at once: refused.
    pub fn refusal(&self) -> Vec<u8> {
        let mut frame = self.frame[..self.tcp + TCP].to_vec();
        frame[..6].copy_from_slice(&self.frame[6..12]);
        frame[6..12].copy_from_slice(&self.frame[..6]);
        let (from, length) = if self.is_ipv4() { (ETH + 12, 4) } else { (ETH + 8, 16) };
        let to = from + length;
        frame[from..to].copy_from_slice(&self.frame[to..to + length]);
        frame[to..to + length].copy_from_slice(&self.frame[from..to]);
        if self.is_ipv4() {
            put16(&mut frame, ETH + 2, 40);
            // Do not fragment, no identification, a whole life.
            frame[ETH + 4..ETH + 9].copy_from_slice(&[0, 0, 0x40, 0, 64]);
        } else {
            put16(&mut frame, ETH + 4, 20);
            frame[ETH + 7] = 64;
        }
        let tcp = self.tcp;
        frame[tcp..tcp + 2].copy_from_slice(&self.frame[tcp + 2..tcp + 4]);
        frame[tcp + 2..tcp + 4].copy_from_slice(&self.frame[tcp..tcp + 2]);
        let acknowledged = get32(&self.frame, tcp + 4).wrapping_add(1);
        frame[tcp + 4..tcp + 8].fill(0);
        frame[tcp + 8..tcp + 12].copy_from_slice(&acknowledged.to_be_bytes());
        // No options, no window, nothing urgent.
        frame[tcp + 12] = 5 << 4;
        frame[tcp + 13] = RST | ACK;
        frame[tcp + 14..tcp + 20].fill(0);
        finish(&mut frame, tcp);
        frame
    }

    /// The same packet from its network header on, for which it is read or made.
    pub(super) fn without_link(frame: &[u8]) -> &[u8] {
        &frame[ETH..]
    }

    fn is_ipv4(&self) -> bool {
        self.tcp == ETH + IPV4
    }

    /// Where the client's time stamp is, if it sent one.
    fn time_stamp(&self) -> Option<usize> {
        let mut at = self.tcp + TCP;
        loop {
            match *self.frame.get(at)? {
                OPTION_END => return None,
                OPTION_NOTHING => at += 1,
                OPTION_TIMESTAMPS if *self.frame.get(at + 1)? == 10 && at + 10 <= self.frame.len() => {
                    return Some(at + 2);
                }
                _ => at += usize::from(*self.frame.get(at + 1)?).max(2),
            }
        }
    }
}

impl std::fmt::Debug for Syn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { flow, frame, tcp: _ } = self;
        f.debug_struct("Syn").field("flow", flow).field("length", &frame.len()).finish_non_exhaustive()
    }
}

/// Makes the checksums whole.
fn finish(frame: &mut [u8], tcp: usize) {
    let addresses = if tcp == ETH + IPV4 {
        put16(frame, ETH + 10, 0);
        let sum = checksum(add(0, &frame[ETH..tcp]));
        put16(frame, ETH + 10, sum);
        ETH + 12..tcp
    } else {
        ETH + 8..tcp
    };
    put16(frame, tcp + 16, 0);
    let length = u32::try_from(frame.len() - tcp).unwrap_or(u32::MAX);
    let sum = add(add(u32::from(PROTO_TCP) + length, &frame[addresses]), &frame[tcp..]);
    put16(frame, tcp + 16, checksum(sum));
}

/// Adds sixteen-bit words, as the Internet checksum does. What is added here is of even length, and short.
fn add(sum: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(sum, |sum, pair| sum + u32::from(pair[0]) * 256 + pair.get(1).copied().map_or(0, u32::from))
}

fn checksum(sum: u32) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = ((folded & 0xffff) + (folded >> 16)).to_be_bytes();
    !u16::from_be_bytes([high, low])
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// As a Linux client sends it: MSS, SACK, time stamp, window scale; checksums as a virtual device has them.
    fn linux(is_ipv4: bool, data: usize) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0x10, 0, 0, 0, 0, 0, 1, 3, 3, 7];
        let length = u16::try_from(TCP + options.len() + data).unwrap();
        if is_ipv4 {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0x12, 0x34, 0x40, 0, 63, 6, 0xff, 0xff, 10, 0, 0, 9, 10, 96, 0, 1]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([6, 63]);
            frame.extend("fd00::9".parse::<Ipv6Addr>().unwrap().octets());
            frame.extend("fd00:96::1".parse::<Ipv6Addr>().unwrap().octets());
        }
        frame.extend([0x9c, 0x40, 0, 80, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xa0, 2, 0xfa, 0xf0, 0x12, 0x34, 0, 0]);
        frame.extend(options);
        frame.extend(vec![0xaa; data]);
        frame
    }

    /// Over the whole, a right checksum gives zero.
    fn is_whole(frame: &[u8]) -> bool {
        let (ip, addresses, tcp) = if frame[ETH - 2] == 8 { (true, 26..34, 34) } else { (false, 22..54, 54) };
        let length = u32::try_from(frame.len() - tcp).unwrap();
        let header = !ip || checksum(add(0, &frame[ETH..tcp])) == 0;
        header && checksum(add(add(6 + length, &frame[addresses]), &frame[tcp..])) == 0
    }

    #[test]
    fn a_first_packet_is_read_with_its_ends_and_made_whole() {
        for (is_ipv4, client, service) in
            [(true, "10.0.0.9:40000", "10.96.0.1:80"), (false, "[fd00::9]:40000", "[fd00:96::1]:80")]
        {
            let syn = Syn::read(&linux(is_ipv4, 0)).unwrap();
            assert_eq!(
                (syn.flow().client.to_string(), syn.flow().service.to_string()),
                (client.into(), service.into())
            );
            assert!(!is_whole(&linux(is_ipv4, 0)));
            assert!(is_whole(&syn.replay(Duration::ZERO)));
        }
    }

    #[test]
    fn data_that_came_with_it_is_cut_off_also_where_the_copy_was() {
        for is_ipv4 in [true, false] {
            let bare = Syn::read(&linux(is_ipv4, 0)).unwrap();
            let mut with_data = linux(is_ipv4, 1000);
            with_data.truncate(128);
            assert!(Syn::read(&with_data).unwrap() == bare);
        }
    }

    #[test]
    fn a_hold_that_the_client_would_take_for_the_way_moves_its_time_stamp_on() {
        let syn = Syn::read(&linux(true, 0)).unwrap();
        let stamp = |held| {
            let frame = syn.replay(held);
            assert!(is_whole(&frame));
            get32(&frame, syn.time_stamp().unwrap())
        };
        assert_eq!(stamp(Duration::from_millis(900)), 0x1000);
        assert_eq!(stamp(Duration::from_secs(3)), 0x1000 + 2998);
        let mut without = linux(true, 0);
        without[34 + 12] = 5 << 4;
        assert_eq!(Syn::read(&without).unwrap().time_stamp(), None);
    }

    #[test]
    fn a_packet_without_a_link_header_is_read_as_well() {
        for is_ipv4 in [true, false] {
            let frame = linux(is_ipv4, 0);
            let syn = Syn::of(Segment::read_packet(&frame[ETH..]).unwrap()).unwrap();
            assert_eq!(syn.flow(), Syn::read(&frame).unwrap().flow());
            assert_eq!(&syn.replay(Duration::ZERO)[ETH..], &Syn::read(&frame).unwrap().replay(Duration::ZERO)[ETH..]);
        }
    }

    #[test]
    fn an_answer_is_a_segment_and_no_first_packet() {
        let mut answer = linux(true, 0);
        answer[34 + 13] = SYN | ACK;
        let segment = Segment::read_packet(&answer[ETH..]).unwrap();
        assert_eq!(segment.source.to_string(), "10.0.0.9:40000");
        assert!(is_whole(&[&answer[..ETH], segment.packet()].concat()));
        assert_eq!(segment.flags, SYN | ACK);
        assert!(Syn::of(segment).is_none());
    }

    #[test]
    fn a_refusal_goes_back_the_way_the_packet_came_and_acknowledges_it() {
        for is_ipv4 in [true, false] {
            let syn = Syn::read(&linux(is_ipv4, 0)).unwrap();
            let frame = syn.refusal();
            assert!(is_whole(&frame));
            assert_eq!(&frame[..12], &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
            let tcp = syn.tcp;
            assert_eq!((get16(&frame, tcp), get16(&frame, tcp + 2)), (80, 40_000));
            assert_eq!(get32(&frame, tcp + 8), 0, "the number after the last");
            assert_eq!(frame[tcp + 13], RST | ACK);
            assert_eq!(frame.len(), tcp + TCP);
        }
    }

    #[test]
    fn what_is_no_first_packet_is_not_taken_for_one() {
        let mut answer = linux(true, 0);
        answer[34 + 13] = SYN | ACK;
        let mut options = linux(true, 0);
        options[ETH] = 0x46;
        let mut short = linux(true, 0);
        short.truncate(60);
        let mut header = linux(true, 0);
        header[34 + 12] = 4 << 4;
        for bad in [answer, options, short, header, Vec::new()] {
            assert!(Syn::read(&bad).is_none());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(mut bytes in vec(any::<u8>(), 0..128), like in 0..3_u8, held in 0..10_000_u64) {
            // Most random bytes are no packet at all: some begin as one.
            if like > 0 {
                let prefix = linux(like == 1, 0);
                let length = bytes.len().min(prefix.len().min(50));
                bytes[..length].copy_from_slice(&prefix[..length]);
            }
            if let Some(segment) = bytes.get(ETH..).and_then(Segment::read_packet) {
                prop_assert!(segment.packet().len() <= bytes.len());
            }
            if let Some(syn) = Syn::read(&bytes) {
                prop_assert!(is_whole(&syn.replay(Duration::from_millis(held))));
                prop_assert!(is_whole(&syn.refusal()));
            }
        }
    }
}
