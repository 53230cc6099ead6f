//! The question how many connections wait to be accepted, and its answer. Asked by user space, which runs the program with
//! it; answered by the program's return value.

use core::mem::offset_of;

use crate::AddrKey;

/// Whose accept queue is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ask {
    /// The kernel wants a packet, which begins with as many bytes of Ethernet: always zero.
    pub frame: [u8; 16],
    /// The pod's network namespace, by the number that the asking one has for it; this one if it is negative.
    pub netns: i32,
    /// Where the pod listens.
    pub addr: AddrKey,
}

const _: () = assert!(size_of::<Ask>() == 40);

/// What the program returns that is no depth; a number, because it crosses into the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Answer;

/// Where the kernel's structures have the fields that the program reads, in bytes. They differ from kernel to kernel; user
/// space has them from the kernel's type information, and replaces the program's own at load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fields {
    /// `sock.sk_ack_backlog`.
    pub backlog: u32,
    /// `sock.sk_reuseport_cb`.
    pub group: u32,
    /// `sock_reuseport.num_socks`.
    pub members: u32,
    /// `sock_reuseport.socks`.
    pub member: u32,
}

const _: () = assert!(size_of::<Fields>() == 16);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
// SAFETY: `repr(C)`, Copy, 'static, integers alone, and the assert above shows that there is no padding.
unsafe impl aya::Pod for Fields {}

/// Sockets of one group (`SO_REUSEPORT`) whose queues are added up; what is beyond is not seen.
pub const MEMBERS: u32 = 256;

// === impl Answer ===

impl Answer {
    /// Nobody listens there.
    pub const NOBODY: u32 = u32::MAX;
    /// The socket's memory cannot be read.
    pub const UNREADABLE: u32 = u32::MAX - 1;
}

// === impl Ask ===

impl Ask {
    /// Where the program finds the namespace.
    pub const NETNS: usize = offset_of!(Self, netns);
    /// Where it finds the address.
    pub const ADDR: usize = offset_of!(Self, addr.addr_be);
    /// Where it finds the port.
    pub const PORT: usize = offset_of!(Self, addr.port_be);

    /// The packet to run the program with.
    #[must_use]
    pub fn bytes(&self) -> [u8; size_of::<Self>()] {
        let Self { frame, netns, addr } = self;
        let mut bytes = [0; size_of::<Self>()];
        bytes[..Self::NETNS].copy_from_slice(frame);
        bytes[Self::NETNS..Self::ADDR].copy_from_slice(&netns.to_ne_bytes());
        bytes[Self::ADDR..Self::PORT].copy_from_slice(&addr.octets());
        bytes[Self::PORT..Self::PORT + 2].copy_from_slice(&addr.port_be.to_ne_bytes());
        bytes
    }
}
