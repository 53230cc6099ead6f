//! The runtimes: one single-threaded one per worker for requests, one for everything else.

use std::{io, num::NonZeroUsize, thread};

use tokio::task::LocalSet;

/// Starts a thread with a runtime of its own that runs what `main` returns to its end.
pub(crate) fn spawn_worker<F>(
    index: usize,
    main: impl FnOnce() -> F + Send + 'static,
) -> io::Result<thread::JoinHandle<()>>
where
    F: Future<Output = ()> + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let local = LocalSet::new();
        local.block_on(&runtime, async move { main().await });
    })
}

/// How many workers the machine has room for: what affinity and the cgroup's CPU quota allow.
pub(crate) fn default_workers() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
