//! The interceptor and the scaler as child processes: ports, environment, supervision.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use runtime::task;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    kubelet::backoff::CrashLoop,
    process::{Launch, Process, describe},
    timeline::{Event, Timeline},
};

/// The namespace and the Service by which the scaler finds interceptors.
pub const NAMESPACE: &str = "keda";
/// See [`NAMESPACE`].
pub const ADMIN_SERVICE: &str = "keda-add-ons-http-interceptor-admin";
/// A process gets so long between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(4);

/// Where the processes listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Requests.
    pub proxy: u16,
    /// The interceptor's `/state`, `/queue` and counts.
    pub admin: u16,
    /// The interceptor's metrics.
    pub metrics: u16,
    /// The scaler's gRPC.
    pub scaler: u16,
    /// The scaler's metrics.
    pub scaler_metrics: u16,
}

/// A process that is kept running, or at least watched.
#[derive(Debug)]
pub struct Supervised {
    name: &'static str,
    health: watch::Receiver<Health>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// How a supervised process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It runs.
    Running {
        /// Its process.
        pid: u32,
        /// How often it was started again.
        restarts: u32,
    },
    /// It ended by itself, or could not be started.
    Ended(String),
}

/// Where things are.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The user's manifests.
    pub manifests: &'a Path,
    /// Our EndpointSlices.
    pub slices: &'a Path,
    /// Logs.
    pub logs: &'a Path,
    /// The binary that has the `run-child` command.
    pub launcher: &'a Path,
    /// Variables that every process gets.
    pub env: &'a BTreeMap<String, String>,
}

/// What the interceptor is told besides its ports.
#[derive(Clone, Debug, Default)]
pub struct InterceptorOptions {
    /// `ROUSE_DATAPLANE`.
    pub dataplane: Option<String>,
    /// `ROUSE_WORKERS`.
    pub workers: Option<u16>,
    /// The cgroup it is started in.
    pub cgroup: Option<PathBuf>,
}

// === impl Ports ===

impl Ports {
    /// Takes free ports where `wanted` names none (zero).
    pub fn choose(wanted: Self) -> io::Result<Self> {
        let mut held = Vec::new();
        let mut choose = |port: u16| {
            if port != 0 {
                return Ok(port);
            }
            // Held until all are chosen, so that they differ.
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            let port = listener.local_addr()?.port();
            held.push(listener);
            Ok::<u16, io::Error>(port)
        };
        let Self { proxy, admin, metrics, scaler, scaler_metrics } = wanted;
        Ok(Self {
            proxy: choose(proxy)?,
            admin: choose(admin)?,
            metrics: choose(metrics)?,
            scaler: choose(scaler)?,
            scaler_metrics: choose(scaler_metrics)?,
        })
    }

    /// Where a client on this machine finds a port.
    pub fn local(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }
}

// === impl Places ===

impl Places<'_> {
    fn launch(&self, name: &str, binary: &Path, env: &[(&str, String)]) -> Launch {
        let source = |path: &Path| format!("dir:{}", path.display());
        let command = vec![
            binary.display().to_string(),
            "--source".to_owned(),
            source(self.manifests),
            "--source".to_owned(),
            source(self.slices),
        ];
        let mut all = self.env.clone();
        all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Launch {
            launcher: self.launcher.to_owned(),
            command,
            env: all,
            working_dir: None,
            log: self.logs.join(format!("{name}.log")),
            cgroup: None,
        }
    }

    /// How to start the interceptor.
    pub fn interceptor(&self, binary: &Path, ports: Ports, options: &InterceptorOptions) -> Launch {
        let mut env = vec![
            ("KEDA_HTTP_PROXY_PORT", ports.proxy.to_string()),
            ("KEDA_HTTP_ADMIN_PORT", ports.admin.to_string()),
            ("OTEL_PROM_EXPORTER_PORT", ports.metrics.to_string()),
            // Nobody in front of it has to learn that it goes.
            ("KEDA_HTTP_SHUTDOWN_DELAY", "0s".to_owned()),
            ("KEDA_HTTP_DRAIN_TIMEOUT", "2s".to_owned()),
        ];
        env.extend(options.dataplane.clone().map(|level| ("ROUSE_DATAPLANE", level)));
        env.extend(options.workers.map(|workers| ("ROUSE_WORKERS", workers.to_string())));
        let mut launch = self.launch("interceptor", binary, &env);
        launch.cgroup.clone_from(&options.cgroup);
        launch
    }

    /// How to start the scaler.
    pub fn scaler(&self, binary: &Path, ports: Ports) -> Launch {
        let env = [
            ("KEDA_HTTP_SCALER_PORT", ports.scaler.to_string()),
            ("OTEL_PROM_EXPORTER_PORT", ports.scaler_metrics.to_string()),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_NAMESPACE", NAMESPACE.to_owned()),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_SERVICE", ADMIN_SERVICE.to_owned()),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_DEPLOYMENT", "keda-add-ons-http-interceptor".to_owned()),
            ("KEDA_HTTP_SCALER_TARGET_ADMIN_PORT", ports.admin.to_string()),
        ];
        self.launch("scaler", binary, &env)
    }
}

