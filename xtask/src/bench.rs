//! `cargo xtask bench`: measures the interceptor beside nginx and HAProxy (`proxy`), how its routes scale (`routes`), what the
//! node's agent costs beside proxies (`direct`), and how a workload wakes on a cluster (`coldstart`).
//!
//! ```text
//! proxy ── case ──> peer (start nginx, HAProxy, interceptor) ──> load (wrk, h2load) ──┐
//!   every round, peers in turn:  cpu before, load, cpu after  ──> sample ──> summary ─┴─> page (table), plot (SVG)
//! ```

mod case;
mod coldstart;
mod cpu;
mod direct;
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

/// The benches.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Requests per CPU-second and latency of the proxy, beside nginx and HAProxy.
    Proxy(proxy::ProxyArgs),
    /// Look-up, memory, CPU and delay of one more route, with 10 and with 10,000 routes.
    Routes(routes::RoutesArgs),
    /// What it costs to reach pods without a proxy while the kernel counts, beside nothing at all and beside proxies.
    Direct(direct::DirectArgs),
    /// Phases of a cold start on real nodes with real KEDA.
    Coldstart(coldstart::ColdstartArgs),
    /// The client of `coldstart`; started by that alone.
    #[command(hide = true)]
    Request {
        /// Where to.
        proxy: std::net::SocketAddr,
        /// Which host to ask for.
        host: String,
    },
}

/// Runs one of the benches.
pub(crate) fn run(root: &Path, command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Proxy(args) => proxy::run(root, args),
        BenchCommand::Routes(args) => routes::run(root, args),
        BenchCommand::Direct(args) => direct::run(root, args),
        BenchCommand::Coldstart(args) => coldstart::run(root, args),
        BenchCommand::Request { proxy, host } => coldstart::request::run(*proxy, host),
    }
}
