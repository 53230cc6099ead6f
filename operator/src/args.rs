//! Flags and environment, read once into an [`app::Config`].

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf};

use clap::{Parser, Subcommand};
use interceptor_core::{ObjectKey, index::HostGuard};
use runtime::{
    args::{KubeArgs, LogArgs, go_bool},
    env::{Env, EnvError},
    listen::everywhere,
};
use thiserror::Error;

use crate::{app, lease::Terms, plan::Settings, secure::Security};

/// The operator's command line. Settings of the KEDA HTTP Add-on come from its environment variables.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "operator",
    version,
    about = "Keeps ScaledObjects and statuses in step with InterceptorRoutes and HTTPScaledObjects",
    after_long_help = "Settings are read from the environment variables of the KEDA HTTP Add-on, and ours:\n  \
        KEDA_HTTP_OPERATOR_EXTERNAL_SCALER_SERVICE   the scaler's Service (required)\n  \
        KEDA_HTTP_OPERATOR_EXTERNAL_SCALER_PORT (8091)\n  \
        KEDA_HTTP_OPERATOR_NAMESPACE                 where the scaler and the Lease are (the kubeconfig's or the pod's)\n  \
        KEDA_HTTP_OPERATOR_WATCH_NAMESPACE           the one namespace to watch (all)\n  \
        KEDA_HTTP_OPERATOR_LEADER_ELECTION_LEASE_DURATION (15s), _RENEW_DEADLINE (10s), _RETRY_PERIOD (2s)\n  \
        ROUSE_HOST_GUARD (off, first-come)           whether hosts belong to namespaces: as interceptors are told\n  \
        ROUSE_INTERCEPTOR_SERVICE (keda-add-ons-http-interceptor-proxy) the interceptors' Service, in the scaler's namespace\n  \
        ROUSE_AGENT_ADMIN_SERVICE (none)             the node agents' Service, in the same namespace\n  \
        ROUSE_INTERCEPTOR_PORTS (20000-20999)        ports of interceptors that may stand for Services of direct routes; off\n  \
        ROUSE_LOG                                    a log filter such as info,operator=debug"
)]
pub struct Args {
    /// What else to do than to run.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How the operator runs.
    #[command(flatten)]
    pub run: RunArgs,

    /// How the process logs.
    #[command(flatten)]
    pub log: LogArgs,

    /// Where the Kubernetes API is found.
    #[command(flatten)]
    pub kube: KubeArgs,
}

/// Other things than to run.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Write the CustomResourceDefinitions as YAML and end.
    Crds {
        /// Write each to a file of its own in this folder, instead of all to standard output.
        #[arg(long, value_name = "PATH")]
        folder: Option<PathBuf>,
    },
}

/// How the operator runs.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Act only while holding the Lease http-add-on.keda.sh, so that of several operators one acts.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = go_bool)]
    pub leader_elect: bool,

    /// Where Prometheus scrapes, such as :8080; 0 for nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = ":8080")]
    pub metrics_bind_address: Address,

    /// Serve metrics by TLS, and at port 8443 whatever the address above says.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = go_bool)]
    pub metrics_secure: bool,

    /// Serve metrics to those alone who may get /metrics, by bearer token; needs the right to create tokenreviews and
    /// subjectaccessreviews.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = go_bool)]
    pub metrics_auth: bool,

    /// Folder of tls.crt and tls.key for metrics; without it a certificate is made that nobody has signed.
    #[arg(long, value_name = "PATH", default_value = "")]
    pub metrics_cert_dir: String,

    /// Accepted for the sake of the add-on's manifests; there is no Go profile to serve.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub profiling_bind_address: String,

    /// Where /healthz and /readyz are answered; 0 for nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = ":8081")]
    pub health_probe_bind_address: Address,
}

/// An address in Go's notation: the host may be left out, and 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub Option<SocketAddr>);

/// What keeps the operator from starting.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A variable is missing or wrong.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The lease's times do not go together.
    #[error("leader election: expected LEASE_DURATION above RENEW_DEADLINE above RETRY_PERIOD above 0, got {0:?}")]
    Terms(Terms),
}

