//! A cgroup of the test's own, into which this process moves for as long as the test runs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::Duration,
};

use dataplane::{Dataplane, Kernel, Limits};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// One process can be in one cgroup only, so one test runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The process is in the cgroup while this lives.
pub(crate) struct Cell {
    path: PathBuf,
    home: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Cell {
    pub(crate) fn enter() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let alone = ONE_AT_A_TIME.lock();
        let home = own();
        let path = home.join(format!("rouse-test-{}-{}", process::id(), COUNT.fetch_add(1, Relaxed)));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let cell = Self { path, home, _alone: alone };
        move_to(&cell.path);
        cell
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn open(&self) -> Kernel {
        self.open_with(Limits { addresses: 1024, slots: 256 })
    }

    pub(crate) fn open_with(&self, limits: Limits) -> Kernel {
        Kernel::open(Some(self.path()), limits).expect("a test that needs root has the kernel")
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        move_to(&self.home);
        fs::remove_dir(&self.path).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
    }
}

/// Where cgroup v2 is mounted.
pub(crate) fn root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is mounted");
    line.split(' ').nth(4).unwrap().into()
}

fn own() -> PathBuf {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2 has a line");
    root().join(own)
}

fn move_to(cgroup: &Path) {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, process::id().to_string()).unwrap_or_else(|error| panic!("{}: {error}", procs.display()));
}

/// Waits for what the kernel does in its own time.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let late = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < late, "not within 30 s: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// The counters of one upstream: opened, closed, failed.
pub(crate) fn count(dataplane: &dyn Dataplane, id: u32) -> (u64, u64, u64) {
    let counters = dataplane.counters().into_iter().find(|(of, _)| of.0 == id);
    counters.map(|(_, c)| (c.opened, c.closed, c.failed)).unwrap_or_default()
}

/// This test binary.
pub(crate) fn myself() -> PathBuf {
    env::current_exe().unwrap()
}
