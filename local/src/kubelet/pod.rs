//! One pod's life: start the process, probe it, start it again when it ends by itself, end it when told to.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, sync::Arc};

use interceptor_core::ObjectKey;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};

use super::{
    backoff::CrashLoop,
    expand::expand,
    probe::{Verdict, attempt},
};
use crate::{
    process::{Launch, Process, describe},
    replicas::WORKLOAD_VARIABLE,
    workload::{EnvSource, Probe, Workload},
};

/// What a pod's task needs to know.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The pod's name.
    pub name: Arc<str>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its Deployment.
    pub workload: Arc<Workload>,
    /// Ready to start.
    pub launch: Launch,
}

/// What a pod's task tells the kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The process runs.
    Started(u32),
    /// Readiness changed.
    Ready(bool),
    /// The process ended by itself, or could not be started.
    Crashed(String),
    /// It was told to end and has ended.
    Gone,
}

/// Why one run of the process is over.
enum End {
    Crashed(String),
    Stopped(Process),
}

/// Sends a pod's reports under its name.
#[derive(Clone, Debug)]
pub struct Reporter {
    pod: Arc<str>,
    tx: mpsc::Sender<(Arc<str>, Report)>,
}

/// Runs the pod until `stop` fires or its sender is dropped.
///
/// Not cancel safe: dropping the future kills the process.
pub async fn live(spec: Spec, mut stop: oneshot::Receiver<()>, reporter: Reporter) {
    let template = &spec.workload.template;
    let mut crash_loop = CrashLoop::default();
    loop {
        let started = Instant::now();
        match run(&spec, &mut stop, &reporter).await {
            End::Crashed(how) => {
                reporter.send(Report::Crashed(how)).await;
                let delay = crash_loop.after(started.elapsed());
                tokio::select! {
                    () = sleep(delay) => {}
                    _ = &mut stop => break,
                }
            }
            End::Stopped(process) => {
                sleep(template.pre_stop).await;
                if let Err(error) = process.stop(template.grace).await {
                    tracing::warn!(pod = %spec.name, %error, "cannot wait for the process");
                }
                break;
            }
        }
    }
    reporter.send(Report::Gone).await;
}

async fn run(spec: &Spec, stop: &mut oneshot::Receiver<()>, reporter: &Reporter) -> End {
    let mut process = match spec.launch.start() {
        Ok(process) => process,
        Err(error) => return End::Crashed(format!("cannot be started: {error}")),
    };
    reporter.send(Report::Started(process.pid())).await;
    let ended = tokio::select! {
        ended = process.ended() => ended,
        () = watch_readiness(spec, reporter) => unreachable!("readiness is watched for ever"),
        _ = stop => return End::Stopped(process),
    };
    End::Crashed(ended.map_or_else(|error| format!("was lost: {error}"), describe))
}

async fn watch_readiness(spec: &Spec, reporter: &Reporter) {
    let Some(probe) = &spec.workload.template.probe else {
        reporter.send(Report::Ready(true)).await;
        return std::future::pending().await;
    };
    let Probe { initial_delay, period, .. } = probe;
    let mut verdict = Verdict::new(probe);
    let mut ticks = interval_at(Instant::now() + *initial_delay, *period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let success = attempt(probe, spec.address.into()).await;
        if let Some(ready) = verdict.count(success) {
            reporter.send(Report::Ready(ready)).await;
        }
    }
}

// === impl Spec ===

impl Spec {
    /// Resolves command and environment for one pod.
    pub fn new(name: Arc<str>, address: Ipv4Addr, workload: Arc<Workload>, host: &Host) -> Self {
        let template = &workload.template;
        let env = environment(&name, address, &workload.key, &template.env, host);
        let resolve = |text: &String| expand(text, |variable| env.get(variable).cloned());
        let launch = Launch {
            launcher: host.launcher.clone(),
            command: template.command.iter().map(resolve).collect(),
            working_dir: template.working_dir.as_ref().map(PathBuf::from),
            log: host.logs.join(format!("{name}.log")),
            cgroup: None,
            env,
        };
        Self { name, address, workload, launch }
    }
}

/// What all pods of this machine share.
#[derive(Clone, Debug)]
pub struct Host {
    /// The binary that has the `run-child` command.
    pub launcher: PathBuf,
    /// Where logs go.
    pub logs: PathBuf,
    /// Variables that every process gets.
    pub env: BTreeMap<String, String>,
}

fn environment(
    name: &str,
    address: Ipv4Addr,
    workload: &ObjectKey,
    declared: &[(String, EnvSource)],
    host: &Host,
) -> BTreeMap<String, String> {
    let mut env = host.env.clone();
    env.insert("POD_NAME".to_owned(), name.to_owned());
    env.insert("POD_NAMESPACE".to_owned(), workload.namespace().to_owned());
    env.insert("POD_IP".to_owned(), address.to_string());
    env.insert("HOSTNAME".to_owned(), name.to_owned());
    env.insert(WORKLOAD_VARIABLE.to_owned(), workload.to_string());
    for (variable, source) in declared {
        let value = match source {
            EnvSource::Value(text) => expand(text, |variable| env.get(variable).cloned()),
            EnvSource::PodIp => address.to_string(),
            EnvSource::PodName => name.to_owned(),
            EnvSource::Namespace => workload.namespace().to_owned(),
        };
        env.insert(variable.clone(), value);
    }
    env
}

// === impl Reporter ===

impl Reporter {
    /// For the pod of that name.
    pub fn new(pod: Arc<str>, tx: mpsc::Sender<(Arc<str>, Report)>) -> Self {
        Self { pod, tx }
    }

    async fn send(&self, report: Report) {
        // The kubelet outlives its pods but for a panic, in which case nobody is left to care.
        let _ = self.tx.send((Arc::clone(&self.pod), report)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::template;

    #[test]
    fn variables_are_resolved_in_order_and_reach_the_arguments() {
        let mut template = template("hello", &[]);
        template.env = vec![
            ("PORT".into(), EnvSource::Value("80".into())),
            ("LISTEN".into(), EnvSource::Value("$(POD_IP):$(PORT)".into())),
        ];
        template.command = vec!["serve".into(), "$(LISTEN)".into()];
        let workload = Workload { key: ObjectKey::new("default", "hello"), replicas: 1, template };
        let host = Host { launcher: "l".into(), logs: "/logs".into(), env: BTreeMap::new() };
        let spec = Spec::new("hello-1".into(), Ipv4Addr::new(127, 1, 2, 3), Arc::new(workload), &host);
        assert_eq!(spec.launch.command, ["serve", "127.1.2.3:80"]);
        assert_eq!(spec.launch.env["POD_NAME"], "hello-1");
        assert_eq!(spec.launch.log, PathBuf::from("/logs/hello-1.log"));
    }
}
