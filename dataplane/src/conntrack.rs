//! Hands a connection to the node's own connection tracking: an entry that translates it to a pod, made before its first
//! packet is sent on. From then on the connection lives without us, as one that kube-proxy's rules have translated does.
//!
//! The messages are those of `linux/netfilter/nfnetlink_conntrack.h`. The answer is there when the request has been sent.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use interceptor_core::holding::Flow;
use netlink_sys::{Socket, SocketAddr as Peer, protocols::NETLINK_NETFILTER};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const CT_NEW: u16 = 1 << 8;
const CT_DELETE: u16 = 1 << 8 | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_NAT_SRC: u16 = 6;
const CTA_TIMEOUT: u16 = 7;
const CTA_NAT_DST: u16 = 13;

const NESTED: u16 = 0x8000;
/// `TCP_CONNTRACK_SYN_SENT`: the window is learnt from the packet.
const SYN_SENT: u8 = 1;
const TCP: u8 = 6;

/// Ports that connections of a pod to itself are translated to.
const HAIRPIN_PORTS: (u16, u16) = (20_000, 60_000);

/// The node's table of connections.
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
}

/// Where a connection is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The pod.
    pub pod: SocketAddr,
    /// Which address the pod is to see instead of the client's: when both are the same pod, which would otherwise answer
    /// itself past the node.
    pub source: Option<IpAddr>,
}

/// Why an entry could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// There is one already: of an earlier try, or of the node's rules.
    #[error("the connection is known already")]
    Exists,
    /// The kernel can't or won't.
    #[error("connection tracking refuses")]
    Refused(#[source] io::Error),
}

/// A message under construction.
struct Message(Vec<u8>);

// === impl Conntrack ===

impl Conntrack {
    /// Opens the table of the network namespace that the calling thread is in.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&Peer::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes an entry for the connection, which goes by itself after `timeout` unless its first packet comes.
    pub fn insert(&mut self, flow: &Flow, to: &Translation, timeout: Duration) -> Result<(), ConntrackError> {
        let message = Message::insert(flow, to, timeout);
        self.request(message).map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST) => ConntrackError::Exists,
            _ => ConntrackError::Refused(error),
        })
    }

    /// Takes the connection's entry away, if there is one.
    pub fn delete(&mut self, flow: &Flow) -> Result<(), ConntrackError> {
        match self.request(Message::delete(flow)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result.map_err(ConntrackError::Refused),
        }
    }

    fn request(&mut self, message: Message) -> io::Result<()> {
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

impl std::fmt::Debug for Conntrack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conntrack").finish_non_exhaustive()
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
    fn insert(flow: &Flow, to: &Translation, timeout: Duration) -> Self {
        let Flow { client, service } = flow;
        let mut message = Self::new(CT_NEW, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, client.ip());
        message.tuple(CTA_TUPLE_ORIG, client, service);
        // The plain inverse: the kernel makes of it what the translations ask for.
        message.tuple(CTA_TUPLE_REPLY, service, client);
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1);
        message.attribute(CTA_TIMEOUT, &seconds.to_be_bytes());
        message.nest(CTA_PROTOINFO, |info| info.nest(1, |tcp| tcp.attribute(1, &[SYN_SENT])));
        message.translate(CTA_NAT_DST, to.pod.ip(), (to.pod.port(), to.pod.port()));
        if let Some(source) = to.source {
            message.translate(CTA_NAT_SRC, source, HAIRPIN_PORTS);
        }
        message
    }

    fn delete(flow: &Flow) -> Self {
        let Flow { client, service } = flow;
        let mut message = Self::new(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, client.ip());
        message.tuple(CTA_TUPLE_ORIG, client, service);
        message
    }

    /// Length and number are filled in when it is finished; then comes `struct nfgenmsg`.
    fn new(kind: u16, flags: u16, family: IpAddr) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        let family = if family.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        bytes.extend([u8::try_from(family).unwrap_or(0), 0, 0, 0]);
        Self(bytes)
    }

    fn finish(self, sequence: u32) -> Vec<u8> {
        let Self(mut bytes) = self;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.0.len() - at).unwrap_or(u16::MAX);
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn address(&mut self, [v4, v6]: [u16; 2], address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(v4, &address.octets()),
            IpAddr::V6(address) => self.attribute(v6, &address.octets()),
        }
    }

    fn tuple(&mut self, kind: u16, from: &SocketAddr, to: &SocketAddr) {
        self.nest(kind, |tuple| {
            tuple.nest(1, |ip| {
                ip.address([1, 3], from.ip());
                ip.address([2, 4], to.ip());
            });
            tuple.nest(2, |proto| {
                proto.attribute(1, &[TCP]);
                proto.attribute(2, &from.port().to_be_bytes());
                proto.attribute(3, &to.port().to_be_bytes());
            });
        });
    }

    fn translate(&mut self, kind: u16, to: IpAddr, (first, last): (u16, u16)) {
        self.nest(kind, |nat| {
            nat.address([1, 4], to);
            nat.address([2, 5], to);
            nat.nest(3, |ports| {
                ports.attribute(1, &first.to_be_bytes());
                ports.attribute(2, &last.to_be_bytes());
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let flow = Flow { client: "10.0.0.9:40000".parse().unwrap(), service: "10.96.0.1:80".parse().unwrap() };
        let bytes = Message::delete(&flow).finish(7);
        // Header, family, then the tuple: addresses in one nest, protocol and ports in another.
        let expected: Vec<u8> = [
            &72_u32.to_ne_bytes()[..],
            &[2, 1, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
            &[52, 0, 1, 0x80],
            &[20, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 9, 8, 0, 2, 0, 10, 96, 0, 1],
            &[28, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 2, 0, 0x9c, 0x40, 0, 0, 6, 0, 3, 0, 0, 80, 0, 0],
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

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
