//! A cluster that is up, as tests use it: ask, apply, wait, look at logs, speak from one of its machines or pods.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    cluster::{
        build::Programs,
        netns,
        node::{self, CONTAINERD, ProxyMode},
        place::{Machine, Name, Place},
    },
    process,
};

/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a kube-proxy may take to start and to write its rules.
const PROXY_STARTS: Duration = Duration::from_mins(1);
/// Lines of a log that an error quotes.
const LAST_LINES: usize = 12;

/// A cluster that is up.
#[derive(Debug)]
pub(crate) struct Cluster {
    place: Place,
    programs: Programs,
    nodes: u8,
}

impl Cluster {
    pub(super) fn new(place: Place, programs: Programs, nodes: u8) -> Self {
        Self { place, programs, nodes }
    }

    /// The running cluster of this name.
    pub(crate) fn find(root: &Path, name: &Name) -> Result<Self> {
        let place = Place::new(root, name);
        let machines = place.machines();
        if machines.is_empty() || !place.kubeconfig().is_file() {
            bail!("no cluster {name} is up; `cargo xtask cluster up --name {name}` brings it up");
        }
        let nodes = u8::try_from(machines.len() - 1)?;
        Ok(Self { place, programs: Programs::of(root)?, nodes })
    }

    /// Where it lies.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// What it is made of.
    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// How many nodes it has.
    pub(crate) fn nodes(&self) -> u8 {
        self.nodes
    }

    // --- the API

    /// kubectl with the administrator's rights.
    pub(crate) fn kubectl_command(&self) -> Result<Command> {
        let mut command = netns::enter(&self.place, Machine::ControlPlane);
        command.arg(self.programs.path("kubectl")?).arg("--kubeconfig").arg(self.place.kubeconfig());
        Ok(command)
    }

    /// Helm with the administrator's rights. What it keeps about repositories goes with the cluster.
    pub(crate) fn helm_command(&self) -> Result<Command> {
        let mut command = netns::enter(&self.place, Machine::ControlPlane);
        command.arg(self.programs.path("helm")?).arg("--kubeconfig").arg(self.place.kubeconfig());
        for (name, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(name, self.place.folder().join("helm").join(folder));
        }
        Ok(command)
    }

