//! Addresses of pods as keys of maps. Written by user space, looked up by the programs.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// A pod's address and port. An IPv4 address is stored as its IPv4-mapped IPv6 address, so that one map holds both
/// families and a socket of either finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AddrKey {
    /// The address as four words in network byte order, as the kernel's contexts give it.
    pub addr_be: [u32; 4],
    /// The port in network byte order.
    pub port_be: u16,
    /// The protocol: [`AddrKey::TCP`].
    pub proto: u8,
    /// Always zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<AddrKey>() == 20);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait")]
// SAFETY: `repr(C)`, Copy, 'static, integers alone, and the assert above shows that there is no padding.
unsafe impl aya::Pod for AddrKey {}

impl AddrKey {
    /// `IPPROTO_TCP`.
    pub const TCP: u8 = 6;

    /// The key of an IPv6 address (or an IPv4-mapped one), as words and port in network byte order.
    pub const fn v6(addr_be: [u32; 4], port_be: u16) -> Self {
        Self { addr_be, port_be, proto: Self::TCP, reserved: 0 }
    }

    /// The key of an IPv4 address, as word and port in network byte order.
    pub const fn v4(addr_be: u32, port_be: u16) -> Self {
        Self::v6([0, 0, 0xffff_u32.to_be(), addr_be], port_be)
    }

    /// The key of a socket address. IPv6 flow labels and scopes take no part.
    pub const fn new(addr: SocketAddr) -> Self {
        let port_be = addr.port().to_be();
        match addr.ip() {
            IpAddr::V4(ip) => Self::v4(u32::from_ne_bytes(ip.octets()), port_be),
            IpAddr::V6(ip) => Self::v6(words(ip), port_be),
        }
    }

    /// Whether it is an IPv4 address, mapped or not.
    #[inline]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.addr_be;
        a == 0 && b == 0 && c == 0xffff_u32.to_be()
    }

    /// The address as bytes in network order.
    #[inline]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.addr_be;
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_ne_bytes(), b.to_ne_bytes());
        let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (c.to_ne_bytes(), d.to_ne_bytes());
        [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3]
    }

    /// The socket address; an IPv4-mapped one comes back as IPv4.
    pub const fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from_octets(self.octets()).to_canonical(), u16::from_be(self.port_be))
    }
}

const fn words(ip: Ipv6Addr) -> [u32; 4] {
    let o = ip.octets();
    [
        u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
        u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
        u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
        u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> AddrKey {
        AddrKey::new(text.parse().expect("the test's address is one"))
    }

    #[test]
    fn an_address_comes_back_from_its_key() {
        for text in ["10.1.2.3:80", "[2001:db8::1]:8443", "0.0.0.0:0", "255.255.255.255:65535", "[::1]:1"] {
            assert_eq!(key(text).socket_addr().to_string(), text);
        }
    }

    #[test]
    fn an_ipv4_address_and_its_mapped_form_are_one_key() {
        assert_eq!(key("10.1.2.3:80"), key("[::ffff:10.1.2.3]:80"));
        assert_ne!(key("10.1.2.3:80"), key("10.1.2.3:81"));
        assert_ne!(key("10.1.2.3:80"), key("[::10.1.2.3]:80"));
    }

    #[test]
    fn words_are_in_network_byte_order() {
        let key = key("10.1.2.3:80");
        assert_eq!(key.addr_be[3].to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(key.port_be.to_ne_bytes(), [0, 80]);
    }
}