/// The interceptor's admin Service with its one endpoint, by which the scaler finds it as it would in a cluster.
pub fn admin_objects(port: u16) -> String {
    let metadata = |name: &str| {
        let label = serde_json::json!({ crate::slices::SERVICE_LABEL: ADMIN_SERVICE });
        serde_json::json!({ "name": name, "namespace": NAMESPACE, "labels": label })
    };
    let service = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(ADMIN_SERVICE),
        "spec": { "ports": [{ "name": "http", "port": 9090, "targetPort": port }] },
    });
    let slice = serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata("interceptor-admin-local"),
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["127.0.0.1"], "conditions": { "ready": true } }],
        "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
    });
    serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [service, slice] }).to_string()
}

// === impl Supervised ===

impl Supervised {
    /// Starts the process and watches it; if `restart`, it is started again when it ends.
    pub fn start(name: &'static str, launch: Launch, restart: bool, timeline: Timeline) -> io::Result<Self> {
        let process = launch.start()?;
        let (tx, health) = watch::channel(Health::Running { pid: process.pid(), restarts: 0 });
        let (stop, stopped) = oneshot::channel();
        let task = task::spawn("supervise", supervise(name, launch, process, restart, tx, stopped, timeline));
        Ok(Self { name, health, stop, task })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How it is.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Ends it. Not cancel safe: dropping the future kills the process at the end of ours.
    pub async fn stop(self) {
        // The receiver is gone only when the process has ended for good.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

async fn supervise(
    name: &'static str,
    launch: Launch,
    mut process: Process,
    restart: bool,
    health: watch::Sender<Health>,
    mut stop: oneshot::Receiver<()>,
    timeline: Timeline,
) {
    let mut crash_loop = CrashLoop::default();
    let (mut restarts, mut started) = (0, Instant::now());
    loop {
        let ended = tokio::select! {
            ended = process.ended() => ended,
            _ = &mut stop => {
                let _ = process.stop(GRACE).await;
                return;
            }
        };
        let mut how = ended.map_or_else(|error| format!("was lost: {error}"), describe);
        process = loop {
            timeline.add(Event::Problem { object: name.to_owned(), message: how.clone() });
            health.send_replace(Health::Ended(how));
            if !restart {
                return;
            }
            tokio::select! {
                () = sleep(crash_loop.after(started.elapsed())) => {}
                _ = &mut stop => return,
            }
            started = Instant::now();
            match launch.start() {
                Ok(process) => break process,
                Err(error) => how = format!("cannot be started: {error}"),
            }
        };
        restarts += 1;
        health.send_replace(Health::Running { pid: process.pid(), restarts });
    }
}

// === impl Health ===

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running { restarts: 0, .. } => f.write_str("up"),
            Self::Running { restarts, .. } => write!(f, "up, restarted {restarts}×"),
            Self::Ended(how) => f.write_str(how),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_not_named_are_free_and_differ() {
        let ports = Ports::choose(Ports { proxy: 1234, admin: 0, metrics: 0, scaler: 0, scaler_metrics: 0 }).unwrap();
        assert_eq!(ports.proxy, 1234);
        let mut all = [ports.proxy, ports.admin, ports.metrics, ports.scaler, ports.scaler_metrics];
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    }

    #[test]
    fn the_scaler_finds_the_interceptor_by_the_admin_services_slice() {
        let list: serde_json::Value = serde_json::from_str(&admin_objects(4711)).unwrap();
        let slice = &list["items"][1];
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], ADMIN_SERVICE);
        assert_eq!((&slice["ports"][0]["port"], &slice["metadata"]["namespace"]), (&4711.into(), &"keda".into()));
    }
}
