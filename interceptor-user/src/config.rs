//! What the process was told: the add-on's environment variables and our flags, parsed once into typed settings.

use std::{
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use api::names::{RESPONSE_BODY_LABEL, SERVICE_NAME_LABEL};
use clap::Parser;
use interceptor_core::index::HostGuard;
use ipnet::IpNet;
use runtime::{
    args::{Encoder, KubeArgs, LogArgs},
    descriptors,
    env::{Env, EnvError},
    listen::everywhere,
    log,
    watch::{Cluster, Kind, Source, Sources, Watch},
};

use crate::{agent, rt, secrets::SecretSources, trust};

/// Requests held at once by one process, if nothing else is said: each holds a descriptor and some kilobytes.
const MAX_HELD: u64 = 10_000;

/// Clients connected at once to one process, if nothing else is said and descriptors allow as many.
const MAX_CONNECTIONS: u64 = 9_000;

/// Descriptors for everything but clients and pods: listeners, admin connections, files, eBPF maps.
const OTHER_DESCRIPTORS: u64 = 600;

/// Idle connections to one endpoint where the setting is zero; the default of Go's transport.
const IDLE_PER_HOST: u64 = 2;

/// The interceptor's command line. Settings of the KEDA HTTP Add-on come from its environment variables.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "interceptor",
    version = version(),
    args_conflicts_with_subcommands = true,
    about = "HTTP proxy that holds requests while their workload wakes from zero replicas",
    after_long_help = "Ports and timeouts are read from the environment variables of the KEDA HTTP Add-on, among them:\n  \
        KEDA_HTTP_WATCH_NAMESPACE (all namespaces)\n  \
        KEDA_HTTP_PROXY_PORT (required)   KEDA_HTTP_ADMIN_PORT (required)   OTEL_PROM_EXPORTER_PORT (2223)\n  \
        KEDA_HTTP_READINESS_TIMEOUT (0s)  KEDA_HTTP_REQUEST_TIMEOUT (0s)    KEDA_HTTP_RESPONSE_HEADER_TIMEOUT (300s)\n  \
        KEDA_HTTP_CONNECT_TIMEOUT (500ms) KEDA_HTTP_SHUTDOWN_DELAY (5s)     KEDA_HTTP_DRAIN_TIMEOUT (30s)\n  \
        KEDA_HTTP_COLD_START_MAX_PENDING_REQUESTS (0: no limit per route)   ROUSE_MAX_HELD (10000)\n  \
        KEDA_HTTP_MAX_IDLE_CONNS (1000)   KEDA_HTTP_MAX_IDLE_CONNS_PER_HOST (200)  ROUSE_MAX_CONNECTIONS (9000)\n  \
        KEDA_HTTP_LOG_REQUESTS (false)    KEDA_HTTP_ENABLE_COLD_START_HEADER (true)\n  \
        OTEL_EXPORTER_OTLP_METRICS_ENABLED (false)        OTEL_EXPORTER_OTLP_TRACES_ENABLED (false)\n  \
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL (console; http/protobuf or grpc), and OpenTelemetry's own OTEL_… variables\n  \
        ROUSE_GRPC_STATUS (true: calls of gRPC are told of errors as gRPC has it; false: as plain HTTP)\n  \
        KEDA_HTTP_PROXY_TLS_ENABLED (false), _PORT (8443), _CERT_PATH, _KEY_PATH, _CERT_STORE_PATHS   KEDA_HTTP_TLS_CA_DIRS\n  \
        ROUSE_TLS_SECRETS (none: *, NAMESPACE/* or NAMESPACE/NAME, with commas)   ROUSE_TLS_DEFAULT_SECRET (NAMESPACE/NAME)\n  \
        KEDA_HTTP_DIRECT_POD_ROUTING (true)   ROUSE_HOST_GUARD (off, first-come, allow-list)"
)]
pub struct Args {
    /// What to be instead of an interceptor.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Where routes, Services and EndpointSlices come from, instead of the Kubernetes API; may be given several times.
    /// `dir:PATH` is a folder of Kubernetes manifests, watched for changes.
    #[arg(long = "source", value_name = "SOURCE")]
    pub sources: Vec<Source>,

