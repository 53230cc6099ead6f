//! The hold of connections that the node itself opens, and pods in its network: they cross no device on which a program could
//! see them, and the node's own rules refuse them before. So a table in the packet filter takes their first packets, and tells
//! of them by its log; they are sent on through a raw socket.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::BorrowedFd,
    time::Duration,
};

use foldhash::quality::RandomState;
use interceptor_common::hold::MARK;
use interceptor_core::holding::Flow;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use self::{
    log::{GROUP, Log},
    table::{Found, TABLE, Table},
};
use super::{
    maps::What,
    syn::{ACK, RST, SYN, Segment, Syn},
};

mod log;
mod rules;
mod table;

/// The hold of the node's own connections.
pub(super) struct Node {
    table: Table,
    log: Log,
    /// For IPv4 and IPv6.
    senders: [Socket; 2],
    /// Connections whose packet was sent on and not answered yet; no more than wait.
    tried: HashSet<Flow, RandomState>,
    /// What the table should hold, once that is known.
    wanted: Option<BTreeSet<SocketAddr>>,
    swallowed: u64,
}

/// Why the node's own connections cannot be held.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unavailable {
    #[error("cannot open a raw socket, which takes CAP_NET_RAW")]
    Sender(#[source] io::Error),
    #[error("cannot read the packet filter's log group {GROUP}")]
    Log(#[source] io::Error),
    #[error("cannot make the table {TABLE} in the packet filter")]
    Table(#[source] io::Error),
}

// === impl Node ===

impl Node {
    /// Opens what is needed. A table that an agent before has left stays as it is until the first [`sync`](Self::sync).
    pub(super) fn open() -> Result<Self, Unavailable> {
        let senders = [sender(Domain::IPV4), sender(Domain::IPV6)];
        let [v4, v6] = senders.map(|sender| sender.map_err(Unavailable::Sender));
        let log = Log::open().map_err(Unavailable::Log)?;
        let mut table = Table::open().map_err(Unavailable::Table)?;
        if table.read().map_err(Unavailable::Table)?.is_none() {
            // Only so is it known that the kernel has all that the rules need.
            table.replace(&BTreeSet::new()).map_err(Unavailable::Table)?;
        }
        Ok(Self { table, log, senders: [v4?, v6?], tried: HashSet::default(), wanted: None, swallowed: 0 })
    }

    /// Takes the table out that an agent before may have left.
    pub(super) fn remove() -> io::Result<()> {
        match Table::open()?.remove() {
            // Kernels without a packet filter have no table either.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            removed => removed,
        }
    }

    /// What tells when something was seen.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.log.fd()
    }

    /// What the rules saw next.
    pub(super) fn seen(&mut self) -> Option<What> {
        loop {
            let packet = self.log.next()?;
            if let Some(what) = Segment::read_packet(&packet).and_then(|segment| self.look(segment)) {
                return Some(what);
            }
        }
    }

    fn look(&mut self, segment: Segment) -> Option<What> {
        match segment.flags & (SYN | RST | ACK) {
            SYN => Syn::of(segment).map(What::Syn),
            flags => {
                let flow = Flow { client: segment.destination, service: segment.source };
                if flags & RST == 0 {
                    return self.tried.remove(&flow).then_some(What::Taken(flow));
                }
                if self.tried.contains(&flow) {
                    self.swallowed += 1;
                    return Some(What::Refused(flow));
                }
                // Somebody's refusal of what we have not tried: nothing of ours.
                _ = self.put(segment.packet(), flow.client);
                None
            }
        }
    }

    /// Makes the table hold these addresses: how many have changed. What cannot be done now is to be mended later.
    pub(super) fn sync(&mut self, cold: BTreeSet<SocketAddr>) -> io::Result<usize> {
        if self.wanted.as_ref() == Some(&cold) {
            return Ok(0);
        }
        let before = self.wanted.take();
        let (done, changed) = match &before {
            None => (self.table.replace(&cold), cold.len()),
            Some(before) => {
                let changed = self.table.change(cold.difference(before), before.difference(&cold));
                // What is not as it was left is made anew.
                (changed.or_else(|_| self.table.replace(&cold)), cold.symmetric_difference(before).count())
            }
        };
        self.wanted = Some(cold);
        done.map(|()| changed)
    }

    /// Gives the sign of life without which the rules let everything pass.
    pub(super) fn beat(&mut self) -> io::Result<()> {
        match (self.table.beat(), &self.wanted) {
            (Err(_), Some(wanted)) => self.table.replace(wanted),
            // One that an agent before has left may be of another make.
            (_, None) => Ok(()),
            (beaten, Some(_)) => beaten,
        }
    }

    /// Reads back what is in the table, and makes it anew if that is not what it should be: how much was not.
    pub(super) fn repair(&mut self) -> io::Result<usize> {
        let Some(wanted) = &self.wanted else { return Ok(0) };
        let drifted = match self.table.read() {
            Ok(None) => wanted.len() + table::rules(),
            Ok(Some(Found { cold, rules })) => {
                cold.symmetric_difference(wanted).count() + rules.abs_diff(table::rules())
            }
            // Somebody else was writing rules: the next time will do.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        if drifted > 0 {
            self.table.replace(wanted)?;
        }
        Ok(drifted)
    }

    /// Refusals that were kept from clients, and packets that were taken and could not be told of.
    pub(super) fn stats(&self) -> (u64, u64) {
        (self.swallowed, self.log.lost())
    }

    /// Sends a first packet on to where connection tracking, or the node's own rules, translate it.
    pub(super) fn send(&self, syn: &Syn, held: Duration) -> io::Result<()> {
        self.put(Syn::without_link(&syn.replay(held)), syn.flow().service)
    }

    /// Notes that a refusal is to be kept from the client.
    pub(super) fn tried(&mut self, flow: Flow) {
        self.tried.insert(flow);
    }

    pub(super) fn untried(&mut self, flow: &Flow) {
        self.tried.remove(flow);
    }

    /// Tells the client that it is refused.
    pub(super) fn refuse(&self, syn: &Syn) -> io::Result<()> {
        self.put(Syn::without_link(&syn.refusal()), syn.flow().client)
    }

    fn put(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        let sender = &self.senders[usize::from(to.is_ipv6())];
        match sender.send_to(packet, &SockAddr::from(SocketAddr::new(to.ip(), 0))) {
            // The node's own rules have judged it, and dropped it.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
            sent => sent.map(drop),
        }
    }
}

/// A socket for packets with headers of ours, which bear the mark.
fn sender(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_nonblocking(true)?;
    socket.set_mark(MARK)?;
    Ok(socket)
}

/// The address that the node connects to a pod from, as the pod sees it when the node's rules masquerade a connection: answers
/// to it come back, whatever address the client has.
pub fn source_toward(pod: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if pod.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(pod)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_reaches_itself_from_itself() {
        assert_eq!(source_toward("127.0.0.1:80".parse().unwrap()).unwrap().to_string(), "127.0.0.1");
    }
}
