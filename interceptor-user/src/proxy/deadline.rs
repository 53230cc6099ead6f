//! Deadlines that cost nothing while they are far away: a timer is armed once and moved only when it fires.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::time::{Instant, Sleep};

/// A timer that serves one request after the other on a connection.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Who the timer wakes.
    waker: Option<Waker>,
}

impl Timer {
    /// Ready when `deadline` has passed. Wakes the task at `deadline`, or earlier for a deadline given before.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
            self.waker = None;
        }
        if !sleep.is_elapsed() && self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_later_deadline_is_kept_by_a_timer_armed_for_an_earlier_one() {
        let (mut timer, start) = (Timer::default(), Instant::now());
        let first = start + Duration::from_secs(1);
        let second = start + Duration::from_secs(3);
        assert!(futures_util::poll!(poll_fn(|cx| timer.poll(cx, first))).is_pending());
        poll_fn(|cx| timer.poll(cx, second)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_moves_the_timer_forward() {
        let (mut timer, start) = (Timer::default(), Instant::now());
        assert!(futures_util::poll!(poll_fn(|cx| timer.poll(cx, start + Duration::from_secs(9)))).is_pending());
        poll_fn(|cx| timer.poll(cx, start + Duration::from_secs(2))).await;
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
