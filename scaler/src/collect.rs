//! One task per interceptor that listens to what it counts. A source that hangs or lies delays nobody but itself.
//!
//! ```text
//! addresses ─► supervise ─► source (one task each) ─┬─ stream: Counts/Watch over h2c
//!                                                   └─ queue: GET /queue every tick, from who speaks no gRPC
//!                                                        └─► News::{Report, Silent} ─► board
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
    discover::Kind,
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
/// Not cancel safe in that it leaves no task behind: all are stopped when the future is dropped.
pub async fn supervise(
    mut addresses: watch::Receiver<BTreeMap<SocketAddr, Kind>>,
    news: Sender,
    config: Config,
    fetches: Fetches,
) -> Result<(), Infallible> {
    let mut tasks: HashMap<SocketAddr, Running> = HashMap::new();
    loop {
        let listed = addresses.borrow_and_update().clone();
        let gone: Vec<_> = tasks.keys().filter(|address| !listed.contains_key(address)).copied().collect();
        for address in gone {
            // Stopped before it is told, so that no report of it comes after.
            drop(tasks.remove(&address));
            tell(&news, News::Unlisted(address)).await;
        }
        for (address, kind) in listed {
            let Entry::Vacant(vacant) = tasks.entry(address) else { continue };
            tell(&news, News::Listed(address, kind)).await;
            let source = source::Source::new(address, config.clone(), news.clone(), fetches.clone());
            vacant.insert(Running(task::spawn("source", source.run())));
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
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits while the writer is behind; news to a writer that is gone is nobody's.
async fn tell(to: &Sender, news: News) {
    let _ = to.send(news).await;
}
