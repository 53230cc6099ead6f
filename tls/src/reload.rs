//! Looks whether files have changed and has them read again. Files are asked after rather than watched: a mounted Secret is
//! swapped by links, and this sees any way there is of changing a file.

use std::{convert::Infallible, fmt::Display, time::Duration};

use tokio::time::{self, MissedTickBehavior};

use crate::files::{FileError, Fingerprint};

/// How often files are looked at; a change takes this long at most.
pub const PERIOD: Duration = Duration::from_secs(1);

/// What became of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// What is in the files is in use.
    Done,
    /// What was in use stays in use.
    Failed,
}

/// Calls `load` whenever what `fingerprint` tells has changed, and `told` with the result. What could not be loaded is
/// tried again when the files change again.
///
/// `loaded` is the state that is in use already.
pub(crate) async fn watch<E: Display>(
    loaded: Option<Fingerprint>,
    fingerprint: impl Fn() -> Result<Fingerprint, FileError>,
    load: impl Fn() -> Result<(), E>,
    told: impl Fn(Reload),
) -> Infallible {
    let mut last = loaded.ok_or_else(String::new);
    let mut ticks = time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = fingerprint().map_err(|error| error.to_string());
        if now == last {
            continue;
        }
        let result = match &now {
            Ok(_) => load().map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        last = now;
        match result {
            Ok(()) => {
                tracing::info!("certificates were read again");
                told(Reload::Done);
            }
            Err(error) => {
                tracing::warn!(error, "certificates cannot be read again: those in use stay");
                told(Reload::Failed);
            }
        }
    }
}
