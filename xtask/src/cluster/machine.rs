//! One machine of a cluster, from the inside: the first process of its namespaces. Lays out the mounts, starts the services, starts
//! each again that ends, and reaps what they leave. With its end the kernel ends everything in the machine.

use std::{
    collections::HashMap,
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{Pid, sethostname},
};
use serde::{Deserialize, Serialize};

use crate::cluster::mounts;

/// Where a machine sees the cluster's folder (`state`) and the programs (`bin/<module>`), wherever they lie outside.
pub(crate) const HERE: &str = "/run/rouse";
/// How long a service waits for what it needs before it starts all the same.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between looks at what a service needs, and before one that ended starts again.
const PAUSE: Duration = Duration::from_millis(50);

/// What a machine is made of: written by `cluster up`, read by the machine's first process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Its host name.
    pub(crate) hostname: String,
    /// Folders of this machine and where the new one sees them, below [`HERE`].
    pub(crate) binds: Vec<(PathBuf, String)>,
    /// Folders of the new machine and the ones of the cluster's folder they are.
    pub(crate) state: Vec<(String, String)>,
    /// Whether pods run here.
    pub(crate) node: bool,
    /// In the order they start.
    pub(crate) services: Vec<Service>,
}

/// One of its programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Service {
    /// Its log's name.
    pub(crate) name: String,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// What has to be there before it starts.
    pub(crate) needs: Option<Need>,
}

/// What a service needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Need {
    /// A file or socket.
    File(PathBuf),
    /// Somebody who listens.
    Listener(SocketAddr),
}

/// The life of a machine's first process. Returns only when it cannot go on.
pub(crate) fn run(plan: &Path) -> Result<()> {
    if std::process::id() != 1 {
        bail!("the first process of a machine has process id 1, not {}", std::process::id());
    }
    let text = fs::read(plan).with_context(|| format!("cannot read {}", plan.display()))?;
    let plan: Plan = serde_json::from_slice(&text).with_context(|| format!("cannot parse {}", plan.display()))?;
    sethostname(&plan.hostname).context("cannot set the host name")?;
    mounts::lay_out(&plan)?;
    let mut running = HashMap::new();
    for service in &plan.services {
        if let Some(need) = &service.needs {
            need.wait();
        }
        running.insert(service.start(&plan.hostname)?, service);
    }
    loop {
        let ended = match waitpid(None::<Pid>, None).context("cannot wait for the machine's processes")? {
            WaitStatus::Exited(pid, code) => (pid, format!("exit code {code}")),
            WaitStatus::Signaled(pid, signal, _) => (pid, signal.to_string()),
            _ => continue,
        };
        let (pid, how) = ended;
        if let Some(service) = running.remove(&pid.as_raw()) {
            eprintln!("{} ended: {how}; starting it again", service.name);
            thread::park_timeout(PAUSE);
            running.insert(service.start(&plan.hostname)?, service);
        }
    }
}

// === impl Service ===

impl Service {
    fn start(&self, machine: &str) -> Result<i32> {
        let Self { name, argv, needs: _ } = self;
        let (program, args) = argv.split_first().with_context(|| format!("service {name} has no program"))?;
        let log = format!("{HERE}/state/log/{machine}-{name}.log");
        let log =
            fs::File::options().create(true).append(true).open(&log).with_context(|| format!("cannot open {log}"))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        Ok(i32::try_from(child.id())?)
    }
}

// === impl Need ===

impl Need {
    fn is_there(&self) -> bool {
        match self {
            Self::File(path) => path.exists(),
            Self::Listener(address) => TcpStream::connect_timeout(address, PAUSE).is_ok(),
        }
    }

    fn wait(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.is_there() && Instant::now() < until {
            thread::park_timeout(PAUSE);
        }
    }
}
