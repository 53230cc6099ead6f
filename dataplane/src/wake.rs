//! What tasks wait for that have to do with the kernel at once: records in a ring buffer, and points in time.

use std::{
    future, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    task::Poll,
    time::Duration,
};

use nix::sys::{
    time::TimeSpec,
    timer::TimerSetTimeFlags,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Tells when there is something to read: in a ring buffer, or in one of several places.
#[derive(Debug)]
pub struct Arrivals(Vec<AsyncFd<OwnedFd>>);

/// Wakes at a time of the programs' clock, exact to some ten microseconds: the runtime's own timers know milliseconds.
#[derive(Debug)]
pub struct Alarm {
    timer: TimerFd,
    ready: AsyncFd<OwnedFd>,
    at: Option<Duration>,
}

// === impl Arrivals ===

impl Arrivals {
    pub(crate) fn of<'a>(places: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        Ok(Self(places.into_iter().map(readable).collect::<Result<_, _>>()?))
    }

    /// Ends once there is something, or was: who reads until there is nothing more misses nothing. Cancel safe.
    pub async fn arrived(&self) -> io::Result<()> {
        let Self(places) = self;
        future::poll_fn(|context| {
            let mut found = Poll::Pending;
            for place in places {
                if let Poll::Ready(ready) = place.poll_read_ready(context) {
                    ready?.clear_ready();
                    found = Poll::Ready(Ok(()));
                }
            }
            found
        })
        .await
    }
}

// === impl Alarm ===

impl Alarm {
    /// One that is not set. Must be called within the runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let ready = readable(timer.as_fd())?;
        Ok(Self { timer, ready, at: None })
    }

    /// Sets it, in place of what it was set to; `None` is never.
    pub fn set(&mut self, at: Option<Duration>) -> io::Result<()> {
        if at == self.at {
            return Ok(());
        }
        match at {
            // A time of zero would be none.
            Some(at) => {
                let at = TimeSpec::from_duration(at.max(Duration::from_nanos(1)));
                self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
            None => self.timer.unset()?,
        }
        self.at = at;
        Ok(())
    }

    /// Ends when the time has come that it is set to, once. Cancel safe.
    pub async fn rang(&mut self) -> io::Result<()> {
        self.ready.readable().await?.clear_ready();
        self.at = None;
        Ok(())
    }
}

fn readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(deprecated, reason = "its successor is unsafe; this owns its descriptor and never changes it")]
    AsyncFd::with_interest(fd.try_clone_to_owned()?, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monotonic;

    #[tokio::test]
    async fn an_alarm_rings_when_its_time_has_come_and_again_when_it_is_set_again() {
        let mut alarm = Alarm::new().unwrap();
        for _ in 0..3 {
            let at = monotonic() + Duration::from_millis(2);
            alarm.set(Some(at + Duration::from_hours(1))).unwrap();
            alarm.set(Some(at)).unwrap();
            alarm.rang().await.unwrap();
            assert!(monotonic() >= at);
        }
        alarm.set(Some(Duration::ZERO)).unwrap();
        alarm.rang().await.unwrap();
    }
}
