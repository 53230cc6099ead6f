//! Messages to netfilter by netlink: how they are laid out, and how the kernel acknowledges them. The layout is that of
//! `linux/netfilter/nfnetlink.h`; what is in the messages is the business of who sends them.

use std::{io, iter, ops::RangeInclusive};

use netlink_sys::{Socket, SocketAddr as Peer, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt::SndBufForce};

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// The header of a message, and `struct nfgenmsg` after it.
const HEADER: usize = 16;
const GENERAL: usize = 4;
const NESTED: u16 = 0x8000;

/// A socket to netfilter. Answers are there when a request has been sent.
pub(crate) struct Netfilter {
    socket: Socket,
    sequence: u32,
}

/// A message under construction.
pub(crate) struct Message(Vec<u8>);

/// A message that the kernel has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What comes after the header.
    body: &'a [u8],
}

// === impl Netfilter ===

impl Netfilter {
    /// Opens one in the network namespace that the calling thread is in.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&Peer::new(0, 0))?;
        // Otherwise a refusal bears the whole message that was refused, and may be longer than what is read of it.
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The socket, to wait for what the kernel sends by itself.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends a message that asks for an acknowledgement, and waits for it.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.query(message, |_| {})
    }

    /// The same, and hands what comes before the acknowledgement to `take`.
    pub(crate) fn query(&mut self, message: Message, mut take: impl FnMut(&Received<'_>)) -> io::Result<()> {
        let sequence = self.next();
        self.socket.send(&message.finish(sequence), 0)?;
        // Of what else may come, such as answers to requests that were given up, not more than a few are passed over.
        for _ in 0..16 {
            let (answer, _) = self.socket.recv_from_full()?;
            for answer in received(&answer).filter(|answer| answer.sequence == sequence) {
                match answer.acknowledges(sequence..=sequence) {
                    Some(errno) => return outcome(errno),
                    None => take(&answer),
                }
            }
        }
        Err(io::Error::other("no answer among what the kernel says"))
    }

    /// Sends messages that the kernel carries out together, or not at all.
    pub(crate) fn transaction(&mut self, subsystem: u16, mut messages: Vec<Message>) -> io::Result<()> {
        let Some(last) = messages.last_mut() else { return Ok(()) };
        last.flag(NLM_F_ACK);
        let mut bytes = self.frame(BATCH_BEGIN, subsystem);
        let first = self.sequence;
        for message in messages {
            let sequence = self.next();
            bytes.extend(message.finish(sequence));
        }
        let last = self.sequence;
        bytes.extend(self.frame(BATCH_END, subsystem));
        // It is sent as one, whatever its length.
        setsockopt(&self.socket, SndBufForce, &(bytes.len() * 2))?;
        self.socket.send(&bytes, 0)?;
        let (mut failed, mut done) = (None, false);
        // All answers are there, each of a message that was refused, and of the last.
        while let Some(answer) = self.waiting()? {
            for answer in received(&answer) {
                match answer.acknowledges(first..=last) {
                    Some(0) => done = true,
                    Some(errno) => failed = failed.or(Some(errno)),
                    None => {}
                }
            }
        }
        match failed {
            Some(errno) => outcome(errno),
            None if done => Ok(()),
            None => Err(io::Error::other("no answer among what the kernel says")),
        }
    }

    /// Sends a message that asks for a list, and hands each entry to `take`. Fails if the list changes meanwhile.
    pub(crate) fn list(&mut self, message: Message, mut take: impl FnMut(&Received<'_>)) -> io::Result<()> {
        let sequence = self.next();
        self.socket.send(&message.finish(sequence), 0)?;
        let mut changed = false;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            for entry in received(&answer).filter(|entry| entry.sequence == sequence) {
                changed |= entry.flags & NLM_F_DUMP_INTR != 0;
                match entry.kind {
                    NLMSG_DONE if changed => return Err(io::ErrorKind::Interrupted.into()),
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return outcome(entry.acknowledges(sequence..=sequence).unwrap_or(0)),
                    _ => take(&entry),
                }
            }
        }
    }

    /// The next datagram, if one is there.
    fn waiting(&self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::with_capacity(4096);
        match self.socket.recv(&mut bytes, libc::MSG_DONTWAIT) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The message before or after those of a transaction.
    fn frame(&mut self, kind: u16, subsystem: u16) -> Vec<u8> {
        let mut message = Message::new(kind, NLM_F_REQUEST, libc::AF_UNSPEC);
        message.resource(subsystem);
        let sequence = self.next();
        message.finish(sequence)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

fn outcome(errno: i32) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-errno)) }
}

