//! Moments of the machine's clock, from wherever they are written: container logs, this process, another of ours. A difference is
//! right as long as it is less than half a day.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: f64 = 86_400.0;

/// Seconds since midnight, UTC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moment(f64);

impl Moment {
    /// This one.
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since.as_secs_f64() % DAY)
    }

    /// As seconds, for [`Moment::parse`].
    pub(crate) fn seconds(self) -> f64 {
        self.0
    }

    /// Reads [`Moment::seconds`] again.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    /// Reads `2026-01-02T12:34:56.789012345Z …`.
    pub(crate) fn parse_date(line: &str) -> Option<Self> {
        let (_, clock) = line.split_whitespace().next()?.split_once('T')?;
        let mut parts = clock.trim_end_matches('Z').split(':');
        let mut next = || parts.next()?.parse::<f64>().ok();
        let (hours, minutes, seconds) = (next()?, next()?, next()?);
        Some(Self(hours.mul_add(3600.0, minutes.mul_add(60.0, seconds))))
    }

    /// Seconds since another moment, before or after it.
    pub(crate) fn since(self, earlier: Self) -> f64 {
        let difference = self.0 - earlier.0;
        difference - DAY * (difference / DAY).round()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_clients_and_of_logs_are_on_one_clock() {
        let sent = Moment::parse("86399.9").unwrap();
        let listening = Moment::parse_date("2026-01-02T00:00:00.150000000Z INFO listening").unwrap();
        assert!((listening.since(sent) - 0.25).abs() < 1e-6);
        assert!((sent.since(listening) + 0.25).abs() < 1e-6);
        assert_eq!(Moment::parse_date("no date: 12:34:56"), None);
    }
}
