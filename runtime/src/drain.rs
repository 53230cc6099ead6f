//! The phases of an orderly end: say that the process drains, then close listeners and idle connections, wait for the
//! requests that run, cut what is left. One [`Drain`] leads; every listener, connection and tunnel holds a [`Watch`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

/// Where the end stands. Phases only go forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// No end in sight.
    Serving = 0,
    /// Still accepting, but clients are told to go: `Connection: close`, not ready.
    Draining = 1,
    /// Listeners close, connections end after the request they serve, HTTP/2 peers get GOAWAY.
    Closing = 2,
    /// Whatever still runs is cut.
    Cut = 3,
}

/// Leads the process through the phases.
#[derive(Debug)]
pub struct Drain {
    phase: Arc<AtomicU8>,
    tx: watch::Sender<Phase>,
    work_done: mpsc::Receiver<()>,
    tunnels_done: mpsc::Receiver<()>,
}

/// Follows the phases; and, until it is dropped, is work that the end waits for.
#[derive(Clone, Debug)]
pub struct Watch {
    phase: Arc<AtomicU8>,
    rx: watch::Receiver<Phase>,
    tunnel: mpsc::Sender<()>,
    _work: mpsc::Sender<()>,
}

/// Follows the phases for a tunnel: the end does not wait for it before [`Phase::Cut`].
#[derive(Clone, Debug)]
pub struct TunnelWatch {
    rx: watch::Receiver<Phase>,
    _tunnel: mpsc::Sender<()>,
}

/// How the end went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// All work was done before the grace period was over.
    Finished,
    /// Work was left and cut.
    Cut,
}

/// A leader and the first watch. The leader waits for all clones of it.
pub fn channel() -> (Drain, Watch) {
    let phase = Arc::new(AtomicU8::new(Phase::Serving as u8));
    let (tx, rx) = watch::channel(Phase::Serving);
    // Nothing is ever sent: the end of all senders is the message.
    let (work, work_done) = mpsc::channel(1);
    let (tunnel, tunnels_done) = mpsc::channel(1);
    let watch = Watch { phase: Arc::clone(&phase), rx, tunnel, _work: work };
    (Drain { phase, tx, work_done, tunnels_done }, watch)
}

// === impl Drain ===

impl Drain {
    /// Begins: clients are told to go, nothing is refused yet.
    pub fn start(&self) {
        self.enter(Phase::Draining);
    }

    /// Closes listeners and waits for work to end; after `grace` (none: without end) cuts it. Tunnels are cut as soon
    /// as the rest is done, and have what is left of `grace` to go.
    ///
    /// Not cancel safe: dropped half way, phases stay where they are.
    pub async fn finish(mut self, grace: Option<Duration>) -> Outcome {
        self.enter(Phase::Closing);
        let deadline = grace.map(|grace| Instant::now() + grace);
        let finished = until(deadline, self.work_done.recv()).await;
        self.enter(Phase::Cut);
        let gone = until(deadline, self.tunnels_done.recv()).await;
        if finished && gone { Outcome::Finished } else { Outcome::Cut }
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
        self.tx.send_replace(phase);
    }
}

async fn until(deadline: Option<Instant>, end: impl Future<Output = Option<()>>) -> bool {
    if let Some(deadline) = deadline {
        return timeout_at(deadline, end).await.is_ok();
    }
    end.await;
    true
}

// === impl Phase ===

impl Phase {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Serving,
            1 => Self::Draining,
            2 => Self::Closing,
            _ => Self::Cut,
        }
    }
}

// === impl Watch ===

impl Watch {
    /// The phase now. Cheap enough for every request: one load, no write to shared memory.
    pub fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::Acquire))
    }

    /// Waits until `phase` or a later one is reached. Cancel safe.
    ///
    /// When the leader is gone without an end, it never is.
    pub async fn reached(&mut self, phase: Phase) {
        wait(&mut self.rx, phase).await;
    }

    /// Turns into a watch that the end does not wait for before it cuts.
    pub fn into_tunnel(self) -> TunnelWatch {
        let Self { phase: _, rx, tunnel, _work } = self;
        TunnelWatch { rx, _tunnel: tunnel }
    }
}

// === impl TunnelWatch ===

impl TunnelWatch {
    /// Waits until `phase` or a later one is reached. Cancel safe.
    pub async fn reached(&mut self, phase: Phase) {
        wait(&mut self.rx, phase).await;
    }
}

async fn wait(rx: &mut watch::Receiver<Phase>, phase: Phase) {
    if rx.wait_for(|now| *now >= phase).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_end_waits_for_work_that_runs() {
        let (drain, watch) = channel();
        assert_eq!(watch.phase(), Phase::Serving);
        drain.start();
        assert_eq!(watch.phase(), Phase::Draining);
        let mut follower = watch.clone();
        let mut end = Box::pin(drain.finish(None));
        assert!((&mut end).now_or_never().is_none());
        follower.reached(Phase::Closing).await;
        drop(follower);
        assert!((&mut end).now_or_never().is_none());
        drop(watch);
        assert_eq!(end.await, Outcome::Finished);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_outlasts_the_grace_period_is_cut() {
        let (drain, mut watch) = channel();
        let end = crate::task::spawn("end", drain.finish(Some(Duration::from_secs(30))));
        watch.reached(Phase::Cut).await;
        assert_eq!(end.await.unwrap(), Outcome::Cut);
    }

    #[tokio::test]
    async fn tunnels_are_cut_as_soon_as_the_rest_is_done() {
        let (drain, watch) = channel();
        let mut tunnel = watch.clone().into_tunnel();
        let end = crate::task::spawn("end", drain.finish(Some(Duration::from_secs(30))));
        assert!(tunnel.reached(Phase::Cut).now_or_never().is_none());
        drop(watch);
        tunnel.reached(Phase::Cut).await;
        drop(tunnel);
        assert_eq!(end.await.unwrap(), Outcome::Finished);
    }
}
