//! Child processes: started through our own binary, so that the kernel ends them when we end, whatever we die of.
//!
//! `rouse-local run-child` asks for that (`PR_SET_PDEATHSIG`), enters a cgroup if told to, and becomes the program. That
//! takes a process of its own because the alternative, code between fork and exec, would need `unsafe`.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command as StdCommand, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill, killpg},
    },
    unistd::{Pid, getppid},
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// What to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The binary that has the `run-child` command: ours.
    pub launcher: PathBuf,
    /// The program and its arguments; at least one element.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The working directory.
    pub working_dir: Option<PathBuf>,
    /// Where its output goes.
    pub log: PathBuf,
    /// The cgroup to enter.
    pub cgroup: Option<PathBuf>,
}

/// A running child in a process group of its own. Dropping it kills the group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: Pid,
}

// === impl Launch ===

impl Launch {
    /// Starts it. Must be called on a thread that lives as long as the process: the kernel ties the child to it.
    pub fn start(&self) -> io::Result<Process> {
        let mut command = Command::new(&self.launcher);
        command.arg("run-child").arg("--parent").arg(std::process::id().to_string());
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        let log = append(&self.log)?;
        command.arg("--").args(&self.command).env_clear().envs(&self.env);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if let Some(dir) = &self.working_dir {
            command.current_dir(dir);
        }
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Process { child, pid: Pid::from_raw(pid) })
    }
}

/// Appending, so that a log that was cut short while the writer runs does not become sparse.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

// === impl Process ===

impl Process {
    /// Its process id, which is also its group's.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Waits for its end and then ends what it left in its group. Cancel safe.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.kill_group();
        Ok(status)
    }

    /// Asks it to end, and kills it when it has not after `grace`.
    pub async fn stop(mut self, grace: Duration) -> io::Result<ExitStatus> {
        if self.child.id().is_some() {
            // An error means that it has just ended by itself, which is what is wanted.
            let _ = kill(self.pid, Signal::SIGTERM);
        }
        if let Ok(ended) = timeout(grace, self.ended()).await {
            return ended;
        }
        self.kill_group();
        self.ended().await
    }

    fn kill_group(&self) {
        // An error means that nothing is left in it.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only while it has not been reaped: later the number may be another's.
        if self.child.id().is_some() {
            self.kill_group();
        }
    }
}

/// Becomes `command`, tied to the life of `parent`. Returns only when that fails.
pub fn become_child(parent: u32, cgroup: Option<&Path>, command: &[String]) -> io::Result<Infallible> {
    let (program, args) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the line above; then nobody would tell us.
    if getppid().as_raw().unsigned_abs() != parent {
        return Err(io::Error::other(format!("parent process {parent} has ended")));
    }
    if let Some(cgroup) = cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0")?;
    }
    let error = StdCommand::new(program).args(args).exec();
    Err(io::Error::new(error.kind(), format!("cannot run {program}: {error}")))
}

/// The variables that any program may rely on, taken from our own environment.
pub fn base_env(vars: impl Iterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
    let text = vars.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    text.filter(|(name, _)| matches!(name.as_str(), "PATH" | "HOME" | "LANG" | "TZ" | "TMPDIR" | "USER")).collect()
}

/// How a process ended, in words.
pub fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.to_string());
            format!("was ended by {name}")
        }
        (None, None) => "ended".to_owned(),
    }
}
