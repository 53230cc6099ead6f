//! Our interceptor as proxy: one worker, routes from a folder of manifests, as its users start it.

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::Result;

use super::{Peer, free_port, pinned};
use crate::bench::{case::Case, manifests};

/// The interceptor with this case's manifests.
pub(super) fn command(program: &Path, folder: &Path, case: &Case, proxy: SocketAddr, origin: &Peer) -> Result<Command> {
    let folder = folder.join("manifests");
    let address = if case.h2_origin { origin.http2 } else { origin.http1 };
    manifests::write(&folder, address, case.h2_origin, case.routes)?;
    serving(pinned(program, true), &folder, proxy)
}

/// The interceptor on this port, with the manifests of this folder. Data plane level none, so that the numbers do not
/// depend on what this machine's kernel allows.
pub(crate) fn serving(mut command: Command, folder: &Path, proxy: SocketAddr) -> Result<Command> {
    let (admin, metrics) = (free_port()?, free_port()?);
    command.arg("--source").arg(format!("dir:{}", folder.display()));
    command.args(["--workers", "1", "--dataplane", "none"]);
    command.env("KEDA_HTTP_PROXY_PORT", proxy.port().to_string());
    command.env("KEDA_HTTP_ADMIN_PORT", admin.port().to_string());
    command.env("OTEL_PROM_EXPORTER_PORT", metrics.port().to_string());
    Ok(command)
}
