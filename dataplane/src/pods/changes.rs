//! Tells when pods' cgroups come or go, at once where the kernel tells (inotify), by looking again where it does not.

use std::{
    collections::HashSet,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{self, Instant},
};

/// How often is looked again whatever the kernel tells: its queue may overflow, and watches may be few.
const LOOK: Duration = Duration::from_secs(5);
/// The same when the kernel tells nothing at all.
const LOOK_ALONE: Duration = Duration::from_millis(250);

/// Where pods may come.
#[derive(Debug)]
pub struct Changes {
    inotify: Option<Inotify>,
    watched: HashSet<PathBuf>,
    /// When it was last said that something may have changed.
    told: Instant,
}

// === impl Changes ===

impl Changes {
    /// Watches nothing yet. Without inotify (its limit of instances is a user's) it looks more often.
    pub fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        if let Err(error) = &inotify {
            tracing::warn!(%error, "pods' cgroups are looked for four times a second: inotify cannot be had");
        }
        Self { inotify: inotify.ok(), watched: HashSet::new(), told: Instant::now() }
    }

    /// Watches these folders too. Those that go are forgotten by the kernel, and by this when a folder of the same name
    /// comes again.
    pub fn watch(&mut self, folders: &[PathBuf]) {
        let Some(inotify) = &self.inotify else { return };
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        self.watched.retain(|folder| folder.exists());
        for folder in folders {
            if !self.watched.contains(folder) && inotify.add_watch(folder.as_path(), flags).is_ok() {
                self.watched.insert(folder.clone());
            }
        }
    }

    /// Whether a folder is watched.
    pub fn is_watched(&self, folder: &Path) -> bool {
        self.watched.contains(folder)
    }

    /// Ends when something may have changed. Cancel safe: what the kernel has told waits for the next call, and so does a look that is due.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub async fn changed(&mut self) {
        self.wait().await;
        self.told = Instant::now();
    }

    async fn wait(&mut self) {
        let Some(inotify) = self.inotify.as_ref() else { return time::sleep_until(self.told + LOOK_ALONE).await };
        let told = async {
            #[expect(deprecated, reason = "its successor is unsafe; the descriptor is owned and never changes")]
            let fd = AsyncFd::with_interest(inotify.as_fd(), Interest::READABLE)?;
            loop {
                let mut ready = fd.readable().await?;
                match inotify.read_events() {
                    Ok(_) => return Ok::<_, io::Error>(()),
                    Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        match time::timeout_at(self.told + LOOK, told).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "pods' cgroups are looked for four times a second: inotify cannot be read");
                self.inotify = None;
            }
        }
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_comes_in_its_time_however_often_the_wait_for_it_is_broken_off() {
        for (inotify, due) in [(true, LOOK), (false, LOOK_ALONE)] {
            let mut changes = Changes::new();
            changes.inotify = changes.inotify.filter(|_| inotify);
            let begun = Instant::now();
            let mut broken_off = 0;
            while time::timeout(due / 4, changes.changed()).await.is_err() {
                broken_off += 1;
                assert!(broken_off < 10);
            }
            assert_eq!(begun.elapsed(), due);
        }
    }
}
