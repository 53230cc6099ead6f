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

use crate::nfnetlink::{Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, Netfilter};

const CT_NEW: u16 = 1 << 8;
const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_NAT_SRC: u16 = 6;
const CTA_TIMEOUT: u16 = 7;
const CTA_NAT_DST: u16 = 13;

/// `TCP_CONNTRACK_SYN_SENT`: the window is learnt from the packet.
const SYN_SENT: u8 = 1;
const TCP: u8 = 6;
/// `IPS_SEEN_REPLY`. An entry that a refusal answers goes at once.
const SEEN_REPLY: u32 = 1 << 1;

/// Ports that connections of a pod to itself are translated to.
const HAIRPIN_PORTS: (u16, u16) = (20_000, 60_000);

/// The node's table of connections.
pub struct Conntrack(Netfilter);

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

// === impl Conntrack ===

impl Conntrack {
    /// Opens the table of the network namespace that the calling thread is in.
    pub fn open() -> io::Result<Self> {
        Netfilter::open().map(Self)
    }

    /// Makes an entry for the connection, which goes by itself after `timeout` unless its first packet comes.
    pub fn insert(&mut self, flow: &Flow, to: &Translation, timeout: Duration) -> Result<(), ConntrackError> {
        self.0.request(insert(flow, to, timeout)).map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST) => ConntrackError::Exists,
            _ => ConntrackError::Refused(error),
        })
    }

    /// Whether there is an entry for the connection, and whoever it leads to has answered.
    pub fn is_answered(&mut self, flow: &Flow) -> Result<bool, ConntrackError> {
        let mut answered = false;
        let asked = self.0.query(message(CT_GET, 0, flow), |entry| {
            let status = entry.attributes().find(|(kind, _)| *kind == CTA_STATUS);
            let status = status.and_then(|(_, value)| value.try_into().ok()).map(u32::from_be_bytes);
            answered |= status.is_some_and(|status| status & SEEN_REPLY != 0);
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            asked => asked.map(|()| answered).map_err(ConntrackError::Refused),
        }
    }

    /// Takes the connection's entry away, if there is one.
    pub fn delete(&mut self, flow: &Flow) -> Result<(), ConntrackError> {
        match self.0.request(delete(flow)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result.map_err(ConntrackError::Refused),
        }
    }
}

impl std::fmt::Debug for Conntrack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conntrack").finish_non_exhaustive()
    }
}

fn insert(flow: &Flow, to: &Translation, timeout: Duration) -> Message {
    let Flow { client, service } = flow;
    let mut message = message(CT_NEW, NLM_F_CREATE | NLM_F_EXCL, flow);
    // The plain inverse: the kernel makes of it what the translations ask for.
    tuple(&mut message, CTA_TUPLE_REPLY, service, client);
    let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1);
    message.attribute(CTA_TIMEOUT, &seconds.to_be_bytes());
    message.nest(CTA_PROTOINFO, |info| info.nest(1, |tcp| tcp.attribute(1, &[SYN_SENT])));
    translate(&mut message, CTA_NAT_DST, to.pod.ip(), (to.pod.port(), to.pod.port()));
    if let Some(source) = to.source {
        translate(&mut message, CTA_NAT_SRC, source, HAIRPIN_PORTS);
    }
    message
}

fn delete(flow: &Flow) -> Message {
    message(CT_DELETE, 0, flow)
}

/// A request that concerns a connection.
fn message(kind: u16, flags: u16, flow: &Flow) -> Message {
    let Flow { client, service } = flow;
    let family = if client.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut message = Message::new(kind, NLM_F_REQUEST | NLM_F_ACK | flags, family);
    tuple(&mut message, CTA_TUPLE_ORIG, client, service);
    message
}

fn tuple(message: &mut Message, kind: u16, from: &SocketAddr, to: &SocketAddr) {
    message.nest(kind, |tuple| {
        tuple.nest(1, |ip| {
            address(ip, [1, 3], from.ip());
            address(ip, [2, 4], to.ip());
        });
        tuple.nest(2, |proto| {
            proto.attribute(1, &[TCP]);
            proto.attribute(2, &from.port().to_be_bytes());
            proto.attribute(3, &to.port().to_be_bytes());
        });
    });
}

fn translate(message: &mut Message, kind: u16, to: IpAddr, (first, last): (u16, u16)) {
    message.nest(kind, |nat| {
        address(nat, [1, 4], to);
        address(nat, [2, 5], to);
        nat.nest(3, |ports| {
            ports.attribute(1, &first.to_be_bytes());
            ports.attribute(2, &last.to_be_bytes());
        });
    });
}

fn address(message: &mut Message, [v4, v6]: [u16; 2], address: IpAddr) {
    match address {
        IpAddr::V4(address) => message.attribute(v4, &address.octets()),
        IpAddr::V6(address) => message.attribute(v6, &address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let flow = Flow { client: "10.0.0.9:40000".parse().unwrap(), service: "10.96.0.1:80".parse().unwrap() };
        let bytes = delete(&flow).finish(7);
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
}
