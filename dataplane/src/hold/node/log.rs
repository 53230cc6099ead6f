//! What the rules of our table have seen: copies of packets, by netlink. `linux/netfilter/nfnetlink_log.h`.

use std::{collections::VecDeque, io, os::fd::BorrowedFd};

use interceptor_common::hold::Seen;
use netlink_sys::Socket;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::os::fd::AsFd as _;

use crate::nfnetlink::{Message, NLM_F_ACK, NLM_F_REQUEST, Netfilter, received};

/// The group that our rules log to. It is the whole network namespace's; others take small numbers.
pub(super) const GROUP: u16 = 0x526f;

/// `NFNL_SUBSYS_ULOG`, and its messages.
const PACKET: u16 = 4 << 8;
const CONFIGURE: u16 = 4 << 8 | 1;

const COMMAND: u16 = 1;
const BIND: u8 = 1;
const MODE: u16 = 2;
const COPY_PACKET: u8 = 2;
const THRESHOLD: u16 = 5;
const FLAGS: u16 = 6;
const NUMBERED: u16 = 1;

const PAYLOAD: u16 = 9;
const NUMBER: u16 = 12;

/// What waits to be read may take so much memory.
const ROOM: usize = 1 << 20;

/// Packets that have been logged and not been read.
pub(super) struct Log {
    netfilter: Netfilter,
    packets: VecDeque<Vec<u8>>,
    /// The number of the next one.
    next: Option<u32>,
    lost: u64,
}

// === impl Log ===

impl Log {
    /// Takes the group. Fails if somebody has it.
    pub(super) fn open() -> io::Result<Self> {
        let mut netfilter = Netfilter::open()?;
        setsockopt(netfilter.socket(), RcvBufForce, &ROOM)?;
        let mut message = Message::new(CONFIGURE, NLM_F_REQUEST | NLM_F_ACK, libc::AF_UNSPEC);
        message.resource(GROUP);
        message.attribute(COMMAND, &[BIND]);
        let [a, b, c, d] = u32::try_from(Seen::MOST).unwrap_or(u32::MAX).to_be_bytes();
        message.attribute(MODE, &[a, b, c, d, COPY_PACKET, 0]);
        // Each is told at once.
        message.number(THRESHOLD, 1);
        message.attribute(FLAGS, &NUMBERED.to_be_bytes());
        netfilter.request(message)?;
        Ok(Self { netfilter, packets: VecDeque::new(), next: None, lost: 0 })
    }

    /// What tells when there is a packet.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.netfilter.socket().as_fd()
    }

    /// The next packet, from its network header on.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        // Only what is lost makes reading fail, and that the numbers tell.
        while self.packets.is_empty() {
            let datagram = read(self.netfilter.socket())?;
            self.take(&datagram);
        }
        self.packets.pop_front()
    }

    /// How many packets there was no room for.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    fn take(&mut self, datagram: &[u8]) {
        for message in received(datagram).filter(|message| message.kind == PACKET) {
            for (kind, value) in message.attributes() {
                match kind {
                    NUMBER => self.number(value),
                    PAYLOAD => self.packets.push_back(value.to_vec()),
                    _ => {}
                }
            }
        }
    }

    fn number(&mut self, value: &[u8]) {
        let Ok(number) = value.try_into().map(u32::from_be_bytes) else { return };
        let missing = number.wrapping_sub(self.next.unwrap_or(number));
        self.lost += u64::from(missing);
        self.next = Some(number.wrapping_add(1));
    }
}

/// The next datagram, if one is there.
fn read(socket: &Socket) -> Option<Vec<u8>> {
    loop {
        let mut bytes = Vec::with_capacity(4096);
        match socket.recv(&mut bytes, libc::MSG_DONTWAIT) {
            Ok(_) => return Some(bytes),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(_) => return None,
        }
    }
}