/// Reads the environment; `namespace` is where the process runs, if no variable says so.
pub fn config(run: &RunArgs, env: &Env, kube: kube::Config) -> Result<app::Config, ConfigError> {
    let RunArgs {
        leader_elect,
        metrics_bind_address,
        metrics_secure,
        metrics_auth,
        metrics_cert_dir,
        profiling_bind_address,
        health_probe_bind_address,
    } = run;
    let service = renamed(env, SERVICE, OLD_SERVICE)?;
    let service = match service {
        Some(service) => service,
        None => env.required_string(SERVICE, "the name of the scaler's Service")?,
    };
    let port = match (env.optional_port(PORT)?, env.optional_port(OLD_PORT)?) {
        (Some(port), _) => port,
        (None, Some(port)) => {
            tracing::warn!(variable = OLD_PORT, instead = PORT, "deprecated environment variable is set");
            port
        }
        (None, None) => 8091,
    };
    env.warn_of_unused();
    if !profiling_bind_address.is_empty() {
        tracing::warn!(flag = "--profiling-bind-address", "there is no Go profile to serve");
    }
    let namespace = env.optional_string("KEDA_HTTP_OPERATOR_NAMESPACE")?;
    let namespace = namespace.unwrap_or_else(|| kube.default_namespace.clone());
    Ok(app::Config {
        settings: Settings {
            scaler_address: format!("{service}.{namespace}:{port}"),
            host_guard: env.one_of("ROUSE_HOST_GUARD", &HostGuard::NAMES, HostGuard::Off)?,
            ports: ports(env)?,
            agents: env.optional_string("ROUSE_AGENT_ADMIN_SERVICE")?,
        },
        lease: terms(env, *leader_elect)?,
        interceptors: ObjectKey::new(namespace.as_str(), env.string(INTERCEPTORS, DEFAULT_INTERCEPTORS)?),
        metrics_addr: metrics_bind_address.0.map(|addr| if *metrics_secure { everywhere(SECURE_PORT) } else { addr }),
        security: Security {
            tls: *metrics_secure,
            certificates: Some(metrics_cert_dir).filter(|folder| !folder.is_empty()).map(PathBuf::from),
            auth: *metrics_auth,
        },
        health_addr: health_probe_bind_address.0,
        watch_namespace: env.optional_string("KEDA_HTTP_OPERATOR_WATCH_NAMESPACE")?,
        name: env.string("HOSTNAME", "operator")?,
        namespace,
        kube,
    })
}

/// Where secured metrics are, whatever the flag says.
const SECURE_PORT: u16 = 8443;

/// Ports that a process without rights may listen at.
const FIRST_PORT: u16 = 1024;

#[expect(clippy::reversed_empty_ranges, reason = "an empty one is meant")]
const NO_PORTS: RangeInclusive<u16> = 1..=0;

/// Below the ports from which Linux takes those of outgoing connections, and of node ports.
const DEFAULT_PORTS: &str = "20000-20999";

const INTERCEPTORS: &str = "ROUSE_INTERCEPTOR_SERVICE";
const DEFAULT_INTERCEPTORS: &str = "keda-add-ons-http-interceptor-proxy";

const SERVICE: &str = "KEDA_HTTP_OPERATOR_EXTERNAL_SCALER_SERVICE";
const OLD_SERVICE: &str = "KEDAHTTP_OPERATOR_EXTERNAL_SCALER_SERVICE";
const PORT: &str = "KEDA_HTTP_OPERATOR_EXTERNAL_SCALER_PORT";
const OLD_PORT: &str = "KEDAHTTP_OPERATOR_EXTERNAL_SCALER_PORT";

/// A range of ports such as `20000-20999`; an empty one if it is off.
fn ports(env: &Env) -> Result<RangeInclusive<u16>, EnvError> {
    const VARIABLE: &str = "ROUSE_INTERCEPTOR_PORTS";
    let value = env.string(VARIABLE, DEFAULT_PORTS)?;
    if value == "off" {
        return Ok(NO_PORTS);
    }
    let range = value.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    let range = range.filter(|range: &RangeInclusive<u16>| *range.start() >= FIRST_PORT && !range.is_empty());
    range.ok_or_else(|| {
        let expected = format!("off, or two ports from {FIRST_PORT} such as {DEFAULT_PORTS}");
        EnvError::Invalid { variable: VARIABLE, value, expected }
    })
}

fn renamed(env: &Env, variable: &'static str, old: &'static str) -> Result<Option<String>, EnvError> {
    if let Some(value) = env.optional_string(variable)? {
        return Ok(Some(value));
    }
    let value = env.optional_string(old)?;
    if value.is_some() {
        tracing::warn!(variable = old, instead = variable, "deprecated environment variable is set");
    }
    Ok(value)
}

/// What the variables say is read in any case; whether it goes together matters with a lease alone.
fn terms(env: &Env, elect: bool) -> Result<Option<Terms>, ConfigError> {
    let default = Terms::default();
    let terms = Terms {
        duration: env.duration("KEDA_HTTP_OPERATOR_LEADER_ELECTION_LEASE_DURATION", default.duration)?,
        renew_deadline: env.duration("KEDA_HTTP_OPERATOR_LEADER_ELECTION_RENEW_DEADLINE", default.renew_deadline)?,
        retry_period: env.duration("KEDA_HTTP_OPERATOR_LEADER_ELECTION_RETRY_PERIOD", default.retry_period)?,
    };
    let Terms { duration, renew_deadline, retry_period } = terms;
    if !elect {
        return Ok(None);
    }
    if duration > renew_deadline && renew_deadline > retry_period && !retry_period.is_zero() {
        Ok(Some(terms))
    } else {
        Err(ConfigError::Terms(terms))
    }
}

