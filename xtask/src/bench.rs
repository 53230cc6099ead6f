//! `cargo xtask bench`: measures the interceptor beside nginx and HAProxy (`proxy`), how its routes scale (`routes`) and
//! its endpoints in the kernel (`maps`), what the node's agent costs beside proxies (`direct`), and how a workload wakes on a
//! cluster (`coldstart`, `hold`, `effect`).
//!
//! ```text
//! proxy ── case ──> peer (start nginx, HAProxy, interceptor) ──> load (wrk, h2load) ──┐
//!   every round, peers in turn:  cpu before, load, cpu after  ──> sample ──> summary ─┴─> page (table), plot (SVG)
//! ```

mod case;
mod clock;
mod cluster;
mod coldstart;
mod cpu;
mod direct;
mod effect;
mod files;
mod hold;
mod load;
mod machine;
mod manifests;
mod maps;
mod page;
mod peer;
mod plot;
mod probe;
mod proxy;
mod request;
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
    /// Until the kernel's maps are in step with 100,000 endpoints, and with one change among them.
    Maps(maps::MapsArgs),
    /// What it costs to reach pods without a proxy while the kernel counts, beside nothing at all and beside proxies.
    Direct(direct::DirectArgs),
    /// Phases of a cold start on real nodes with real KEDA.
    Coldstart(coldstart::ColdstartArgs),
    /// How soon a client is connected to a pod that begins to listen: held by the agent, beside other ways.
    Hold(hold::HoldArgs),
    /// How soon one more route is in effect on a cluster.
    Effect(effect::EffectArgs),
    /// The client of `coldstart` and `hold`; started by those alone.
    #[command(hide = true)]
    Request {
        /// Where to.
        to: std::net::SocketAddr,
        /// Which host to ask for.
        host: String,
        /// Connect again when refused.
        #[arg(long)]
        retry: bool,
    },
    /// The client of `effect`; started by that alone.
    #[command(hide = true)]
    Routed {
        /// Where to.
        to: std::net::SocketAddr,
    },
}

/// Runs one of the benches.
pub(crate) fn run(root: &Path, command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Proxy(args) => proxy::run(root, args),
        BenchCommand::Routes(args) => routes::run(root, args),
        BenchCommand::Maps(args) => maps::run(root, args),
        BenchCommand::Direct(args) => direct::run(root, args),
        BenchCommand::Coldstart(args) => coldstart::run(root, args),
        BenchCommand::Hold(args) => hold::run(root, args),
        BenchCommand::Effect(args) => effect::run(root, args),
        BenchCommand::Routed { to } => effect::ask(*to),
        BenchCommand::Request { to, host, retry } => request::run(*to, host, *retry),
    }
}