    /// What kubectl answers.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        process::output(self.kubectl_command()?.args(args))
    }

    /// What Helm answers.
    pub(crate) fn helm(&self, args: &[&str]) -> Result<String> {
        process::output(self.helm_command()?.args(args))
    }

    /// What `kubectl … --output json` answers; null where it answers nothing.
    pub(crate) fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[args, &["--output", "json"]].concat())?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("kubectl {} did not answer JSON", args.join(" ")))
    }

    /// Applies manifests (YAML or JSON), server-side.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        self.fed(&["apply", "--server-side", "--force-conflicts", "--filename", "-"], manifests).map(drop)
    }

    /// What kubectl answers to this standard input.
    pub(crate) fn fed(&self, args: &[&str], input: &str) -> Result<String> {
        fed(self.kubectl_command()?.args(args), input)
    }

    // --- waiting

    /// Looks again and again until there is something; an error of the look is told when time is up.
    #[expect(clippy::unused_self, reason = "read as a sentence: the cluster waits for …")]
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let until = Instant::now() + patience;
        loop {
            let seen = look();
            if let Ok(Some(found)) = seen {
                return Ok(found);
            }
            if Instant::now() > until {
                let why = seen.err().map_or_else(String::new, |error| format!("; the last look failed: {error:#}"));
                bail!("waited {} s for {what}{why}", patience.as_secs());
            }
            thread::park_timeout(PAUSE);
        }
    }

    /// Waits until all of a Deployment's pods are new and ready.
    pub(crate) fn rolled_out(&self, namespace: &str, deployment: &str, patience: Duration) -> Result<()> {
        let (deployment, timeout) = (format!("deployment/{deployment}"), format!("--timeout={}s", patience.as_secs()));
        self.kubectl(&["rollout", "status", "--namespace", namespace, &deployment, &timeout]).map(drop)
    }

    // --- machines and pods

    /// A command in the network of a machine, with this machine's files.
    pub(crate) fn beside(&self, machine: Machine) -> Command {
        netns::enter(&self.place, machine)
    }

    /// The same command, in the control plane's network: beside nothing but the API server.
    pub(crate) fn joined(&self, command: &Command) -> Command {
        let mut joined = self.beside(Machine::ControlPlane);
        joined.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => joined.env(name, value),
                None => joined.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            joined.current_dir(folder);
        }
        joined
    }

    /// A command in all namespaces of a machine.
    pub(crate) fn inside(&self, machine: Machine) -> Result<Command> {
        let mut command = Command::new("nsenter");
        let first = self.place.first_process(machine)?.to_string();
        command.args(["--target", &first, "--net", "--mount", "--pid", "--uts", "--ipc", "--"]);
        Ok(command)
    }

    /// The network namespace of a pod that runs and whose containers are told its name as `POD_NAME`.
    pub(crate) fn network_of(&self, namespace: &str, pod: &str) -> Result<PathBuf> {
        Ok(network(self.process_of(namespace, pod)?))
    }

    /// A process of such a pod.
    pub(crate) fn process_of(&self, namespace: &str, pod: &str) -> Result<u32> {
        let object = self.json(&["get", "pod", "--namespace", namespace, pod])?;
        let address = object["status"]["podIP"].as_str().with_context(|| format!("{pod} has no address"))?.to_owned();
        let name = format!("POD_NAME={pod}");
        for process in fs::read_dir("/proc").context("no processes")?.flatten() {
            let has_name = |text: &[u8]| text.split(|byte| *byte == 0).any(|variable| variable == name.as_bytes());
            // Most have ended meanwhile, or are the kernel's own.
            if !fs::read(process.path().join("environ")).is_ok_and(|environment| has_name(&environment)) {
                continue;
            }
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let addresses = process::output(Self::within(&network(pid)).args(["ip", "-oneline", "address"]));
            // Another cluster may have a pod of the same name.
            if addresses.is_ok_and(|text| text.contains(&address)) {
                return Ok(pid);
            }
        }
        bail!("no process has {name} and {address}")
    }

    /// The beginning of a command in a network namespace.
    pub(crate) fn within(network: &Path) -> Command {
        let mut enter = Command::new("nsenter");
        enter.arg(format!("--net={}", network.display()));
        enter
    }

    /// What curl answers that is started in the network of a machine.
    pub(crate) fn curl(&self, from: Machine, args: &[&str]) -> Result<String> {
        process::output(self.beside(from).arg("curl").args(["--silent", "--show-error"]).args(args))
    }

    /// Lets every node's kube-proxy write its rules in this way, and waits until all of them do: each takes away what it finds of the
    /// other way.
    pub(crate) fn proxy_mode(&self, mode: ProxyMode) -> Result<()> {
        for node in 1..=self.nodes() {
            node::write_proxy(&self.place, node, mode)?;
            let machine = Machine::Node(node);
            for pid in self.place.pids(machine, "kube-proxy") {
                // What it has just started bears its name for a moment, and has ended by now.
                _ = process::output(Command::new("kill").arg(pid.to_string()));
            }
            self.wait_for(&format!("kube-proxy of {machine} in mode {}", mode.name()), PROXY_STARTS, || {
                let told = self.curl(machine, &["http://127.0.0.1:10249/proxyMode"]).ok();
                let healthy = || self.curl(machine, &["--fail", "http://127.0.0.1:10256/healthz"]).is_ok();
                Ok(told.filter(|told| told.trim() == mode.name() && healthy()).map(drop))
            })?;
        }
        Ok(())
    }

    /// Address of a Service.
    pub(crate) fn service_address(&self, namespace: &str, service: &str) -> Result<String> {
        let service = self.json(&["get", "service", "--namespace", namespace, service])?;
        Ok(service["spec"]["clusterIP"].as_str().context("the Service has no address")?.to_owned())
    }

    /// Waits until a node's container runtime answers.
    pub(super) fn await_runtime(&self, node: u8, patience: Duration) -> Result<()> {
        self.wait_for(&format!("containerd of node{node}"), patience, || {
            let mut version = self.inside(Machine::Node(node))?;
            version.arg(self.programs.path("ctr")?).args(["--address", CONTAINERD, "version"]);
            Ok(process::output(&mut version).ok())
        })
        .map(drop)
    }

    /// The last lines of all logs, for an error.
    pub(super) fn last_words(&self) -> String {
        let mut words = String::from("the cluster did not come up; the last lines of its logs:");
        let Ok(entries) = fs::read_dir(self.place.logs()) else { return words };
        for entry in entries.flatten() {
            let text = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            // Writing to a String cannot fail.
            let _ = write!(words, "\n── {}\n", entry.path().display());
            words += &lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        }
        words
    }
}

fn network(pid: u32) -> PathBuf {
    format!("/proc/{pid}/ns/net").into()
}

/// What the command writes to standard output when it is given this on standard input.
fn fed(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", process::shown(command)))?;
    let mut stdin = child.stdin.take().context("standard input is piped")?;
    let input = input.to_owned();
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // Whoever does not read to the end says why on standard error.
    let _ = writer.join();
    if !output.status.success() {
        bail!("`{}` failed: {}", process::shown(command), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
