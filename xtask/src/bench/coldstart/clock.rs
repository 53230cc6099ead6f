//! Moments of the machine's clock, from wherever they are written: curl's trace, container logs, this process. A difference is
//! right as long as it is less than half a day.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: f64 = 86_400.0;

/// Seconds since midnight, UTC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moment(f64);

impl Moment {
    /// This one.
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since.as_secs_f64() % DAY)
    }

    /// Reads `12:34:56.789012 …`.
    pub(super) fn parse_clock(line: &str) -> Option<Self> {
        let mut parts = line.split_whitespace().next()?.trim_end_matches('Z').split(':');
        let mut next = || parts.next()?.parse::<f64>().ok();
        let (hours, minutes, seconds) = (next()?, next()?, next()?);
        Some(Self(hours.mul_add(3600.0, minutes.mul_add(60.0, seconds))))
    }

    /// Reads `2026-01-02T12:34:56.789012345Z …`.
    pub(super) fn parse_date(line: &str) -> Option<Self> {
        Self::parse_clock(line.split_once('T')?.1)
    }

    /// Seconds since another moment, before or after it.
    pub(super) fn since(self, earlier: Self) -> f64 {
        let difference = self.0 - earlier.0;
        difference - DAY * (difference / DAY).round()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_curl_and_of_logs_are_on_one_clock() {
        let sent = Moment::parse_clock("23:59:59.900000 => Send header, 80 bytes (0x50)").unwrap();
        let listening = Moment::parse_date("2026-01-02T00:00:00.150000000Z INFO listening").unwrap();
        assert!((listening.since(sent) - 0.25).abs() < 1e-6);
        assert!((sent.since(listening) + 0.25).abs() < 1e-6);
        assert_eq!(Moment::parse_clock("== Info: Trying"), None);
    }
}
