//! One interceptor: its stream while it has one, else its `/queue`, with pauses after failures. Ends by itself only if the
//! interceptor was about to end and is not heard any more.

use std::{
    convert::Infallible,
    error::Error,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    time::Duration,
};

use runtime::backoff::Backoff;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    Config, queue,
    stream::{Counts, StreamError},
    tell,
};
use crate::{
    board::{News, Sender},
    discover::Kind,
    metrics::Fetches,
};

/// A pod that comes back is heard again within this.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How many times in a row one that is about to end may fail before it is taken to have done so: its network may have stuttered.
const LAST_TRIES: u32 = 3;

/// Whether a source is about to end.
#[derive(Debug)]
pub(super) struct Leaving {
    kind: Kind,
    leaves: watch::Receiver<bool>,
    /// Whether the board knows of it.
    is_told: bool,
    /// How many times it has failed in a row.
    failures: u32,
}

/// What the task knows.
#[derive(Debug)]
pub(super) struct Source {
    address: SocketAddr,
    config: Config,
    news: Sender,
    fetches: Fetches,
    noise: RandomState,
    silent: bool,
    leaving: Leaving,
}

// === impl Leaving ===

impl Leaving {
    /// Of one that the board knows of, unless it is about to end already.
    pub(super) fn new(kind: Kind, leaves: watch::Receiver<bool>) -> Self {
        let is_told = !*leaves.borrow();
        Self { kind, leaves, is_told, failures: 0 }
    }

    fn is_on(&self) -> bool {
        *self.leaves.borrow()
    }

    /// It failed once more. Whether it has ended.
    fn has_ended(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.is_on() && self.failures >= LAST_TRIES
    }
}

// === impl Source ===

impl Source {
    pub(super) fn new(address: SocketAddr, leaving: Leaving, config: Config, news: Sender, fetches: Fetches) -> Self {
        Self { address, config, news, fetches, noise: RandomState::new(), silent: false, leaving }
    }

    /// Listens until it is stopped, or the source has ended as it was about to.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::up_to(MAX_PAUSE);
        loop {
            let error = match self.follow(&mut backoff).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            match error {
                // Somebody is there who speaks another language, or none.
                StreamError::Refused(_) | StreamError::Mute | StreamError::Incomplete => {
                    if self.poll(&error, &mut backoff).await {
                        continue;
                    }
                }
                StreamError::Unreachable(_) | StreamError::Broken(_) | StreamError::Ended | StreamError::Silent => {
                    self.fell_silent(&error).await;
                }
            }
            if self.leaving.has_ended() {
                tracing::debug!(source = %self.address, "interceptor has ended");
                tell(&self.news, News::Unlisted(self.address)).await;
                return;
            }
            sleep(backoff.next(self.noise.hash_one(Instant::now()))).await;
        }
    }

    /// Passes the stream's reports on until it ends.
    async fn follow(&mut self, backoff: &mut Backoff) -> Result<Infallible, StreamError> {
        let began = Instant::now();
        let mut counts = Counts::open(self.address, &self.config.name).await?;
        self.fetches.took(began.elapsed());
        backoff.reset();
        self.heard("stream").await;
        loop {
            let report = counts.next().await?;
            tell(&self.news, News::Report(self.address, report)).await;
        }
    }

    /// Asks for `/queue` every tick until it is time to try the stream again. False if it never answered.
    async fn poll(&mut self, refused: &StreamError, backoff: &mut Backoff) -> bool {
        let mut ticks = interval(self.config.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let until = Instant::now() + self.config.offer_stream;
        let mut answered = false;
        while Instant::now() < until {
            ticks.tick().await;
            let began = Instant::now();
            match queue::fetch(self.address, self.config.tick).await {
                Ok(report) => {
                    self.fetches.took(began.elapsed());
                    backoff.reset();
                    answered = true;
                    self.heard("queue").await;
                    tell(&self.news, News::Report(self.address, report)).await;
                }
                Err(error) if answered => {
                    self.fell_silent(&error).await;
                    return true;
                }
                Err(error) => {
                    tracing::debug!(source = %self.address, error = causes(&error), "no answer to GET /queue either");
                    self.fell_silent(refused).await;
                    return false;
                }
            }
        }
        true
    }

    async fn heard(&mut self, by: &'static str) {
        self.leaving.failures = 0;
        if !std::mem::replace(&mut self.leaving.is_told, true) {
            tell(&self.news, News::Listed(self.address, self.leaving.kind)).await;
        }
        if std::mem::take(&mut self.silent) {
            tracing::info!(source = %self.address, by, "interceptor is heard again");
        } else {
            tracing::debug!(source = %self.address, by, "interceptor is heard");
        }
    }

    async fn fell_silent(&mut self, error: &(dyn Error + Sync)) {
        if self.leaving.is_on() {
            tracing::debug!(source = %self.address, error = causes(error), "interceptor that is to end is not heard");
        } else if !std::mem::replace(&mut self.silent, true) {
            tracing::warn!(source = %self.address, error = causes(error), "interceptor is not heard, its last counts stand");
        }
        tell(&self.news, News::Silent(self.address)).await;
    }
}

/// An error with all its causes, as one text.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
