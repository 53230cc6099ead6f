//! Named, instrumented tasks. Everything that runs beside a caller is started here, so that it shows up in the logs by
//! name, is joined at shutdown, and cannot end unnoticed when others rely on it.

use std::{collections::HashMap, error::Error, future::Future, time::Duration};

use tokio::task::{Id, JoinHandle, JoinSet};
use tracing::Instrument as _;

/// Long-lived tasks that a process cannot do without.
///
/// A task of a group is expected to run until the group is joined; [`Group::ended`] tells of one that did not.
#[derive(Debug, Default)]
pub struct Group {
    tasks: JoinSet<Result<(), String>>,
    names: HashMap<Id, &'static str>,
}

/// A long-lived task ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("task {task} ended: {how}")]
pub struct Ended {
    /// The task's name.
    pub task: &'static str,
    /// Why.
    pub how: How,
}

/// How a task ended.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum How {
    /// It returned without an error, which a long-lived task does not do.
    #[error("it returned")]
    Returned,
    /// It returned an error.
    #[error("{0}")]
    Failed(String),
    /// It panicked.
    #[error("it panicked")]
    Panicked,
}

/// Starts a task on the current runtime, in a span of its name. Dropping the handle detaches it.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    tokio::spawn(future.instrument(tracing::info_span!("run", task = name)))
}

/// Starts a task on the current local set, in a span of its name. Dropping the handle detaches it.
///
/// Workers start one for each connection, so the span exists at debug level only: entering it on every poll would be
/// paid for by every request.
#[track_caller]
pub fn spawn_local<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: 'static> + 'static,
{
    tokio::task::spawn_local(future.instrument(tracing::debug_span!("run", task = name)))
}

// === impl Group ===

impl Group {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that others rely on.
    #[track_caller]
    pub fn spawn<F, E>(&mut self, name: &'static str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let future = async move { future.await.map_err(|error| with_causes(&*error.into())) };
        let handle = self.tasks.spawn(future.instrument(tracing::info_span!("run", task = name)));
        self.names.insert(handle.id(), name);
    }

    /// Waits for the first task to end. An empty group never ends.
    ///
    /// Cancel safe: a task's end is told once, by the call that returns it.
    pub async fn ended(&mut self) -> Ended {
        let (id, how) = match self.tasks.join_next_with_id().await {
            Some(Ok((id, result))) => (id, result.err().map_or(How::Returned, How::Failed)),
            Some(Err(error)) => (error.id(), How::Panicked),
            None => return std::future::pending().await,
        };
        let task = self.names.remove(&id).unwrap_or("unnamed");
        Ended { task, how }
    }

    /// Waits for all tasks to end, and stops those that have not after `grace`. Returns the ones that were stopped.
    ///
    /// Not cancel safe: when the future is dropped, all tasks are stopped at once.
    pub async fn join(mut self, grace: Duration) -> Vec<&'static str> {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_ok() {
            return Vec::new();
        }
        self.tasks.abort_all();
        let mut stopped = Vec::new();
        while let Some(joined) = self.tasks.join_next_with_id().await {
            let Err(error) = joined else { continue };
            stopped.extend(self.names.remove(&error.id()));
        }
        stopped
    }
}

/// An error and what it came from, in one line: the error itself does not outlive its task.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn a_task_that_returns_an_error_is_named_with_it() {
        let mut group = Group::new();
        group.spawn("idle", std::future::pending::<Result<(), Infallible>>());
        group.spawn("broken", async { Err("no such folder") });
        let ended = group.ended().await;
        assert_eq!(ended.to_string(), "task broken ended: no such folder");
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot watch")]
        struct Outer(#[source] std::io::Error);

        let outer = Outer(std::io::Error::other("no such folder"));
        assert_eq!(with_causes(&outer), "cannot watch: no such folder");
    }

    #[tokio::test]
    async fn a_task_that_just_returns_has_ended_too() {
        let mut group = Group::new();
        group.spawn("short", async { Ok::<_, Infallible>(()) });
        assert_eq!(group.ended().await.how, How::Returned);
    }

    #[tokio::test]
    async fn a_task_that_panics_is_named() {
        let mut group = Group::new();
        group.spawn("fragile", async {
            assert!(std::hint::black_box(false), "as the test wants");
            Ok::<_, Infallible>(())
        });
        let ended = group.ended().await;
        assert_eq!((ended.task, ended.how), ("fragile", How::Panicked));
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_outlast_the_grace_period_are_stopped_and_named() {
        let mut group = Group::new();
        group.spawn("quick", async { Ok::<_, Infallible>(()) });
        group.spawn("stuck", std::future::pending::<Result<(), Infallible>>());
        assert_eq!(group.join(Duration::from_secs(3)).await, ["stuck"]);
    }
}