/// The messages of a datagram, up to the first that is not whole.
pub(crate) fn received(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    iter::from_fn(move || {
        let length = usize::try_from(word(datagram, 0)?).ok()?;
        let body = datagram.get(HEADER..length)?;
        let (kind, flags, sequence) = (half(datagram, 4)?, half(datagram, 6)?, word(datagram, 8)?);
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, flags, sequence, body })
    })
}

/// The attributes of a message or of a nest, without the marks of their kinds, up to the first that is not whole.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let found = (half(bytes, 2)? & !NESTED, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

// === impl Received ===

impl<'a> Received<'a> {
    /// What is in it.
    pub(crate) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        attributes(self.body.get(GENERAL..).unwrap_or_default())
    }

    /// The error number if it is the answer to one of these requests, zero for success.
    fn acknowledges(&self, sequences: RangeInclusive<u32>) -> Option<i32> {
        let ours = self.kind == NLMSG_ERROR && sequences.contains(&self.sequence);
        ours.then(|| word(self.body, 0).map(u32::cast_signed)).flatten()
    }
}

// === impl Message ===

impl Message {
    /// Length and number are filled in when it is finished; then comes `struct nfgenmsg`.
    pub(crate) fn new(kind: u16, flags: u16, family: libc::c_int) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([u8::try_from(family).unwrap_or(0), 0, 0, 0]);
        Self(bytes)
    }

    /// Which group or subsystem it concerns.
    pub(crate) fn resource(&mut self, resource: u16) {
        self.0[HEADER + 2..HEADER + GENERAL].copy_from_slice(&resource.to_be_bytes());
    }

    fn flag(&mut self, flag: u16) {
        let [low, high] = flag.to_ne_bytes();
        self.0[6] |= low;
        self.0[7] |= high;
    }

    pub(crate) fn finish(self, sequence: u32) -> Vec<u8> {
        let Self(mut bytes) = self;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// A number in network byte order, as netfilter has most of them.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A text, with the zero at its end.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat());
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.0.len() - at).unwrap_or(u16::MAX);
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn an_answer_is_that_to_the_request_and_tells_its_error() {
        let answer = |kind: u16, sequence: u32, errno: i32| {
            let mut bytes = 20_u32.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(errno.to_ne_bytes());
            bytes
        };
        let told = |bytes: &[u8], sequence| received(bytes).find_map(|answer| answer.acknowledges(sequence..=sequence));
        assert_eq!(told(&answer(2, 5, 0), 5), Some(0));
        assert_eq!(told(&answer(2, 5, -libc::EEXIST), 5), Some(-libc::EEXIST));
        assert_eq!(told(&answer(2, 4, 0), 5), None);
        assert_eq!(told(&answer(3, 5, 0), 5), None);
        assert_eq!(told(&[2, 0, 0], 5), None);
        let both = [answer(2, 4, -libc::ENOENT), answer(2, 5, 0)].concat();
        assert_eq!((told(&both, 4), told(&both, 5)), (Some(-libc::ENOENT), Some(0)));
    }

    #[test]
    fn what_was_written_is_read_again() {
        let mut message = Message::new(7, NLM_F_REQUEST, libc::AF_INET);
        message.attribute(1, b"abcde");
        message.nest(2, |nest| nest.attribute(3, &[9]));
        let bytes = message.finish(11);
        let [found] = received(&bytes).collect::<Vec<_>>()[..] else { panic!("one message") };
        assert_eq!((found.kind, found.flags, found.sequence), (7, NLM_F_REQUEST, 11));
        let all: Vec<_> = found.attributes().collect();
        assert_eq!(all[0], (1, &b"abcde"[..]));
        assert_eq!(attributes(all[1].1).collect::<Vec<_>>(), [(3, &[9][..])]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in vec(any::<u8>(), 0..64), length in 0..80_u32) {
            let mut whole = bytes;
            if whole.len() >= 4 {
                whole[..4].copy_from_slice(&length.to_ne_bytes());
            }
            for message in received(&whole) {
                prop_assert!(message.attributes().count() <= whole.len());
            }
        }
    }
}
