//! What the agent was told, parsed once.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use api::names::SERVICE_NAME_LABEL;
use dataplane::{Hooks, count::Count, steer::Steer};
use interceptor_core::ObjectKey;
use runtime::{
    args::{KubeArgs, LogArgs},
    env::{Env, EnvError},
    listen::everywhere,
    log,
    watch::{Cluster, Kind, Source, Sources, Watch},
};
use telemetry::config::MetricsConfig;

use super::Steering;

/// Where the agent serves unless told: free of the ports that the add-on, Kubernetes and common exporters take, for a node's
/// ports are everybody's.
const ADMIN_PORT: u16 = 9097;

/// Runs the data plane of one node: holds connections to Services whose workload sleeps, and counts those that go to pods
/// without a proxy, for routes with `dataPath: Direct`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "Settings are read from environment variables:\n  \
    ROUSE_NODE_NAME, or NODE_NAME (required)   the node's name, as EndpointSlices tell it\n  \
    ROUSE_AGENT_PORT (9097)                    probes, counts, state and metrics\n  \
    KEDA_HTTP_WATCH_NAMESPACE (all)            the routes' namespace\n  \
    ROUSE_BPFFS                                where bpffs is mounted, as --bpffs\n  \
    KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE, _SERVICE   the interceptors' Service: what comes from them is not counted\n  \
    ROUSE_CGROUP_ROOT (where cgroup v2 is mounted)   the folder below which the pods' cgroups are\n  \
    ROUSE_TC_HOOKS (auto)                      auto, or filters: below clsact, also where the kernel has links (from 6.6)\n  \
    ROUSE_STEER (auto)                         auto, all or off: connections to cold Services that go to interceptors\n  \
    ROUSE_NODE_CLIENTS (hold)                  hold, or leave: connections of the node itself; holding takes CAP_NET_RAW\n  \
    ROUSE_HOLD_EXPIRY (reset)                  reset, or drop: how a connection ends that has waited for as long as it may\n  \
    OTEL_EXPORTER_OTLP_METRICS_ENABLED (false)   metrics to a collector, by OpenTelemetry's own OTEL_… variables\n  \
    ROUSE_LOG                                  a log filter such as info,dataplane=debug")]
pub struct Args {
    /// Where routes, Services and EndpointSlices come from, instead of the Kubernetes API; may be given several times.
    /// `dir:PATH` is a folder of Kubernetes manifests, watched for changes.
    #[arg(long = "source", value_name = "SOURCE")]
    pub sources: Vec<Source>,

    /// Where bpffs is mounted: what the kernel holds is pinned there, and goes on while the agent is replaced. Without it, it
    /// ends with the agent. Environment: `ROUSE_BPFFS`.
    #[arg(long, value_name = "PATH")]
    pub bpffs: Option<PathBuf>,

    /// Take away what an agent has left in the kernel, and end. That agent must have ended.
    #[arg(long)]
    pub remove: bool,

    /// End with an error when connections can't be held, or the kernel refuses the programs that count, instead of going on
    /// without. Missing rights to count are told in the log and in `/state`.
    #[arg(long)]
    pub required: bool,

    /// How lines are logged.
    #[command(flatten)]
    pub log: LogArgs,

    /// The Kubernetes API.
    #[command(flatten)]
    pub kube: KubeArgs,
}

/// Everything that [`build`](super::build) needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where probes, counts, state and metrics are served; port 0 takes a free one.
    pub admin: SocketAddr,
    /// The log, if the admin port shall change its filter.
    pub log: Option<log::Handle>,
    /// Where objects come from.
    pub sources: Sources,
    /// The node's name.
    pub node: String,
    /// Whether to end when connections can't be held, or the kernel refuses the programs that count.
    pub required: bool,
    /// Where what the kernel holds is pinned.
    pub bpffs: Option<PathBuf>,
    /// What the hold reaches.
    pub holds: Holds,
    /// Below which folder pods' cgroups are, if it is not where cgroup v2 is mounted.
    pub cgroup_root: Option<PathBuf>,
    /// The Service of the interceptors' admin ports, if there are any.
    pub interceptors: Option<ObjectKey>,
    /// Which connections to cold Services are steered to interceptors.
    pub steering: Steering,
    /// How metrics are told to an OpenTelemetry collector, if they are.
    pub metrics: Option<MetricsConfig>,
}

const STEERINGS: [(&str, Steering); 3] = [("auto", Steering::Auto), ("all", Steering::All), ("off", Steering::Off)];

/// What the hold reaches, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Holds {
    /// By what its programs are on devices.
    pub hooks: Hooks,
    /// Whether connections of the node itself are held, too.
    pub node_clients: bool,
    /// Whether a client is refused that has waited for as long as it may, by a reset; it is told nothing otherwise.
    pub refuses: bool,
}

// === impl Args ===

impl Args {
    /// Takes away what an agent has left in the kernel.
    pub fn remove(self, env: &Env) -> anyhow::Result<()> {
        let bpffs = bpffs(self.bpffs, env)?;
        dataplane::Hold::remove(bpffs.as_deref()).context("cannot remove what an agent has left to hold")?;
        Steer::remove(bpffs.as_deref()).context("cannot remove what an agent has left to steer")?;
        Count::remove(bpffs.as_deref()).context("cannot remove what an agent has left to count")
    }
}

