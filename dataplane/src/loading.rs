//! What every level does around the loading of its object.

use std::{panic::resume_unwind, path::Path, thread, time::Duration};

use aya::EbpfLoader;
use nix::time::{ClockId, clock_gettime};

use crate::syscall;

/// Runs the loader. It begins by reading all of the kernel's type information, which no program of ours needs; it does so in
/// a thread of its own, whose memory is free as a whole when it ends.
pub(crate) fn read_object<T: Send>(load: impl FnOnce() -> T + Send) -> T {
    let loaded = thread::scope(|scope| scope.spawn(load).join().unwrap_or_else(|panic| resume_unwind(panic)));
    give_back_later();
    loaded
}

/// What creates an object's maps, or takes those of these that are pinned in a folder, and prepares its programs.
pub(crate) fn loader(shared: impl Iterator<Item = &'static str>, pins: Option<&Path>) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    if let Some(pins) = pins {
        for map in shared {
            loader.map_pin_path(map, pins.join(map));
        }
    }
    loader
}

/// Sees to it that those twenty megabytes do not stay with an idle process. glibc gives freed memory back when it is told
/// to, mimalloc after one second, but then only when something happens, such as the end of a thread.
fn give_back_later() {
    const AFTER_THE_DELAY: Duration = Duration::from_millis(1500);
    let wait = || {
        thread::park_timeout(AFTER_THE_DELAY);
        syscall::return_freed_memory();
    };
    // Without a thread the memory stays, which costs no more than that.
    _ = thread::Builder::new().name("give-back".to_owned()).spawn(wait);
}

/// The clock of the programs' time stamps, `CLOCK_MONOTONIC`.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}
