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
mod proxy;
mod summary;

use std::path::Path;

use anyhow::Result;
use clap::Subcommand;

/// The two benches.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Requests per CPU-second and latency of the proxy, beside nginx and HAProxy.
    Proxy(proxy::ProxyArgs),
}

/// Runs one of the benches.
pub(crate) fn run(root: &Path, command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Proxy(args) => proxy::run(root, args),
    }
}
