//! HAProxy as proxy: one thread, keep-alive both ways, no log.

use std::{fmt::Write as _, net::SocketAddr, path::Path, process::Command};

use anyhow::Result;

use super::{Peer, configuration, pinned};
use crate::bench::{case::Case, manifests};

/// HAProxy in the foreground: every route's host, looked up in a map, goes to the one origin.
pub(super) fn command(
    program: &Path,
    folder: &Path,
    case: &Case,
    http1: SocketAddr,
    http2: SocketAddr,
    origin: &Peer,
) -> Result<Command> {
    let mut routes = String::new();
    for number in 0..case.routes {
        // Writing to a String cannot fail.
        let _ = writeln!(routes, "{} origin", manifests::host(number));
    }
    let map = configuration(folder, "routes.map", &routes)?;
    let (address, protocol) = if case.h2_origin { (origin.http2, " proto h2") } else { (origin.http1, "") };
    let text = format!(
        "global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
  option http-keep-alive
  http-reuse always
frontend clients
  bind {http1} backlog 4096
  bind {http2} backlog 4096 proto h2
  option forwardfor
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  use_backend %[req.hdr(host),field(1,:),lower,map_str({map})]
backend origin
  server origin {address}{protocol} pool-max-conn 512 pool-purge-delay 1h
",
        map = map.display()
    );
    let config = configuration(folder, "haproxy.cfg", &text)?;
    let mut command = pinned(program, true);
    command.arg("-db").arg("-f").arg(config);
    Ok(command)
}