    /// Worker threads; by default what affinity and the cgroup's CPU quota allow. Environment: `ROUSE_WORKERS`.
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,

    /// Level of the data plane: `auto` takes what the kernel allows, `none` stays in user space, `self` uses eBPF on
    /// the process's own connections. By default `auto`. Environment: `ROUSE_DATAPLANE`.
    #[arg(long, value_name = "LEVEL")]
    pub dataplane: Option<Level>,

    /// End with an error when the level asked for can't be had, instead of serving at a lower one.
    #[arg(long)]
    pub required: bool,

    /// The cgroup v2 folder that eBPF programs are attached to; by default the process's own. Environment:
    /// `ROUSE_CGROUP`.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,

    /// Proxies before this one, addresses or networks with commas between them: their `X-Forwarded-*` and `Forwarded` are
    /// kept and extended, those of all others are replaced. By default `X-Forwarded-*` of everybody is kept and `Forwarded`
    /// of nobody, as with the add-on. Environment: `ROUSE_TRUSTED_PROXIES`.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = |text: &str| trust::network(text).ok_or(trust::EXPECTED))]
    pub trusted_proxies: Vec<IpNet>,

    /// How lines are logged.
    #[command(flatten)]
    pub log: LogArgs,

    /// The Kubernetes API.
    #[command(flatten)]
    pub kube: KubeArgs,
}

/// What the program can be besides an interceptor.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Runs the data plane of one node, for routes with `dataPath: Direct`.
    Agent(agent::Args),
}

/// A level of the data plane that may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// What the kernel allows.
    Auto,
    /// User space alone.
    None,
    /// eBPF on the process's own connections.
    #[value(name = "self")]
    Own,
}

/// How requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// They are not.
    Off,
    /// A line each, in the form of Apache's combined log, as the add-on writes it.
    Lines,
    /// An event each, with a field for each part.
    Fields,
}

/// Everything that `app::build` needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect; port 0 takes a free one.
    pub proxy: SocketAddr,
    /// Where probes, counts and state are served.
    pub admin: SocketAddr,
    /// Where metrics are served for Prometheus, if they are.
    pub metrics: Option<SocketAddr>,
    /// The log, if the admin port shall change its filter.
    pub log: Option<log::Handle>,
    /// Where objects come from.
    pub sources: Sources,
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// The kernel's part.
    pub dataplane: dataplane::Config,
    /// Where clients with TLS connect, if any may.
    pub encrypted: Option<SocketAddr>,
    /// Certificates, and whom to believe.
    pub tls: tls::Settings,
    /// Secrets with certificates.
    pub secrets: SecretSources,
    /// What is told to an OpenTelemetry collector.
    pub telemetry: telemetry::Config,
    /// Whether hosts belong to namespaces.
    pub host_guard: HostGuard,
    /// What the request path needs.
    pub proxying: ProxyConfig,
    /// Between the signal and closed listeners, so that load balancers learn of it.
    pub shutdown_delay: Duration,
    /// How long requests may take to finish after that; `None` has no end.
    pub drain_timeout: Option<Duration>,
}

