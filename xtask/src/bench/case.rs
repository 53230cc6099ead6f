//! What is measured: the cases of `bench proxy`, and who can take part in each.

use crate::bench::peer::Kind;

/// Clients' side of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// HTTP/1.1 with keep-alive, from wrk.
    Http1,
    /// HTTP/1.1, a new connection for each request, from wrk.
    Http1Close,
    /// Cleartext HTTP/2 with prior knowledge, from h2load: `streams` at a time on each connection.
    Http2 {
        /// Requests in flight on a connection.
        streams: u32,
    },
}

/// One case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What it is, for the table.
    pub(crate) title: &'static str,
    /// Clients' side.
    pub(crate) load: Load,
    /// Connections from clients.
    pub(crate) connections: u32,
    /// Path asked for.
    pub(crate) path: &'static str,
    /// Routes configured; the requests go to all of them in turn.
    pub(crate) routes: usize,
    /// Whether the origin is spoken to over cleartext HTTP/2.
    pub(crate) h2_origin: bool,
}

const SMALL: Case = Case {
    name: "small-32",
    title: "small responses, keep-alive, 32 connections",
    load: Load::Http1,
    connections: 32,
    path: "/small",
    routes: 1,
    h2_origin: false,
};

/// Every case, in the order of the table.
pub(crate) const ALL: [Case; 8] = [
    SMALL,
    Case { name: "small-256", title: "small responses, keep-alive, 256 connections", connections: 256, ..SMALL },
    Case {
        name: "small-32-10k",
        title: "small responses, keep-alive, 32 connections, 10,000 routes",
        routes: 10_000,
        ..SMALL
    },
    Case {
        name: "small-256-10k",
        title: "small responses, keep-alive, 256 connections, 10,000 routes",
        connections: 256,
        routes: 10_000,
        ..SMALL
    },
    Case { name: "64k", title: "64 KiB responses, keep-alive, 32 connections", path: "/64k", ..SMALL },
    Case {
        name: "close",
        title: "one request a connection, 32 at a time",
        load: Load::Http1Close,
        connections: 32,
        ..SMALL
    },
    Case {
        name: "h2c",
        title: "HTTP/2 from clients, HTTP/1.1 to the origin, 8 connections of 8 streams",
        load: Load::Http2 { streams: 8 },
        connections: 8,
        ..SMALL
    },
    Case {
        name: "h2c-both",
        title: "HTTP/2 on both sides, 8 connections of 8 streams",
        load: Load::Http2 { streams: 8 },
        connections: 8,
        h2_origin: true,
        ..SMALL
    },
];

impl Case {
    /// Why this kind of proxy cannot take part, if so.
    pub(crate) fn excludes(&self, kind: Kind) -> Option<&'static str> {
        (self.h2_origin && kind == Kind::Nginx).then_some("nginx speaks HTTP/1.1 to origins")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
