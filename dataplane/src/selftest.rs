//! Proves at start that the kernel counts: one connection over loopback by a socket of our own must appear as opened and
//! as closed. Catches what loading and attaching cannot show, such as a socket that belongs to another cgroup.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use interceptor_common::Stats;
use socket2::{Domain, SockRef, Socket, Type};

use crate::{ledger::Maps, slots::SELF_TEST};

/// Loopback answers at once, or something drops the packets.
const CONNECT: Duration = Duration::from_secs(1);

/// Why the kernel is not trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelfTestError {
    #[error("self-test over loopback: {step}")]
    Io { step: &'static str, source: io::Error },
    #[error("self-test: expected 1 connection opened, 1 closed and 0 failed, the kernel counted {}, {} and {}", .0.opened, .0.closed, .0.failed)]
    NotCounted(Stats),
}

/// Makes the connection and compares. Leaves nothing behind in the address map.
pub(crate) fn run(maps: &mut impl Maps<Counters = Stats>) -> Result<(), SelfTestError> {
    let step = |step| move |source| SelfTestError::Io { step, source };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(step("listen"))?;
    let addr = listener.local_addr().map_err(step("listen"))?;
    let before = maps.stats(SELF_TEST).map_err(step("read the counters"))?;
    maps.set(addr, SELF_TEST).map_err(step("add the address"))?;
    let connected = connect(addr);
    maps.remove(addr).map_err(step("remove the address"))?;
    connected.map_err(step("connect"))?;
    let counted = maps.stats(SELF_TEST).map_err(step("read the counters"))?.since(&before);
    let expected = (counted.opened, counted.closed, counted.failed) == (1, 1, 0);
    if expected { Ok(()) } else { Err(SelfTestError::NotCounted(counted)) }
}

/// Connects and resets, so that the close is complete when this returns and no port lingers.
fn connect(addr: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&addr.into(), CONNECT)
}
