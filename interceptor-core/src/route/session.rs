//! Sessions: requests of one client that shall reach the same pod.

use std::{sync::Arc, time::Duration};

/// What a route says of sessions: a cookie tells which pod a client belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The cookie's name.
    pub cookie: Arc<str>,
    /// How old a session may get before it is given a pod anew; `None` is no limit.
    pub lifetime: Option<Duration>,
}
