//! One address that requests can be sent to.

use std::{net::SocketAddr, sync::Arc};

/// A pod's address and target port. Ordered by address, so that sets compare.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Pod IP and target port.
    pub addr: SocketAddr,
    /// The pod's name, if the slice tells it; for logs and `/state` alone.
    pub pod: Option<Arc<str>>,
}
