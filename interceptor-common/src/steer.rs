//! Steering: a connection to a Service whose workload sleeps goes to an interceptor instead, from the moment that a client
//! asks for it. What the programs and the agent tell each other, and the decisions of the programs.

use crate::{
    AddrKey,
    hold::{ServiceSlot, Verdict, decide},
};

/// What was done with a connection. Kept with its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Steered {
    /// Where the client wants to connect, which it is told that it does.
    pub asked: AddrKey,
    /// Where it connects.
    pub instead: AddrKey,
}

const _: () = assert!(size_of::<Steered>() == 40);

/// What the steering programs did, each CPU its own share. All only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SteerStats {
    /// Connections that go to an interceptor.
    pub steered: u64,
    /// Those of them whose clients see the interceptor's address, because there was no memory to keep the other.
    pub seen_through: u64,
    /// Connections that no interceptor of their family could take.
    pub nobody: u64,
}

const _: () = assert!(size_of::<SteerStats>() == 24);

/// Which interceptors of a family connections are spread over: the first so many of one half of the family's part of
/// `INTERCEPTORS`. The other half is written meanwhile. One word in `CHOICES`, at the index of the family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The half.
    pub second: bool,
    /// How many.
    pub count: u32,
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
// SAFETY: `repr(C)`, Copy, 'static, integers alone, and the assert above shows that there is no padding.
unsafe impl aya::Pod for SteerStats {}

/// Interceptors of one family that a node steers to at most.
pub const INTERCEPTORS: u32 = 256;

/// Address families, IPv4 before IPv6.
pub const FAMILIES: u32 = 2;

// === impl Choice ===

impl Choice {
    const SECOND: u32 = 1 << 31;

    /// As the map has it.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self { second: word & Self::SECOND != 0, count: word & !Self::SECOND }
    }

    /// For the map.
    pub const fn word(self) -> u32 {
        self.count | if self.second { Self::SECOND } else { 0 }
    }

    /// Where in `INTERCEPTORS` the half of a family begins.
    #[inline(always)]
    pub const fn base(self, family: u32) -> u32 {
        (family * 2 + self.second as u32) * INTERCEPTORS
    }

    /// One of them by chance, as index in `INTERCEPTORS`.
    #[inline(always)]
    pub const fn pick(self, family: u32, random: u32) -> Option<u32> {
        if self.count == 0 { None } else { Some(self.base(family) + random % self.count) }
    }
}

/// The port of interceptors that a connection to a Service goes to, with the agent's last sign of life at `heartbeat_ns`;
/// `None` leaves it alone.
#[inline]
pub const fn instead(slot: &ServiceSlot, now_ns: u64, heartbeat_ns: u64) -> Option<u16> {
    match decide(slot.heat, now_ns, heartbeat_ns) {
        Verdict::Hold if slot.port != 0 && slot.port <= u16::MAX as u32 => Some(slot.port as u16),
        _ => None,
    }
}

/// The index of an address's family.
#[inline]
pub const fn family(addr: &AddrKey) -> u32 {
    !addr.is_v4() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::{HEARTBEAT_NS, Heat};

    #[test]
    fn a_cold_service_with_a_port_is_steered_while_the_agent_lives() {
        let now = 100_000_000_000;
        let cold = ServiceSlot { heat: Heat::COLD, port: 20_000 };
        assert_eq!(instead(&cold, now, now), Some(20_000));
        assert_eq!(instead(&cold, now, now - HEARTBEAT_NS - 1), None);
        assert_eq!(instead(&ServiceSlot { heat: Heat::WARM, ..cold }, now, now), None);
        assert_eq!(instead(&ServiceSlot::default(), now, now), None);
        for port in [0, 65_536, u32::MAX] {
            assert_eq!(instead(&ServiceSlot { port, ..cold }, now, now), None);
        }
    }

    #[test]
    fn a_choice_keeps_to_its_half_of_its_family() {
        for (family, second, first) in [(0, false, 0), (0, true, 256), (1, false, 512), (1, true, 768)] {
            let choice = Choice { second, count: 3 };
            assert_eq!(Choice::from_word(choice.word()), choice);
            let picked: Vec<_> = (0..6).map(|random| choice.pick(family, random)).collect();
            assert_eq!(picked, [0, 1, 2, 0, 1, 2].map(|at| Some(first + at)));
            let full = Choice { count: INTERCEPTORS, ..choice };
            assert_eq!(full.pick(family, u32::MAX), Some(first + 255));
        }
        assert_eq!(Choice::from_word(0).pick(1, 7), None);
    }

    #[test]
    fn a_mapped_address_is_of_the_family_that_it_is_of() {
        let family = |text: &str| family(&AddrKey::new(text.parse().unwrap()));
        assert_eq!((family("10.0.0.1:80"), family("[::ffff:10.0.0.1]:80")), (0, 0));
        assert_eq!((family("[fd00::1]:80"), family("[::10.0.0.1]:80")), (1, 1));
    }
}
