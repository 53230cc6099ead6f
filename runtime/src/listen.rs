//! Where a process listens.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// This port on all addresses of the machine, of both families where the kernel has both: what Go's `:port` means, which
/// the KEDA HTTP Add-on listens on. Without IPv6 it is IPv4 alone.
pub fn everywhere(port: u16) -> SocketAddr {
    let has_ipv6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    if has_ipv6 { (Ipv6Addr::UNSPECIFIED, port).into() } else { (Ipv4Addr::UNSPECIFIED, port).into() }
}

/// An address of IPv4 as such, although an IPv6 socket saw it.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_client_of_ipv4_is_let_in_and_seen_as_such() {
        let listener = TcpListener::bind(everywhere(0)).unwrap();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port())).unwrap();
        let (_stream, peer) = listener.accept().unwrap();
        assert_eq!(canonical(peer), client.local_addr().unwrap());
    }
}