/// Settings of the request path. A timeout of zero is none.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// How long a request may wait for a ready endpoint.
    pub readiness_timeout: Duration,
    /// How long a request may take in all.
    pub request_timeout: Duration,
    /// How long an upstream may take to begin its response.
    pub response_header_timeout: Duration,
    /// One connection attempt.
    pub connect_timeout: Duration,
    /// Idle connections kept by one worker to one endpoint.
    pub max_idle_per_endpoint: usize,
    /// Idle connections kept by one worker.
    pub max_idle_per_worker: usize,
    /// Whether requests go to pods; otherwise to their Services by name, where no client can stay with a pod.
    pub direct_pods: bool,
    /// Whether responses say if there was a cold start.
    pub cold_start_header: bool,
    /// Proxies that are believed what they say of the client; who is believed what is as with the add-on if there are none.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether calls of gRPC are told of errors as gRPC has it; as plain HTTP otherwise.
    pub grpc_status: bool,
    /// How each request is logged.
    pub access_log: AccessLog,
    /// Requests held at once by the process.
    pub max_held: usize,
    /// Requests held at once for one route.
    pub max_held_per_route: Option<NonZeroU64>,
    /// Clients connected to one worker at once.
    pub max_connections_per_worker: usize,
}

// === impl Level ===

