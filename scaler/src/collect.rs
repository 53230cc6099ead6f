//! One task per interceptor that listens to what it counts. A source that hangs or lies delays nobody but itself.
//!
//! ```text
//! addresses ─► supervise ─► source (one task each) ─┬─ stream: Counts/Watch over h2c
//!                                                   └─ queue: GET /queue every tick, from who speaks no gRPC
//!                                                        └─► News::{Listed, Report, Silent, Unlisted} ─► board
//! ```

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    convert::Infallible,
    net::SocketAddr,
    time::Duration,
};

use runtime::task;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::{
    board::{Board, News, Sender},
    discover::Listing,
    health,
    metrics::Fetches,
};

mod queue;
mod source;
mod stream;

/// Reads what an interceptor may answer to `GET /queue`, whatever it is; for the fuzz target.
#[cfg(fuzzing)]
pub fn read_queue(body: &[u8]) {
    let _ = queue::parse(body);
}

/// How sources are listened to.
#[derive(Clone, Debug)]
pub struct Config {
    /// How this scaler names itself to sources, for their logs.
    pub name: String,
    /// How often a source without a stream is asked.
    pub tick: Duration,
    /// How long it is asked so before it is offered the stream again: it may have been upgraded in place.
    pub offer_stream: Duration,
}

/// Keeps one task for each address. Ends when the list does.
///
/// One that was about to end and has done so is listened to no more, though it may be listed for as long as its node is away. One
/// that is about to end when it is seen first counts from when it is heard: nobody waits for it.
///
/// Not cancel safe in that it leaves no task behind: all are stopped when the future is dropped.
pub async fn supervise(
    mut addresses: watch::Receiver<BTreeMap<SocketAddr, Listing>>,
    news: Sender,
    config: Config,
    fetches: Fetches,
) -> Result<(), Infallible> {
    let mut tasks: HashMap<SocketAddr, Running> = HashMap::new();
    loop {
        let listed = addresses.borrow_and_update().clone();
        let gone = tasks.iter().filter(|(address, running)| running.is_over(listed.get(address)));
        for address in gone.map(|(address, _)| *address).collect::<Vec<_>>() {
            if let Some(running) = tasks.remove(&address) {
                // Stopped before it is told, so that no report of it comes after.
                running.stop().await;
            }
            tell(&news, News::Unlisted(address)).await;
        }
        for (address, Listing { kind, leaves }) in listed {
            match tasks.entry(address) {
                Entry::Occupied(running) => drop(running.get().leaves.send_replace(leaves)),
                Entry::Vacant(vacant) => {
                    if !leaves {
                        tell(&news, News::Listed(address, kind)).await;
                    }
                    let (leaves, leaving) = watch::channel(leaves);
                    let leaving = source::Leaving::new(kind, leaving);
                    let source = source::Source::new(address, leaving, config.clone(), news.clone(), fetches.clone());
                    vacant.insert(Running { task: task::spawn("source", source.run()), leaves });
                }
            }
        }
        if addresses.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Counts the ticks in which no interceptor was heard, as the original counts its failed cycles.
pub async fn account(board: Board, tick: Duration, fetches: Fetches) -> Result<(), Infallible> {
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is at once, when nobody can have been heard.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let standing = board.standing();
        if standing.synced && !health::is_ready(standing) {
            fetches.failed();
        }
    }
}

/// A task that is stopped when nobody wants it any more.
#[derive(Debug)]
struct Running {
    task: JoinHandle<()>,
    /// Where it is told that its source is about to end.
    leaves: watch::Sender<bool>,
}

// === impl Running ===

impl Running {
    /// Whether its source is not listed any more, or another one is at its address: nobody who is about to end comes back.
    fn is_over(&self, listed: Option<&Listing>) -> bool {
        listed.is_none_or(|listing| *self.leaves.borrow() && !listing.leaves)
    }

    /// Returns when it does nothing any more.
    async fn stop(mut self) {
        self.task.abort();
        // How it ended is known.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits while the writer is behind; news to a writer that is gone is nobody's.
async fn tell(to: &Sender, news: News) {
    let _ = to.send(news).await;
}
