//! Flags and environment, read once into an [`app::Config`].

use std::time::Duration;

use api::names::SERVICE_NAME_LABEL;
use clap::Parser;
use interceptor_core::{ObjectKey, window::Unit};
use runtime::{
    args::{KubeArgs, LogArgs},
    env::{Env, EnvError},
    listen::everywhere,
    watch::{Cluster, Kind, Source, Sources, Watch},
};

use crate::{
    app,
    discover::{Admin, Admins},
};

/// Interceptors are upgraded once in a while, and an offer that is refused costs one connection.
const OFFER_STREAM: Duration = Duration::from_secs(30);

/// The scaler's command line. Settings of the KEDA HTTP Add-on come from its environment variables.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "scaler",
    version,
    about = "KEDA's external scaler for HTTP: collects the counts of interceptors, answers and pushes to KEDA",
    after_long_help = "Settings are read from the environment variables of the KEDA HTTP Add-on, and ours:\n  \
        KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE, _SERVICE, _PORT   where interceptors are found (required)\n  \
        ROUSE_AGENT_ADMIN_SERVICE (none), ROUSE_AGENT_ADMIN_PORT (9097)   where node agents are found, in that namespace\n  \
        KEDA_HTTP_SCALER_PORT (8080)                 where KEDA calls\n  \
        KEDA_HTTP_QUEUE_TICK_DURATION (500ms)        how often an interceptor that can't stream is asked\n  \
        KEDA_HTTP_SCALER_STREAM_INTERVAL_MS (200)    least time from a pushed true to the false after it\n  \
        KEDA_HTTP_WATCH_NAMESPACE (all)              the routes' namespace\n  \
        OTEL_PROM_EXPORTER_ENABLED (true), OTEL_PROM_EXPORTER_PORT (2223)\n  \
        OTEL_EXPORTER_OTLP_METRICS_ENABLED (false), OTEL_EXPORTER_OTLP_TRACES_ENABLED (false)\n  \
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL (console; http/protobuf or grpc), and OpenTelemetry's own OTEL_… variables\n  \
        ROUSE_RATE_PER_GRANULARITY (false)           request rates per granularity, as the add-on, not per second\n  \
        ROUSE_LOG                                    a log filter such as info,scaler=debug"
)]
pub struct Args {
    /// Where routes and the interceptors' EndpointSlices come from, instead of the Kubernetes API; may be given several
    /// times. `dir:PATH` is a folder of Kubernetes manifests, watched for changes.
    #[arg(long = "source", value_name = "SOURCE")]
    pub sources: Vec<Source>,

    /// How the process logs.
    #[command(flatten)]
    pub log: LogArgs,

    /// Where the Kubernetes API is found.
    #[command(flatten)]
    pub kube: KubeArgs,
}

/// Reads the environment.
pub fn config(sources: Vec<Source>, kube: KubeArgs, env: &Env) -> Result<app::Config, EnvError> {
    let namespace = env.required_string("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE", "the interceptors' namespace")?;
    let service =
        env.required_string("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE", "the Service of the interceptors' admin ports")?;
    let admin = Admin {
        service: ObjectKey::new(namespace.as_str(), service),
        port: env.required_port("KEDA_HTTP_SCALER_TARGET_ADMIN_PORT")?,
    };
    let agents_port = env.port("ROUSE_AGENT_ADMIN_PORT", 9097)?;
    let agents = env.optional_string("ROUSE_AGENT_ADMIN_SERVICE")?;
    let agents = agents.map(|service| Admin { service: ObjectKey::new(namespace, service), port: agents_port });
    let metrics = env.bool("OTEL_PROM_EXPORTER_ENABLED", true)?;
    let metrics_port = env.port("OTEL_PROM_EXPORTER_PORT", 2223)?;
    let namespace = env.optional_string("KEDA_HTTP_WATCH_NAMESPACE")?;
    let sources = Sources::new(sources, || cluster(kube, namespace.as_deref(), &admin.service, agents.as_ref()));
    unused(env)?;
    let per_granularity = env.bool("ROUSE_RATE_PER_GRANULARITY", false)?;
    Ok(app::Config {
        sources,
        grpc_addr: everywhere(env.port("KEDA_HTTP_SCALER_PORT", 8080)?),
        metrics_addr: metrics.then(|| everywhere(metrics_port)),
        admin: Admins { interceptors: admin, agents },
        tick: tick(env)?,
        offer_stream: OFFER_STREAM,
        interval: Duration::from_millis(env.u64("KEDA_HTTP_SCALER_STREAM_INTERVAL_MS", 200)?),
        unit: if per_granularity { Unit::Granularity } else { Unit::Second },
        name: env.string("HOSTNAME", "scaler")?,
        telemetry: telemetry::Config::from_env(env)?,
    })
}

