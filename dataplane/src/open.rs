//! Chooses the level: tries the kernel if it may, and does without it, with one log line that says why, if it cannot.

use std::error::Error;

use crate::{Config, Dataplane, Kernel, Level, Mode, kernel::Unavailable, none::Without};

/// The level that was asked for is required and cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("data plane level {asked} is required: {why}")]
pub struct OpenError {
    asked: Mode,
    why: String,
}

// === impl OpenError ===

impl OpenError {
    pub(crate) fn new(asked: Mode, unavailable: &Unavailable) -> Self {
        Self { asked, why: words(unavailable) }
    }
}

/// Opens the highest level that can be had, and says why it is no higher. Fails only if the level is required.
pub fn open(config: Config) -> Result<(Box<dyn Dataplane>, Level, String), OpenError> {
    let Config { mode, required, cgroup } = config;
    if mode == Mode::None {
        return Ok(without("switched off"));
    }
    let unavailable = match Kernel::start(cgroup.as_deref(), None) {
        Ok(kernel) => return Ok(with(kernel)),
        Err(unavailable) => unavailable,
    };
    if required {
        return Err(OpenError::new(mode, &unavailable));
    }
    let why = words(&unavailable);
    // Nobody who has not asked for the kernel needs to be warned that it is out of reach; a failure within reach is news.
    if mode == Mode::Auto && matches!(unavailable, Unavailable::Probe(_) | Unavailable::Cgroup(_)) {
        tracing::info!(dataplane = %Level::None, why, "data plane without the kernel");
    } else {
        tracing::warn!(dataplane = %Level::None, why, "data plane without the kernel");
    }
    Ok(without(&why))
}

fn without(why: &str) -> (Box<dyn Dataplane>, Level, String) {
    (Box::new(Without::new(why.to_owned())), Level::None, why.to_owned())
}

fn with(kernel: Kernel) -> (Box<dyn Dataplane>, Level, String) {
    let (level, why) = (kernel.level(), kernel.reason().to_owned());
    tracing::info!(dataplane = %level, why, "data plane in the kernel");
    (Box::new(kernel), level, why)
}

/// An error with its causes in one line. Of the verifier's log, which may be long, the end: that is where it says what it
/// did not like.
pub(crate) fn words(error: &dyn Error) -> String {
    const MOST: usize = 600;
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let text = lines.collect::<Vec<_>>().join("; ");
    let length = text.chars().count();
    if length <= MOST {
        return text;
    }
    let (head, tail) = (text.chars().take(MOST / 4), text.chars().skip(length - MOST * 3 / 4));
    head.chain(" … ".chars()).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Chain {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    fn chain(texts: &[&'static str]) -> Chain {
        let (first, rest) = texts.split_first().expect("a chain has a first error");
        Chain { text: first, source: (!rest.is_empty()).then(|| Box::new(chain(rest))) }
    }

    #[test]
    fn causes_are_told_once_and_in_one_line() {
        assert_eq!(words(&chain(&["load", "call: denied", "denied"])), "load: call: denied");
        assert_eq!(words(&chain(&["one\n  two\n\nthree\n"])), "one; two; three");
    }

    #[test]
    fn a_long_log_keeps_its_end() {
        let log: &'static str = format!("begin {} R1 invalid mem access", "x".repeat(5000)).leak();
        let told = words(&chain(&[log]));
        assert!(told.starts_with("begin"));
        assert!(told.ends_with("R1 invalid mem access"));
        assert!(told.chars().count() < 700);
    }

    #[test]
    fn level_none_is_what_one_gets_when_it_is_asked_for() {
        let (dataplane, level, why) = open(Config { mode: Mode::None, required: true, cgroup: None }).unwrap();
        assert_eq!((level, dataplane.level(), why.as_str()), (Level::None, Level::None, "switched off"));
    }
}
