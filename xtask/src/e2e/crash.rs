//! A cluster whose `up` was killed half-way, and one of its machines too, goes without a trace; the one beside it stays.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cluster::{Cluster, Machine, Name, Place},
    process,
};

/// Until it is so far up that there is much to leave behind.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Runs it beside the cluster that is up.
pub(super) fn run(beside: &Cluster) -> Result<()> {
    let root = beside.place().root();
    let name = format!("{}-x", beside.place().name());
    let place = Place::new(root, &name.parse::<Name>()?);
    let this = std::env::current_exe().context("cannot find this program")?;
    let mut up = Command::new(this);
    up.args(["cluster", "up", "--nodes", "1", "--name", &name]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut up = up.spawn().context("cannot start `cluster up`")?;
    let until = Instant::now() + PATIENCE;
    while place.pids(Machine::Node(1), "containerd").is_empty()
        || place.pids(Machine::ControlPlane, "kube-apiserver").is_empty()
    {
        if Instant::now() > until {
            bail!("the second cluster did not start");
        }
        std::thread::park_timeout(PAUSE);
    }
    up.kill()?;
    up.wait()?;
    // The API server is started again by its machine; the node ends with its first process.
    let api_server = place.pids(Machine::ControlPlane, "kube-apiserver");
    let first = place.first_process(Machine::Node(1))?;
    for pid in api_server.into_iter().chain([first]) {
        process::run(Command::new("kill").args(["-KILL", &pid.to_string()]))?;
    }
    Cluster::down_to_nothing(root, &name)?;
    let folder = place.folder();
    let folder = folder.to_str().context("the cluster's folder has a name in UTF-8")?;
    let traces = traces(folder, &place.machine(Machine::ControlPlane))?;
    ensure!(traces.is_empty(), "left behind: {}", traces.join(", "));
    // To take away what is not there does no harm.
    Cluster::down_to_nothing(root, &name)?;
    beside.kubectl(&["get", "--raw", "/readyz"]).context("the cluster beside it is gone too")?;
    Ok(())
}

/// Processes and mounts anywhere on the machine that name the cluster's folder or one of its namespaces.
fn traces(folder: &str, netns: &str) -> Result<Vec<String>> {
    let mut traces = Vec::new();
    let this = std::process::id().to_string();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) || pid == this {
            continue;
        }
        for file in ["cmdline", "mountinfo"] {
            // It may have ended meanwhile.
            let text = fs::read(entry.path().join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            if text.contains(folder) || text.contains(netns) {
                traces.push(format!("{file} of process {pid}"));
            }
        }
    }
    Ok(traces)
}
