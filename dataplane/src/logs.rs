//! What the programs log, into our own log under the target `ebpf`.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

/// The programs' log, to be forwarded by a task of its own.
pub struct Logs {
    logger: EbpfLogger<Forward>,
}

/// Hands records of `log` over to `tracing`.
#[derive(Debug)]
struct Forward;

/// Which records the programs are to make at all, as their global variable has it: what `tracing` would show now, and none
/// without `CAP_PERFMON`, for then the verifier refuses the pointer arithmetic that writing a record takes.
pub(crate) fn level(perfmon: bool) -> u8 {
    if !perfmon {
        return 0;
    }
    let level = if tracing::enabled!(target: "ebpf", tracing::Level::TRACE) {
        aya_log::Level::Trace
    } else if tracing::enabled!(target: "ebpf", tracing::Level::DEBUG) {
        aya_log::Level::Debug
    } else {
        aya_log::Level::Info
    };
    level.into()
}

// === impl Logs ===

impl Logs {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, aya_log::Error> {
        EbpfLogger::init_with_logger(ebpf, Forward).map(|logger| Self { logger })
    }

    /// Forwards what is there.
    pub(crate) fn flush(&mut self) {
        self.logger.flush();
    }

    /// Forwards for ever. Cancel safe: no record is lost, they wait in the ring buffer.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O.
    pub async fn forward(self) -> io::Result<()> {
        #[expect(deprecated, reason = "its successor is unsafe; the logger owns its descriptor and never changes it")]
        let mut logger = AsyncFd::with_interest(self.logger, Interest::READABLE)?;
        // Records from before the descriptor was registered.
        logger.get_mut().flush();
        loop {
            let mut ready = logger.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}

// === impl Forward ===

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "ebpf", "{message}"),
            log::Level::Warn => tracing::warn!(target: "ebpf", "{message}"),
            log::Level::Info => tracing::info!(target: "ebpf", "{message}"),
            log::Level::Debug => tracing::debug!(target: "ebpf", "{message}"),
            log::Level::Trace => tracing::trace!(target: "ebpf", "{message}"),
        }
    }

    fn flush(&self) {}
}