/// Routes, and of all slices just those of the interceptors and agents.
fn cluster(kube: KubeArgs, namespace: Option<&str>, admin: &ObjectKey, agents: Option<&Admin>) -> Cluster {
    let label = match agents {
        Some(agents) => format!("{SERVICE_NAME_LABEL} in ({},{})", admin.name(), agents.service.name()),
        None => format!("{SERVICE_NAME_LABEL}={}", admin.name()),
    };
    let slices = Watch::all(Kind::EndpointSlice, Some(admin.namespace())).labelled(label);
    let watches =
        vec![Watch::all(Kind::InterceptorRoute, namespace), Watch::all(Kind::HttpScaledObject, namespace), slices];
    Cluster { kubeconfig: kube.kubeconfig, watches }
}

fn tick(env: &Env) -> Result<Duration, EnvError> {
    let variable = "KEDA_HTTP_QUEUE_TICK_DURATION";
    let tick = env.duration(variable, Duration::from_millis(500))?;
    if tick.is_zero() {
        let expected = "a duration above zero such as 500ms".to_owned();
        return Err(EnvError::Invalid { variable, value: env.string(variable, "")?, expected });
    }
    Ok(tick)
}

/// Variables of the original that change nothing here; a value that the original would refuse is refused all the same.
fn unused(env: &Env) -> Result<(), EnvError> {
    env.duration("KEDA_HTTP_SCALER_CONFIG_MAP_INFORMER_RSYNC_PERIOD", Duration::ZERO)?;
    env.warn_of_unused();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [(&str, &str); 3] = [
        ("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE", "keda"),
        ("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE", "keda-add-ons-http-interceptor-admin"),
        ("KEDA_HTTP_SCALER_TARGET_ADMIN_PORT", "9090"),
    ];

    fn with(more: &[(&'static str, &'static str)]) -> Result<app::Config, EnvError> {
        config(Vec::new(), KubeArgs::default(), &Env::from_pairs(REQUIRED.into_iter().chain(more.iter().copied())))
    }

    #[test]
    fn flags_of_the_original_manifests_are_accepted_beside_ours() {
        let args = ["scaler", "--zap-log-level=info", "--zap-encoder=console", "--source", "dir:/a", "--source=dir:/b"];
        let args = Args::try_parse_from(args).unwrap();
        assert_eq!(args.sources, [Source("/a".into()), Source("/b".into())]);
        let error = Args::try_parse_from(["scaler", "--source=/a"]).unwrap_err().to_string();
        assert!(error.contains("\"/a\" is no source: expected dir:PATH"), "{error}");
    }

    #[test]
    fn defaults_are_those_of_the_original() {
        let config = with(&[]).unwrap();
        assert_eq!(config.grpc_addr, everywhere(8080));
        assert_eq!(config.metrics_addr, Some(everywhere(2223)));
        assert_eq!(config.admin.interceptors.service.to_string(), "keda/keda-add-ons-http-interceptor-admin");
        assert_eq!((config.admin.interceptors.port, config.unit), (9090, Unit::Second));
        assert_eq!((config.tick, config.interval), (Duration::from_millis(500), Duration::from_millis(200)));
        assert_eq!(with(&[("OTEL_PROM_EXPORTER_ENABLED", "false")]).unwrap().metrics_addr, None);
        assert_eq!(with(&[("ROUSE_RATE_PER_GRANULARITY", "true")]).unwrap().unit, Unit::Granularity);
    }

    #[test]
    fn each_required_variable_is_named_when_it_is_missing() {
        for (missing, _) in REQUIRED {
            let error = config(
                Vec::new(),
                KubeArgs::default(),
                &Env::from_pairs(REQUIRED.into_iter().filter(|(name, _)| *name != missing)),
            );
            assert!(error.unwrap_err().to_string().contains(missing));
        }
    }

    #[test]
    fn a_bad_value_is_named_with_what_was_expected() {
        for (variable, value) in [
            ("KEDA_HTTP_QUEUE_TICK_DURATION", "0s"),
            ("KEDA_HTTP_QUEUE_TICK_DURATION", "soon"),
            ("KEDA_HTTP_SCALER_STREAM_INTERVAL_MS", "200ms"),
            ("KEDA_HTTP_SCALER_PORT", "99999"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENABLED", "perhaps"),
        ] {
            let error = with(&[(variable, value)]).unwrap_err().to_string();
            assert!(error.contains(variable) && error.contains(value) && error.contains("expected"), "{error}");
        }
    }
}
