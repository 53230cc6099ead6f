//! The command line of `rouse-local`.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use interceptor_core::ObjectKey;

use crate::request::MAX_LOAD;

/// The whole loop on one machine: requests wake workloads, load grows them, silence ends them.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "rouse-local",
    version,
    about = "Scale to zero on one machine: the real interceptor and scaler, with KEDA's, the HPA's and the kubelet's part played here",
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// Only for our own children.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Everything else.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What children are started with.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Becomes another program, in a cgroup, for as long as the parent lives.
    #[command(hide = true)]
    RunChild {
        /// The parent's process id.
        #[arg(long)]
        parent: u32,
        /// The cgroup to enter.
        #[arg(long)]
        cgroup: Option<PathBuf>,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Settings of a run.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Folder of Kubernetes manifests: Deployment, Service, InterceptorRoute, ScaledObject, HTTPScaledObject. Watched, so
    /// that edits take effect.
    #[arg(long, value_name = "DIR", default_value = "examples/demo")]
    pub manifests: PathBuf,

    /// No terminal: send the requests, check each step from the outside, print a summary; fails when a step did not happen.
    #[arg(long)]
    pub once: bool,

    /// With --once: the summary as JSON on standard output, progress on standard error.
    #[arg(long, requires = "once")]
    pub json: bool,

    /// The route that --once uses: NAMESPACE/NAME. By default the first InterceptorRoute that a ScaledObject scales.
    #[arg(long, value_name = "ROUTE", value_parser = object_key)]
    pub route: Option<ObjectKey>,

    /// Requests at once, when there is load.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = load)]
    pub load: usize,

    /// What load asks for; added to the route's path.
    #[arg(long, value_name = "PATH", default_value = "/slow?ms=250")]
    pub load_path: String,

    /// How often the HPA decides; 15s in a cluster.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub hpa_sync_period: Duration,

    /// Level of the interceptor's data plane: auto, none or self.
    #[arg(long, value_name = "LEVEL")]
    pub dataplane: Option<String>,

    /// Workers of the interceptor.
    #[arg(long, value_name = "N")]
    pub workers: Option<u16>,

    /// Port for requests; a free one if zero.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub proxy_port: u16,

    /// The interceptor's admin port; a free one if zero.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub admin_port: u16,

    /// The scaler's gRPC port; a free one if zero.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub scaler_port: u16,

    /// The interceptor's binary; by default the one beside this.
    #[arg(long, value_name = "PATH")]
    pub interceptor: Option<PathBuf>,

    /// The scaler's binary; by default the one beside this.
    #[arg(long, value_name = "PATH")]
    pub scaler: Option<PathBuf>,

    /// Keep logs and EndpointSlices at the end.
    #[arg(long)]
    pub keep: bool,
}

fn object_key(text: &str) -> Result<ObjectKey, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(ObjectKey::new(namespace, name)),
        _ => Err("expected NAMESPACE/NAME".to_owned()),
    }
}

fn load(text: &str) -> Result<usize, String> {
    let load = text.parse::<NonZeroUsize>().ok().filter(|load| load.get() <= MAX_LOAD);
    load.map(NonZeroUsize::get).ok_or_else(|| format!("expected a number from 1 to {MAX_LOAD}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = interceptor_core::go_duration::parse(text).ok();
    let duration = duration.filter(|duration| *duration >= Duration::from_millis(100));
    duration.ok_or_else(|| "expected a duration of at least 100ms, such as 1s or 1m30s".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["rouse-local", "--once", "--json", "--route", "a/b", "--hpa-sync-period", "500ms"]);
        assert_eq!(cli.run.route, Some(ObjectKey::new("a", "b")));
        assert_eq!(cli.run.hpa_sync_period, Duration::from_millis(500));
        for wrong in [["--route", "a"], ["--load", "0"], ["--hpa-sync-period", "1"], ["--proxy-port", "70000"]] {
            assert!(Cli::try_parse_from(["rouse-local"].into_iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_child_takes_everything_after_the_dashes() {
        let cli = Cli::parse_from(["rouse-local", "run-child", "--parent", "7", "--", "serve", "--once"]);
        let Some(Command::RunChild { parent, cgroup, command }) = cli.command else { panic!("no command") };
        assert_eq!((parent, cgroup, command), (7, None, vec!["serve".to_owned(), "--once".to_owned()]));
    }
}
