//! The order to end: the first SIGTERM or SIGINT asks for a drain, the second ends the process with status 1.
//! One [`Trigger`] or signal task writes; every part of the process holds a [`Shutdown`].

use std::{io, process};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::task;

/// Tells whether the process was asked to end. Clones share it, over all runtimes.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Asks for the end, in place of a signal. Dropping it without [`Trigger::fire`] never asks.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// A shutdown that is asked for by the returned trigger: for tests and for processes inside a process.
pub fn manual() -> (Trigger, Shutdown) {
    let (tx, rx) = watch::channel(false);
    (Trigger(tx), Shutdown(rx))
}

/// A shutdown that is asked for by SIGTERM or SIGINT. From here on the signals no longer end the process by themselves.
///
/// Must be called within a runtime, whose thread then also ends the process at the second signal: keep that runtime
/// free of work that blocks.
pub fn install() -> io::Result<Shutdown> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (trigger, shutdown) = manual();
    task::spawn("signals", async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let first = next().await;
        tracing::info!(signal = first, "shutting down");
        trigger.fire();
        let second = next().await;
        tracing::warn!(signal = second, "second signal, ending at once");
        #[expect(clippy::exit, reason = "the operator asked twice: nothing may delay the end")]
        process::exit(1);
    });
    Ok(shutdown)
}

// === impl Shutdown ===

impl Shutdown {
    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the end is asked for. Cancel safe.
    pub async fn requested(&mut self) {
        if self.0.wait_for(|requested| *requested).await.is_err() {
            // The trigger is gone: nobody can ask any more.
            std::future::pending::<()>().await;
        }
    }
}

// === impl Trigger ===

impl Trigger {
    /// Asks for the end.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn every_clone_learns_of_the_request_whenever_it_asks() {
        let (trigger, mut early) = manual();
        assert!(early.requested().now_or_never().is_none());
        trigger.fire();
        early.requested().await;
        let mut late = early.clone();
        late.requested().await;
        assert!(late.is_requested());
    }

    #[tokio::test]
    async fn a_trigger_that_is_dropped_does_not_ask() {
        let (trigger, mut shutdown) = manual();
        drop(trigger);
        assert!(shutdown.requested().now_or_never().is_none());
        assert!(!shutdown.is_requested());
    }
}
