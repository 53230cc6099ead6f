//! `cargo xtask bench`: measures the interceptor beside nginx and HAProxy (`proxy`) and how its routes scale (`routes`).
//!
//! ```text
//! proxy ── case ──> peer (start nginx, HAProxy, interceptor) ──> load (wrk, h2load) ──┐
//!   every round, peers in turn:  cpu before, load, cpu after  ──> sample ──> summary ─┴─> page (table), plot (SVG)
//! ```

mod case;
mod cpu;
mod load;
mod machine;
mod manifests;
mod page;
mod peer;
mod plot;
mod probe;
mod proxy;
mod routes;
mod summary;

use std::path::Path;

use anyhow::Result;
use clap::Subcommand;

/// The two benches.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Requests per CPU-second and latency of the proxy, beside nginx and HAProxy.
    Proxy(proxy::ProxyArgs),
    /// Look-up, memory, CPU and delay of one more route, with 10 and with 10,000 routes.
    Routes(routes::RoutesArgs),
}

/// Runs one of the benches.
pub(crate) fn run(root: &Path, command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Proxy(args) => proxy::run(root, args),
        BenchCommand::Routes(args) => routes::run(root, args),
    }
}
