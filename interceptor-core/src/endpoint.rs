//! Addresses that requests can be sent to.

use std::{net::SocketAddr, sync::Arc};

/// Pods by their address and target port, with their names if slices tell them; no address is IPv4 in the form of IPv6. Versions share what is the same in all of them: to
/// make one of another, and to tell what differs by [`diff`](imbl::OrdMap::diff), costs as much as has changed.
pub type Endpoints = imbl::OrdMap<SocketAddr, Option<Arc<str>>>;