impl Level {
    const NAMES: [(&'static str, Self); 3] = [("auto", Self::Auto), ("none", Self::None), ("self", Self::Own)];
}

// === impl Config ===

impl Config {
    /// Settings from the command line and the environment.
    pub fn new(args: Args, env: &Env) -> Result<Self, EnvError> {
        let Args { command: _, sources, workers, dataplane, required, cgroup, trusted_proxies, log, kube } = args;
        let namespace = env.optional_string("KEDA_HTTP_WATCH_NAMESPACE")?;
        unused(env)?;
        // Not clap's own reading of the environment: its errors name the flag, and an empty value is one to it.
        let workers = match workers {
            Some(workers) => workers,
            None => env.optional_count("ROUSE_WORKERS")?.unwrap_or_else(rt::default_workers),
        };
        let dataplane = match dataplane {
            Some(level) => level,
            None => env.one_of("ROUSE_DATAPLANE", &Level::NAMES, Level::Auto)?,
        };
        let cgroup = match cgroup {
            Some(cgroup) => Some(cgroup),
            None => env.optional_string("ROUSE_CGROUP")?.map(PathBuf::from),
        };
        let trusted_proxies = match trusted_proxies {
            none if none.is_empty() => env.list("ROUSE_TRUSTED_PROXIES", trust::EXPECTED, trust::network)?,
            some => some,
        };
        let tls = tls::Settings::from_env(env)?;
        let tls_port = env.port("KEDA_HTTP_PROXY_TLS_PORT", 8443)?;
        let metrics = env.bool("OTEL_PROM_EXPORTER_ENABLED", true)?;
        let metrics_port = env.port("OTEL_PROM_EXPORTER_PORT", 2223)?;
        let mode = match dataplane {
            Level::Auto => dataplane::Mode::Auto,
            Level::None => dataplane::Mode::None,
            Level::Own => dataplane::Mode::SelfLevel,
        };
        let secrets = SecretSources::from_env(env)?;
        let host_guard = env.one_of("ROUSE_HOST_GUARD", &HostGuard::NAMES, HostGuard::Off)?;
        let drain_timeout = env.duration("KEDA_HTTP_DRAIN_TIMEOUT", Duration::from_secs(30))?;
        Ok(Self {
            proxy: everywhere(env.required_port("KEDA_HTTP_PROXY_PORT")?),
            admin: everywhere(env.required_port("KEDA_HTTP_ADMIN_PORT")?),
            metrics: metrics.then(|| everywhere(metrics_port)),
            log: None,
            sources: Sources::new(sources, || cluster(kube, namespace.as_deref(), &secrets, host_guard)),
            workers,
            dataplane: dataplane::Config { mode, required, cgroup },
            encrypted: tls.serving.is_some().then(|| everywhere(tls_port)),
            tls,
            secrets,
            telemetry: telemetry::Config::from_env(env)?,
            host_guard,
            proxying: ProxyConfig::new(env, workers, (trusted_proxies, access_log(env, &log)?))?,
            shutdown_delay: env.duration("KEDA_HTTP_SHUTDOWN_DELAY", Duration::from_secs(5))?,
            drain_timeout: Some(drain_timeout).filter(|timeout| !timeout.is_zero()),
        })
    }
}

// === impl ProxyConfig ===

impl ProxyConfig {
    fn new(
        env: &Env,
        workers: NonZeroUsize,
        (trusted_proxies, access_log): (Vec<IpNet>, AccessLog),
    ) -> Result<Self, EnvError> {
        let room = room_for_clients(descriptors::raise());
        let share = |all: u64| usize::try_from(all).unwrap_or(usize::MAX).div_ceil(workers.get());
        Ok(Self {
            readiness_timeout: env.renamed_duration(
                "KEDA_HTTP_READINESS_TIMEOUT",
                "KEDA_CONDITION_WAIT_TIMEOUT",
                Duration::ZERO,
            )?,
            request_timeout: env.duration("KEDA_HTTP_REQUEST_TIMEOUT", Duration::ZERO)?,
            response_header_timeout: env.renamed_duration(
                "KEDA_HTTP_RESPONSE_HEADER_TIMEOUT",
                "KEDA_RESPONSE_HEADER_TIMEOUT",
                Duration::from_mins(5),
            )?,
            connect_timeout: env.duration("KEDA_HTTP_CONNECT_TIMEOUT", Duration::from_millis(500))?,
            max_idle_per_endpoint: share(env.idle("KEDA_HTTP_MAX_IDLE_CONNS_PER_HOST", 200, IDLE_PER_HOST)?),
            max_idle_per_worker: share(env.idle("KEDA_HTTP_MAX_IDLE_CONNS", 1000, u64::MAX)?),
            direct_pods: env.bool("KEDA_HTTP_DIRECT_POD_ROUTING", true)?,
            cold_start_header: env.bool("KEDA_HTTP_ENABLE_COLD_START_HEADER", true)?,
            trusted_proxies,
            grpc_status: env.bool("ROUSE_GRPC_STATUS", true)?,
            access_log,
            max_held: usize::try_from(env.u64("ROUSE_MAX_HELD", MAX_HELD)?).unwrap_or(usize::MAX),
            max_held_per_route: NonZeroU64::new(env.u64("KEDA_HTTP_COLD_START_MAX_PENDING_REQUESTS", 0)?),
            max_connections_per_worker: share(env.u64("ROUSE_MAX_CONNECTIONS", room)?).max(1),
        })
    }
}

/// All that routing needs. Slices are watched as a whole: a watch for each target Service would cost the API server a
/// thousand times the connections, and it makes no difference to what it sends when routes are where the Services are.
fn cluster(kube: KubeArgs, namespace: Option<&str>, secrets: &SecretSources, guard: HostGuard) -> Cluster {
    let all = |kind| Watch::all(kind, namespace);
    let slices = all(Kind::EndpointSlice).labelled(SERVICE_NAME_LABEL);
    let bodies = all(Kind::ConfigMap).labelled(format!("{RESPONSE_BODY_LABEL}=true"));
    let mut watches =
        vec![all(Kind::InterceptorRoute), all(Kind::HttpScaledObject), all(Kind::Service), slices, bodies];
    watches.extend(secrets.watches(namespace));
    if guard == HostGuard::AllowList {
        let namespaces = Watch::all(Kind::Namespace, None);
        watches.push(namespace.map_or(namespaces.clone(), |namespace| namespaces.named(namespace)));
    }
    Cluster { kubeconfig: kube.kubeconfig, watches }
}

/// Lines for people, fields where the log is JSON.
fn access_log(env: &Env, log: &LogArgs) -> Result<AccessLog, EnvError> {
    Ok(match log.encoder() {
        _ if !env.bool("KEDA_HTTP_LOG_REQUESTS", false)? => AccessLog::Off,
        Encoder::Console => AccessLog::Lines,
        Encoder::Json => AccessLog::Fields,
    })
}

/// Variables of the original that change nothing here; a value that the original would refuse is refused all the same.
fn unused(env: &Env) -> Result<(), EnvError> {
    env.duration("KEDA_HTTP_SCALER_CONFIG_MAP_INFORMER_RSYNC_PERIOD", Duration::ZERO)?;
    env.warn_of_unused();
    Ok(())
}

/// Each client may need a second descriptor, for its pod.
fn room_for_clients(descriptors: u64) -> u64 {
    let others = OTHER_DESCRIPTORS.min(descriptors / 2);
    ((descriptors - others) / 2).min(MAX_CONNECTIONS)
}

/// Version, and whether the eBPF programs were built in.
fn version() -> &'static str {
    if dataplane::EMBEDDED {
        concat!(env!("CARGO_PKG_VERSION"), " (with eBPF programs)")
    } else {
        concat!(env!("CARGO_PKG_VERSION"), " (without eBPF programs: data plane level none)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&'static str, &'static str)]) -> Result<Config, EnvError> {
        let args = Args::parse_from(["interceptor", "--source", "dir:/tmp", "--workers", "2"]);
        let ports = [("KEDA_HTTP_PROXY_PORT", "8080"), ("KEDA_HTTP_ADMIN_PORT", "9090")];
        Config::new(args, &Env::from_pairs(ports.into_iter().chain(pairs.iter().copied())))
    }

    #[test]
    fn defaults_are_those_of_the_add_on() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.proxying.response_header_timeout, Duration::from_mins(5));
        assert_eq!(config.proxying.connect_timeout, Duration::from_millis(500));
        assert_eq!(config.proxying.max_idle_per_endpoint, 100, "200, over two workers");
        assert_eq!(config.drain_timeout, Some(Duration::from_secs(30)));
        assert_eq!(config.metrics.unwrap().port(), 2223);
    }

