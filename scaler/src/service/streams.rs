//! The two streams: activity and metric specs. Each lives in the response it is the body of; nothing runs beside it.
//! A route that is missing for a moment doesn't end them: KEDA would take up to a minute to come back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{Stream, stream};
use proto::externalscaler::{GetMetricSpecResponse, IsActiveResponse, MetricSpec};
use runtime::signal::Shutdown;
use tokio::time::sleep_until;
use tonic::Status;

use super::Service;
use crate::{
    board::{Board, Subscription, View},
    push::{Push, Step},
    subject::Subject,
};

/// Most streams that are open at a time, of all clients: two each for ten thousand routes and several times as many
/// again, at some hundred bytes each. Further ones are refused with `RESOURCE_EXHAUSTED`, and KEDA polls.
pub(crate) const MAX_STREAMS: usize = 100_000;

/// Counts open streams.
#[derive(Debug)]
pub struct Streams {
    limit: usize,
    open: AtomicUsize,
    refused: AtomicU64,
}

/// One open stream; ends when dropped.
#[must_use]
#[derive(Debug)]
pub(super) struct Open(Arc<Streams>);

/// What a stream of activity keeps between messages.
struct ActivityStream {
    board: Board,
    subject: Subject,
    view: View,
    changes: Subscription,
    push: Push,
    shutdown: Shutdown,
    _open: Open,
}

/// What a stream of specs keeps between messages.
struct SpecStream {
    service: Service,
    subject: Subject,
    changes: Subscription,
    shutdown: Shutdown,
    said: Option<Vec<MetricSpec>>,
    _open: Open,
}

// === impl Streams ===

impl Streams {
    /// None open, and at most `limit` at a time.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, open: AtomicUsize::new(0), refused: AtomicU64::new(0) }
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// How many were refused, ever.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    pub(super) fn enter(self: &Arc<Self>) -> Result<Open, Status> {
        let open = Open(Arc::clone(self));
        if self.open.fetch_add(1, Relaxed) < self.limit {
            return Ok(open);
        }
        self.refused.fetch_add(1, Relaxed);
        Err(Status::resource_exhausted(format!("{} streams are open already", self.limit)))
    }
}

// === impl Open ===

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// The current value at once, then each change; ends at shutdown.
pub(super) fn activity(
    board: Board,
    (subject, view): (Subject, View),
    interval: Duration,
    shutdown: Shutdown,
    open: Open,
) -> impl Stream<Item = Result<IsActiveResponse, Status>> + Send {
    let changes = board.subscribe_counts(&subject);
    let state = ActivityStream { board, subject, view, changes, push: Push::new(interval), shutdown, _open: open };
    stream::unfold(state, |mut state| async move {
        let result = state.next().await?;
        Some((Ok(IsActiveResponse { result }), state))
    })
}

/// The current specs at once, or as soon as the route is there; then whenever they change; ends at shutdown.
pub(super) fn specs(
    service: Service,
    subject: Subject,
    open: Open,
) -> impl Stream<Item = Result<GetMetricSpecResponse, Status>> + Send {
    let changes = service.board.subscribe_route(&subject);
    let shutdown = service.shutdown.clone();
    let state = SpecStream { service, subject, changes, shutdown, said: None, _open: open };
    stream::unfold(state, |mut state| async move {
        let metric_specs = state.next().await?;
        Some((Ok(GetMetricSpecResponse { metric_specs }), state))
    })
}

// === impl ActivityStream ===

impl ActivityStream {
    async fn next(&mut self) -> Option<bool> {
        loop {
            if self.shutdown.is_requested() {
                return None;
            }
            let activity = self.board.activity(&self.subject, self.view);
            let due = match self.push.step(activity, self.board.now()) {
                Step::Say(active) => {
                    tracing::debug!(subject = ?self.subject, view = ?self.view, active, "told");
                    return Some(active);
                }
                Step::Wait(due) => due.into_iter().chain(activity.again).min().map(|due| self.board.instant(due)),
            };
            let timer = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changes.changed() => {}
                () = timer => {}
                () = self.shutdown.requested() => return None,
            }
        }
    }
}

// === impl SpecStream ===

impl SpecStream {
    async fn next(&mut self) -> Option<Vec<MetricSpec>> {
        loop {
            if self.shutdown.is_requested() {
                return None;
            }
            if let Ok(specs) = self.service.specs(&self.subject)
                && self.said.as_ref() != Some(&specs)
            {
                self.said = Some(specs.clone());
                return Some(specs);
            }
            tokio::select! {
                () = self.changes.changed() => {}
                () = self.shutdown.requested() => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_too_many_is_refused_until_another_ends() {
        let streams = Arc::new(Streams::new(2));
        let first = streams.enter().unwrap();
        let _second = streams.enter().unwrap();
        let refused = streams.enter().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(refused.message(), "2 streams are open already");
        assert_eq!((streams.open(), streams.refused()), (2, 1));
        drop(first);
        let _third = streams.enter().unwrap();
        assert_eq!((streams.open(), streams.refused()), (2, 1));
    }
}