// === impl Address ===

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "0" || text.is_empty() {
            return Ok(Self(None));
        }
        let addr = match text.strip_prefix(':') {
            Some(port) => port.parse().ok().map(everywhere),
            None => text.parse().ok(),
        };
        addr.map(|addr| Self(Some(addr)))
            .ok_or_else(|| format!("{text:?} is no address: expected :8080, 127.0.0.1:8080 or 0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALER: (&str, &str) = (SERVICE, "scaler");

    fn with(args: &[&'static str], more: &[(&'static str, &'static str)]) -> Result<app::Config, ConfigError> {
        let args = Args::try_parse_from(std::iter::once("operator").chain(args.iter().copied())).unwrap();
        let mut kube = kube::Config::new("https://nowhere.invalid".parse().unwrap());
        kube.default_namespace = "pods-own".to_owned();
        config(&args.run, &Env::from_pairs(more.iter().copied()), kube)
    }

    #[test]
    fn defaults_are_those_of_the_original() {
        let config = with(&[], &[SCALER]).unwrap();
        assert_eq!(config.settings.scaler_address, "scaler.pods-own:8091");
        assert_eq!((config.lease, config.watch_namespace), (None, None));
        assert_eq!(config.metrics_addr, Some(everywhere(8080)));
        assert_eq!(config.health_addr, Some(everywhere(8081)));
    }

    #[test]
    fn flags_and_variables_of_the_original_manifests_are_understood() {
        let args = [
            "--leader-elect=1",
            "--zap-log-level=info",
            "--metrics-bind-address=127.0.0.1:9",
            "--health-probe-bind-address=0",
        ];
        let more = [
            ("KEDAHTTP_OPERATOR_EXTERNAL_SCALER_SERVICE", "old"),
            ("KEDAHTTP_OPERATOR_EXTERNAL_SCALER_PORT", "9090"),
            ("KEDA_HTTP_OPERATOR_NAMESPACE", "keda"),
            ("KEDA_HTTP_OPERATOR_WATCH_NAMESPACE", "one"),
            ("KEDA_HTTP_OPERATOR_LEADER_ELECTION_LEASE_DURATION", "1m"),
        ];
        let config = with(&args, &more).unwrap();
        assert_eq!(config.settings.scaler_address, "old.keda:9090");
        assert_eq!(config.watch_namespace.as_deref(), Some("one"));
        assert_eq!(config.lease.unwrap().duration.as_secs(), 60);
        assert_eq!(config.metrics_addr.unwrap().to_string(), "127.0.0.1:9");
        assert_eq!(config.health_addr, None);
    }

    #[test]
    fn ports_of_interceptors_are_a_range_or_off() {
        let of = |value: &'static str| with(&[], &[SCALER, ("ROUSE_INTERCEPTOR_PORTS", value)]);
        assert_eq!(with(&[], &[SCALER]).unwrap().settings.ports, 20_000..=20_999);
        assert_eq!(of("30000-30000").unwrap().settings.ports, 30_000..=30_000);
        assert!(of("off").unwrap().settings.ports.is_empty());
        for wrong in ["80-90", "2000", "3000-2000", "3000-70000", "many"] {
            let error = of(wrong).unwrap_err().to_string();
            assert!(error.contains("ROUSE_INTERCEPTOR_PORTS") && error.contains("20000-20999"), "{error}");
        }
    }

    #[test]
    fn secured_metrics_have_a_port_of_their_own() {
        let args =
            ["--metrics-secure", "--metrics-auth=true", "--metrics-bind-address=:9", "--metrics-cert-dir=/certs"];
        let config = with(&args, &[SCALER]).unwrap();
        assert_eq!(config.metrics_addr, Some(everywhere(8443)));
        assert_eq!(config.security, Security { tls: true, certificates: Some("/certs".into()), auth: true });
        assert_eq!(with(&["--metrics-secure", "--metrics-bind-address=0"], &[SCALER]).unwrap().metrics_addr, None);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let missing = with(&[], &[]).unwrap_err().to_string();
        assert!(missing.contains(SERVICE), "{missing}");
        let terms = [SCALER, ("KEDA_HTTP_OPERATOR_LEADER_ELECTION_RENEW_DEADLINE", "1m")];
        let wrong = with(&["--leader-elect"], &terms).unwrap_err().to_string();
        assert!(wrong.contains("expected LEASE_DURATION above RENEW_DEADLINE"), "{wrong}");
        assert!(with(&[], &terms).is_ok(), "without a lease its terms do not matter");
        let unreadable = [SCALER, ("KEDA_HTTP_OPERATOR_LEADER_ELECTION_RETRY_PERIOD", "soon")];
        assert!(with(&[], &unreadable).unwrap_err().to_string().contains("RETRY_PERIOD"));
        let error = Args::try_parse_from(["operator", "--metrics-bind-address=here"]).unwrap_err().to_string();
        assert!(error.contains("\"here\" is no address: expected :8080"), "{error}");
    }
}