    #[test]
    fn limits_of_idle_connections_mean_what_they_mean_to_go() {
        let idle = |all, host| {
            let config = parse(&[("KEDA_HTTP_MAX_IDLE_CONNS", all), ("KEDA_HTTP_MAX_IDLE_CONNS_PER_HOST", host)]);
            let ProxyConfig { max_idle_per_worker, max_idle_per_endpoint, .. } = config.unwrap().proxying;
            (max_idle_per_worker, max_idle_per_endpoint)
        };
        assert_eq!(idle("0", "0"), (usize::MAX.div_ceil(2), 1), "no limit, and Go's default of 2, over two workers");
        assert_eq!(idle("-1", "-1"), (0, 0));
    }

    #[test]
    fn clients_are_let_in_as_far_as_descriptors_go() {
        assert_eq!(room_for_clients(1_048_576), MAX_CONNECTIONS);
        assert_eq!(room_for_clients(1024), 256, "half of what is left, after less for the rest");
        assert_eq!(room_for_clients(2600), 1000);
        assert_eq!(room_for_clients(0), 0);
    }

    #[test]
    fn a_deprecated_variable_wins_when_it_is_set() {
        let config = parse(&[("KEDA_CONDITION_WAIT_TIMEOUT", "7s"), ("KEDA_HTTP_READINESS_TIMEOUT", "9s")]).unwrap();
        assert_eq!(config.proxying.readiness_timeout, Duration::from_secs(7));
    }

    #[test]
    fn a_value_that_does_not_parse_is_named_with_its_variable() {
        let error = parse(&[("KEDA_HTTP_CONNECT_TIMEOUT", "soon")]).unwrap_err().to_string();
        assert!(error.contains("KEDA_HTTP_CONNECT_TIMEOUT") && error.contains("soon"), "{error}");
    }

    #[test]
    fn a_missing_port_is_named() {
        let args = Args::parse_from(["interceptor", "--source", "dir:/tmp"]);
        let error = Config::new(args, &Env::from_pairs::<&str, &str>([])).unwrap_err().to_string();
        assert!(error.contains("KEDA_HTTP_PROXY_PORT"), "{error}");
    }
}
