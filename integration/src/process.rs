//! A program of ours as a process: started from beside the tests, its log read line by line, killed when dropped.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use runtime::task;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{cgroup::Cgroup, eventually, soon};

type Lines = Arc<Mutex<Vec<String>>>;

/// A running program that logs JSON.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Lines,
    cgroup: Option<Cgroup>,
}

/// Where a program lies that this package builds, from the very file that the real binary is built from.
pub fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.ancestors().nth(2).unwrap().join(name)
}

// === impl Process ===

impl Process {
    /// Starts it, within a cgroup if one is given.
    pub fn start(mut command: Command, cgroup: Option<Cgroup>) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = Lines::default();
        let stderr = child.stderr.take().expect("standard error is piped");
        task::spawn("log", collect(BufReader::new(stderr), Arc::clone(&lines)));
        Self { child, lines, cgroup }
    }

    /// Waits for the log line with this message.
    pub async fn says(&mut self, message: &str) -> Value {
        let Self { child, lines, cgroup: _ } = self;
        eventually(&format!("the process says {message:?}"), async || {
            assert!(child.try_wait().unwrap().is_none(), "the process ended:\n{}", lines.lock().join("\n"));
            let lines = lines.lock();
            let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["msg"] == message)
        })
        .await
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.lines.lock().join("\n")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).expect("the process runs");
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        soon("the process ends", self.child.wait()).await.unwrap()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    #[allow(clippy::print_stderr, reason = "the log of the process belongs to the failed test's output")]
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            let _ = self.child.start_kill();
            // A cgroup can be removed once its last process is gone.
            while matches!(self.child.try_wait(), Ok(None)) {
                std::thread::yield_now();
            }
            drop(cgroup);
        }
        if std::thread::panicking() {
            eprintln!("--- the process's log:\n{}", self.log());
        }
    }
}

/// An address of a log line, as seen from this machine.
pub fn local_addr(line: &Value, field: &str) -> SocketAddr {
    let text = line[field].as_str().unwrap_or_else(|| panic!("{field} in {line}"));
    let addr: SocketAddr = text.parse().unwrap_or_else(|error| panic!("{field} in {line}: {error}"));
    SocketAddr::from(([127, 0, 0, 1], addr.port()))
}

async fn collect(stderr: impl tokio::io::AsyncBufRead + Unpin, log: Lines) {
    let mut lines = stderr.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.lock().push(line);
    }
}
