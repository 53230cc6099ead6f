//! How a kubelet's probes are told from other requests of its machine: what is looked for, and the key of the map of those that do not
//! name themselves.

use crate::AddrKey;

/// How many bytes of a request's head are searched for the name. The kubelet's own have it in the first 200, if path and host are not
/// very long.
pub const SEARCHED: usize = 256;

/// How many bytes of a request's head are compared. The kernel takes keys of at most 256 bytes.
pub const COMPARED: usize = 128;

/// How a kubelet's probe begins that does not name itself: the key of a longest-prefix map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ProbeHead {
    /// The pod's address and port.
    pub addr: AddrKey,
    /// The first bytes of the request; zeros behind them.
    pub head: [u8; COMPARED],
}

const _: () = assert!(size_of::<ProbeHead>() == 148);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
// SAFETY: `repr(C)`, Copy, 'static, integers alone, and the assert above shows that there is no padding.
unsafe impl aya::Pod for ProbeHead {}

// === impl ProbeHead ===

impl ProbeHead {
    /// Bits of the address, which all keys have.
    pub const ADDR_BITS: u32 = 160;

    /// The key of requests to `addr` that begin with `head`, as far as it is compared, and how many bits of the key count.
    pub fn new(addr: AddrKey, head: &[u8]) -> (u32, Self) {
        let mut key = Self { addr, head: [0; COMPARED] };
        key.head.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
        (Self::bits(head.len().min(COMPARED) as u32), key)
    }

    /// How many bits of a key count of which so many bytes of the head do.
    #[inline(always)]
    pub const fn bits(len: u32) -> u32 {
        let len = if len < COMPARED as u32 { len } else { COMPARED as u32 };
        Self::ADDR_BITS + 8 * len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_of_a_head_counts_as_is_compared() {
        let addr = AddrKey::new("10.0.0.1:80".parse().unwrap());
        let (bits, key) = ProbeHead::new(addr, b"GET /");
        assert_eq!((bits, &key.head[..6]), (200, &b"GET /\0"[..]));
        let (bits, key) = ProbeHead::new(addr, &[b'a'; 200]);
        assert_eq!((bits, key.head), (160 + 1024, [b'a'; COMPARED]));
    }
}
