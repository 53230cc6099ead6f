//! Sends connections to cold Services to an interceptor, and tells their clients of the Service.

use aya_ebpf::programs::SockAddrContext;
use interceptor_common::{AddrKey, steer::instead};

use crate::{
    address::{self, Family},
    maps,
};

/// Changes the destination of a connection that is to begin, if it is an interceptor's to take.
#[inline(always)]
pub(crate) fn connect(ctx: &SockAddrContext, family: Family) {
    if address::protocol(ctx) != u32::from(AddrKey::TCP) {
        return;
    }
    let asked = address::destination(ctx, family);
    let Some(slot) = maps::service(&asked) else { return };
    let Some(port) = instead(&slot, maps::now_ns(), maps::heartbeat_ns()) else { return };
    if maps::is_interceptor() {
        return;
    }
    let Some(addr_be) = maps::interceptor(&asked) else { return maps::count_nobody() };
    let instead = AddrKey::v6(addr_be, port.to_be());
    maps::note(ctx, &asked, &instead);
    address::set_destination(ctx, family, &instead);
}

/// Gives the peer as the client knows it.
#[inline(always)]
pub(crate) fn peer(ctx: &SockAddrContext, family: Family) {
    let Some(steered) = maps::steered(ctx) else { return };
    // The socket may have been connected anew, to somebody else.
    if address::destination(ctx, family) == steered.instead {
        address::set_destination(ctx, family, &steered.asked);
    }
}
