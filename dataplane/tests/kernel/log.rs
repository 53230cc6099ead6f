//! What appears in the log: one line about the level, and what the programs say.

use std::{
    io::{self, Write},
    sync::Arc,
};

use dataplane::{Config, open};
use parking_lot::Mutex;
use tracing::subscriber::{DefaultGuard, set_default};
use tracing_subscriber::fmt::MakeWriter;

/// The lines that this thread logs while it lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(log.clone())
            .finish();
        (log, set_default(subscriber))
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.0.lock()).lines().map(|line| line.trim().to_owned()).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn doing_without_the_kernel_is_one_line_with_the_reason() {
    let (log, _guard) = Log::start();
    let (_, _, why) = open(Config { cgroup: Some("/nonexistent/cgroup".into()), ..Config::default() }).unwrap();
    let lines = log.lines();
    let [line] = &lines[..] else { panic!("one line, not {lines:?}") };
    assert!(line.contains("data plane without the kernel dataplane=none why=") && line.contains(&why), "{line}");
}

#[cfg(ebpf_object)]
mod programs {
    use std::process::{Command, Stdio};

    use dataplane::{Dataplane as _, Kernel};

    use super::Log;
    use crate::{
        cell::{Cell, eventually},
        peers::{Closed, connect},
        upstreams::upstream,
    };

    /// Makes the programs say something, and returns what.
    fn refused(kernel: &mut Kernel) -> String {
        let closed = Closed::new([127, 0, 6, 1]);
        kernel.sync(&mut [upstream(1, "a", &[closed.addr])].iter()).unwrap();
        connect(closed.addr).unwrap_err();
        format!("no connection to [::ffff:127.0.6.1]:{}", closed.addr.port())
    }

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn what_the_programs_say_appears_in_our_log() {
        let cell = Cell::enter();
        let (log, _guard) = Log::start();
        let mut kernel = cell.open();
        let told = refused(&mut kernel);
        kernel.repair().unwrap();
        let lines = log.lines();
        assert!(lines.contains(&format!("DEBUG ebpf: {told}")), "{lines:?}");
    }

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn a_task_forwards_what_the_programs_say_as_they_say_it() {
        let cell = Cell::enter();
        let (log, _guard) = Log::start();
        let mut kernel = cell.open();
        let logs = kernel.take_logs().expect("they are taken once");
        assert!(kernel.take_logs().is_none());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = tokio::task::LocalSet::new();
        tasks.spawn_local(logs.forward());
        let told = refused(&mut kernel);
        eventually("the task has forwarded it", || {
            runtime.block_on(tasks.run_until(tokio::task::yield_now()));
            log.lines().iter().any(|line| line.contains(&told))
        });
    }

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn processes_that_share_the_cgroup_are_warned_of() {
        let cell = Cell::enter();
        let (log, _guard) = Log::start();
        drop(cell.open());
        assert!(!log.lines().iter().any(|line| line.contains("share the cgroup")), "this process is alone in it");
        let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        drop(cell.open());
        drop(other.stdin.take());
        other.wait().unwrap();
        let lines = log.lines();
        assert!(lines.iter().any(|line| line.starts_with("WARN") && line.contains("others=1")), "{lines:?}");
    }

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn what_nobody_would_see_is_not_said() {
        let cell = Cell::enter();
        let mut kernel = cell.open();
        let (log, _guard) = Log::start();
        refused(&mut kernel);
        kernel.repair().unwrap();
        assert_eq!(log.lines(), [""; 0], "it was opened while no one listened to that level");
    }
}
