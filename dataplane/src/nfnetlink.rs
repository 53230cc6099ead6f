//! Messages to netfilter by netlink: how they are laid out, and how the kernel acknowledges them. The layout is that of
//! `linux/netfilter/nfnetlink.h`; what is in the messages is the business of who sends them.

use std::io;

use netlink_sys::{Socket, SocketAddr as Peer, protocols::NETLINK_NETFILTER};

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 0x8000;

/// A socket to netfilter. Answers are there when a request has been sent.
pub(crate) struct Netfilter {
    socket: Socket,
    sequence: u32,
}

/// A message under construction.
pub(crate) struct Message(Vec<u8>);

// === impl Netfilter ===

impl Netfilter {
    /// Opens one in the network namespace that the calling thread is in.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&Peer::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a message that asks for an acknowledgement, and waits for it.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(self.sequence);
        self.socket.send(&bytes, 0)?;
        // Of what else may come, such as answers to requests that were given up, not more than a few are passed over.
        for _ in 0..16 {
            let (answer, _) = self.socket.recv_from_full()?;
            if let Some(errno) = acknowledgement(&answer, self.sequence) {
                return if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-errno)) };
            }
        }
        Err(io::Error::other("no answer among what the kernel says"))
    }
}

/// The error number of the answer to a request, zero for success.
fn acknowledgement(answer: &[u8], sequence: u32) -> Option<i32> {
    let word = |at: usize| <[u8; 4]>::try_from(answer.get(at..at + 4)?).ok();
    let kind = u16::from_ne_bytes(<[u8; 2]>::try_from(answer.get(4..6)?).ok()?);
    let ours = kind == NLMSG_ERROR && u32::from_ne_bytes(word(8)?) == sequence;
    ours.then(|| word(16).map(i32::from_ne_bytes)).flatten()
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
        assert_eq!(acknowledgement(&answer(2, 5, 0), 5), Some(0));
        assert_eq!(acknowledgement(&answer(2, 5, -libc::EEXIST), 5), Some(-libc::EEXIST));
        assert_eq!(acknowledgement(&answer(2, 4, 0), 5), None);
        assert_eq!(acknowledgement(&answer(3, 5, 0), 5), None);
        assert_eq!(acknowledgement(&[2, 0, 0], 5), None);
    }
}
