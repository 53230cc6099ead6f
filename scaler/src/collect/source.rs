//! One interceptor: its stream while it has one, else its `/queue`, with pauses after failures. Never ends by itself.

use std::{
    convert::Infallible,
    error::Error,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    time::Duration,
};

use runtime::backoff::Backoff;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    Config, queue,
    stream::{Counts, StreamError},
    tell,
};
use crate::{
    board::{News, Sender},
    metrics::Fetches,
};

/// A pod that comes back is heard again within this.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What the task knows.
#[derive(Debug)]
pub(super) struct Source {
    address: SocketAddr,
    config: Config,
    news: Sender,
    fetches: Fetches,
    noise: RandomState,
    silent: bool,
}

// === impl Source ===

impl Source {
    pub(super) fn new(address: SocketAddr, config: Config, news: Sender, fetches: Fetches) -> Self {
        Self { address, config, news, fetches, noise: RandomState::new(), silent: false }
    }

    /// Listens until it is stopped.
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
            sleep(backoff.next(self.noise.hash_one(Instant::now()))).await;
        }
    }

    /// Passes the stream's reports on until it ends.
    async fn follow(&mut self, backoff: &mut Backoff) -> Result<Infallible, StreamError> {
        let began = Instant::now();
        let mut counts = Counts::open(self.address, &self.config.name).await?;
        self.fetches.took(began.elapsed());
        backoff.reset();
        self.heard("stream");
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
                    self.heard("queue");
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

    fn heard(&mut self, by: &'static str) {
        if std::mem::take(&mut self.silent) {
            tracing::info!(source = %self.address, by, "interceptor is heard again");
        } else {
            tracing::debug!(source = %self.address, by, "interceptor is heard");
        }
    }

    async fn fell_silent(&mut self, error: &(dyn Error + Sync)) {
        if !std::mem::replace(&mut self.silent, true) {
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
