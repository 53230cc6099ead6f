//! Drives an HTTP/1.1 upstream connection within the task of the request that has borrowed it.
//!
//! hyper's connection and its response body talk through channels, which wake the task at the other end. Here both ends
//! are polled by the same task, one right after the other, so such a wake-up would only make it run once more for
//! nothing. A [`Driver`] gives the connection a waker of its own, which is deaf while the body is being polled.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Wake, Waker},
};

use parking_lot::Mutex;

/// A connection that makes progress only while it is driven.
pub(crate) struct Driver {
    /// `None` once it has ended.
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>>>>>,
    relay: Arc<Relay>,
    /// Made of `relay`, so that it is not made anew for every poll.
    waker: Waker,
}

/// Passes the connection's wake-ups on to the task that drives it.
#[derive(Debug, Default)]
struct Relay {
    /// The connection has asked to be driven since it was last.
    woken: AtomicBool,
    deaf: AtomicBool,
    task: Mutex<Option<Waker>>,
}

// === impl Driver ===

impl Driver {
    pub(crate) fn new(connection: impl Future<Output = hyper::Result<()>> + 'static) -> Self {
        let relay = Arc::new(Relay::default());
        let waker = Waker::from(Arc::clone(&relay));
        Self { connection: Some(Box::pin(connection)), relay, waker }
    }

    /// Moves the connection's bytes; the task of `cx` is woken when there are more.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        let Some(connection) = &mut self.connection else { return };
        self.relay.attach(cx.waker());
        self.relay.woken.store(false, Relaxed);
        if connection.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready() {
            // Its end is told through the pending response or body, which the drop completes.
            self.connection = None;
        }
    }

    /// Lets a connection finish what it has begun, while no task is waiting for it.
    pub(crate) fn settle(&mut self) {
        self.drive(&mut Context::from_waker(Waker::noop()));
    }

    /// Lets a connection that nobody waits for do what it has asked for: notice that its peer has closed, mostly.
    pub(crate) fn drive_idle(&mut self) {
        if self.relay.woken.load(Relaxed) {
            self.settle();
        }
    }

    /// Does something to the connection's other ends without being woken by it.
    pub(crate) fn quietly<T>(&mut self, act: impl FnOnce() -> T) -> T {
        self.relay.deaf.store(true, Relaxed);
        let result = act();
        self.relay.deaf.store(false, Relaxed);
        result
    }

    pub(crate) fn is_open(&self) -> bool {
        self.connection.is_some()
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

// === impl Relay ===

impl Relay {
    fn attach(&self, waker: &Waker) {
        let mut task = self.task.lock();
        if !task.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.deaf.load(Relaxed) {
            return;
        }
        self.woken.store(true, Relaxed);
        if let Some(task) = self.task.lock().as_ref() {
            task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::atomic::AtomicUsize};

    use super::*;

    #[derive(Debug, Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn the_task_is_woken_by_the_connection_but_not_by_its_own_doing() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<()>();
        let mut driver = Driver::new(async move {
            poll_fn(|cx| receiver.poll_recv(cx)).await;
            std::future::pending().await
        });
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        driver.drive(&mut Context::from_waker(&waker));
        driver.quietly(|| sender.send(()).unwrap());
        assert_eq!(count.0.load(Relaxed), 0);
        drop(sender);
        driver.drive(&mut Context::from_waker(&waker));
        assert!(driver.is_open());
    }
}