// === impl Config ===

impl Config {
    /// Settings from the command line and the environment.
    pub fn new(args: Args, env: &Env) -> Result<Self, EnvError> {
        let Args { sources, bpffs, remove: _, required, log: _, kube } = args;
        let namespace = env.optional_string("KEDA_HTTP_WATCH_NAMESPACE")?;
        let node = match env.optional_string("ROUSE_NODE_NAME")? {
            Some(node) => node,
            None => env.required_string("NODE_NAME", "the node's name")?,
        };
        let interceptors = match env.optional_string("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE")? {
            Some(service) => {
                let variable = "KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE";
                Some(ObjectKey::new(env.required_string(variable, "the interceptors' namespace")?, service))
            }
            None => None,
        };
        let sources = Sources::new(sources, || {
            with_interceptors(cluster(kube, namespace.as_deref()), namespace.as_deref(), interceptors.as_ref())
        });
        Ok(Self {
            admin: everywhere(env.port("ROUSE_AGENT_PORT", ADMIN_PORT)?),
            log: None,
            sources,
            node,
            required,
            bpffs: self::bpffs(bpffs, env)?,
            holds: Holds {
                hooks: env.one_of(
                    "ROUSE_TC_HOOKS",
                    &[("auto", Hooks::Auto), ("filters", Hooks::Filters)],
                    Hooks::Auto,
                )?,
                node_clients: env.one_of("ROUSE_NODE_CLIENTS", &[("hold", true), ("leave", false)], true)?,
                refuses: env.one_of("ROUSE_HOLD_EXPIRY", &[("reset", true), ("drop", false)], true)?,
            },
            cgroup_root: env.optional_string("ROUSE_CGROUP_ROOT")?.map(PathBuf::from),
            interceptors,
            steering: env.one_of("ROUSE_STEER", &STEERINGS, Steering::Auto)?,
            metrics: telemetry::Config::from_env(env)?.metrics,
        })
    }
}

/// Where bpffs is mounted, by the flag or the environment.
fn bpffs(flag: Option<PathBuf>, env: &Env) -> Result<Option<PathBuf>, EnvError> {
    match flag {
        Some(path) => Ok(Some(path)),
        None => Ok(env.optional_string("ROUSE_BPFFS")?.map(PathBuf::from)),
    }
}

/// What the data plane needs to know: only an InterceptorRoute can ask for it.
fn cluster(kube: KubeArgs, namespace: Option<&str>) -> Cluster {
    let all = |kind| Watch::all(kind, namespace);
    let slices = all(Kind::EndpointSlice).labelled(SERVICE_NAME_LABEL);
    let watches = vec![all(Kind::InterceptorRoute), all(Kind::Service), slices];
    Cluster { kubeconfig: kube.kubeconfig, watches }
}

/// Where the agent sees routes of one namespace alone, the interceptors' slices may be in another.
fn with_interceptors(mut cluster: Cluster, namespace: Option<&str>, interceptors: Option<&ObjectKey>) -> Cluster {
    if let Some(service) = interceptors
        && namespace.is_some_and(|namespace| namespace != service.namespace())
    {
        let slices = Watch::all(Kind::EndpointSlice, Some(service.namespace()));
        cluster.watches.push(slices.labelled(format!("{SERVICE_NAME_LABEL}={}", service.name())));
    }
    cluster
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&'static str, &'static str)]) -> Result<Config, EnvError> {
        let (log, kube) = (LogArgs::default(), KubeArgs::default());
        let args =
            Args { sources: vec![Source("/tmp".into())], bpffs: None, remove: false, required: false, log, kube };
        Config::new(args, &Env::from_pairs(pairs.iter().copied()))
    }

    #[test]
    fn our_name_for_the_node_comes_before_the_usual_one() {
        let config = parse(&[("NODE_NAME", "a"), ("ROUSE_NODE_NAME", "b"), ("ROUSE_AGENT_PORT", "1234")]).unwrap();
        assert_eq!((config.node.as_str(), config.admin.port()), ("b", 1234));
        assert_eq!(parse(&[("NODE_NAME", "a")]).unwrap().admin.port(), ADMIN_PORT);
    }

    #[test]
    fn what_is_steered_is_one_of_three() {
        let steering = |pairs: &[_]| parse(&[&[("NODE_NAME", "a")], pairs].concat()).map(|config| config.steering);
        assert_eq!(steering(&[]), Ok(Steering::Auto));
        assert_eq!(steering(&[("ROUSE_STEER", "all")]), Ok(Steering::All));
        assert_eq!(steering(&[("ROUSE_STEER", "off")]), Ok(Steering::Off));
        let error = steering(&[("ROUSE_STEER", "on")]).unwrap_err().to_string();
        assert!(error.ends_with("expected one of auto, all, off"), "{error}");
    }

    #[test]
    fn an_agent_that_does_not_know_its_node_says_so() {
        let error = parse(&[]).unwrap_err().to_string();
        assert!(error.contains("NODE_NAME"), "{error}");
    }
}
