//! Holding: the first packet of a connection to a Service whose workload sleeps is kept and dropped, and sent on when a
//! pod can take it. What the programs and the agent tell each other, and the decision what becomes of a packet.

use crate::AddrKey;

/// The two ends of a connection as the client sees them. Key of `TRIED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Flow {
    /// Who connects.
    pub client: AddrKey,
    /// The Service's address that it connects to.
    pub service: AddrKey,
}

const _: () = assert!(size_of::<Flow>() == 40);

/// What becomes of connections to a Service. Slot of `SERVICES`, at the index that `FRONTENDS` gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceSlot {
    /// A [`Heat`].
    pub heat: u32,
    /// The port of interceptors that stands for the Service, where connections are steered; zero where they are held.
    pub port: u32,
}

const _: () = assert!(size_of::<ServiceSlot>() == 8);

/// Whether a Service has pods; a number, because it crosses into the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Heat;

/// What a program saw. Record of the ring buffer `SEEN`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Seen {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub at_ns: u64,
    /// A [`What`].
    pub what: u32,
    /// The device's index in the node's network namespace.
    pub device: u32,
    /// The connection.
    pub flow: Flow,
    /// How many bytes of `packet` are the packet's.
    pub length: u32,
    /// Always zero.
    pub reserved: u32,
    /// The packet from its link header on. Its TCP checksum may cover the pseudo header alone: the device was to finish it.
    pub packet: [u8; Self::MOST],
}

const _: () = assert!(size_of::<Seen>() == 64 + Seen::MOST);

/// What a program saw; a number, because it crosses from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct What;

/// What the hold programs did, each CPU its own share. All only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HoldStats {
    /// First packets that were taken from the wire and told of.
    pub held: u64,
    /// First packets that were taken and could not be told of, because the ring buffer was full: the client sends another.
    pub untold: u64,
    /// Refusals of pods that were kept from clients.
    pub swallowed: u64,
    /// Connections that a pod has taken while it was tried.
    pub taken: u64,
}

const _: () = assert!(size_of::<HoldStats>() == 32);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
mod pod {
    use super::{Flow, HoldStats, Seen, ServiceSlot};

    // SAFETY: `repr(C)`, Copy, 'static, integers alone, and the assert above shows that there is no padding.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ServiceSlot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Seen {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HoldStats {}
}

/// What is to be done with a first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, to other programs and the node's own rules.
    Pass,
    /// It is told of and dropped.
    Hold,
}

impl Heat {
    /// Connections are none of our business. Also what an empty slot says.
    pub const OFF: u32 = 0;
    /// No pod takes connections, or the node's rules may not know yet that one does.
    pub const COLD: u32 = 1;
    /// Pods take connections.
    pub const WARM: u32 = 2;
}

impl What {
    /// A first packet that is now held.
    pub const SYN: u32 = 1;
    /// A pod that was tried has refused, and the client was not told.
    pub const REFUSED: u32 = 2;
    /// A pod that was tried has answered; the answer is on its way to the client.
    pub const TAKEN: u32 = 3;
}

impl Seen {
    /// Room for every header of a first packet over Ethernet, IPv6 included: 14, 40 and at most 60 bytes.
    pub const MOST: usize = 128;
}

/// The mark of packets that the agent sends on: what bears it is not held again, and the mark is taken off. Clients cannot
/// set it, for the kernel takes marks off packets that leave a network namespace.
pub const MARK: u32 = 0x526f_7573;

/// How long the programs go on without a sign of life from their agent. Whatever they would do then, nobody would end it.
pub const HEARTBEAT_NS: u64 = 30_000_000_000;

/// What becomes of a first packet to a Service of this heat, with the agent's last sign of life at `heartbeat_ns`.
#[inline]
pub const fn decide(heat: u32, now_ns: u64, heartbeat_ns: u64) -> Verdict {
    if heat == Heat::COLD && now_ns.saturating_sub(heartbeat_ns) <= HEARTBEAT_NS {
        Verdict::Hold
    } else {
        Verdict::Pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cold_service_with_an_agent_that_lives_holds() {
        let now = 100_000_000_000;
        assert_eq!(decide(Heat::COLD, now, now), Verdict::Hold);
        assert_eq!(decide(Heat::COLD, now, now - HEARTBEAT_NS), Verdict::Hold);
        assert_eq!(decide(Heat::COLD, now, now - HEARTBEAT_NS - 1), Verdict::Pass);
        assert_eq!(decide(Heat::COLD, now, now + 5), Verdict::Hold, "another CPU's clock may be ahead");
        for heat in [Heat::OFF, Heat::WARM, 3, u32::MAX] {
            assert_eq!(decide(heat, now, now), Verdict::Pass);
        }
    }

    #[test]
    fn an_agent_that_never_gave_a_sign_holds_nothing() {
        assert_eq!(decide(Heat::COLD, HEARTBEAT_NS + 1, 0), Verdict::Pass);
    }
}
