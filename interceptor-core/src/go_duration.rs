//! Durations as Go's `time.ParseDuration` reads and `Duration.String` writes them: `300ms`, `1.5h`, `1m30s`.
//! Read by the manifests' conversion and by the environment parser, so that both accept what the original accepts.

use std::{fmt::Write as _, time::Duration};

/// Go keeps durations in signed 64-bit nanoseconds: some 292 years.
const MAX_NANOS: u128 = i64::MAX as u128;

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationError {
    /// It does not follow Go's syntax.
    Syntax,
    /// It is longer than Go can tell.
    TooLong,
    /// It is below zero, which no setting of ours can be.
    Negative,
}

/// Reads a Go duration of zero or more.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(DurationError::Syntax);
    }
    let mut nanos = 0_u128;
    while !rest.is_empty() {
        let (element, tail) = element(rest)?;
        nanos += element;
        if nanos > MAX_NANOS {
            return Err(DurationError::TooLong);
        }
        rest = tail;
    }
    if negative && nanos > 0 {
        return Err(DurationError::Negative);
    }
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_above| DurationError::TooLong)
}

/// Writes a duration as Go does: `1m30s`, `1.5ms`, `0s`.
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let mut out = String::new();
    match nanos {
        0 => out.push_str("0s"),
        1..1_000 => write_fraction(&mut out, nanos, 1, "ns"),
        1_000..1_000_000 => write_fraction(&mut out, nanos, 1_000, "µs"),
        1_000_000..1_000_000_000 => write_fraction(&mut out, nanos, 1_000_000, "ms"),
        _ => {
            let (hours, minutes) = (nanos / 3_600_000_000_000, nanos / 60_000_000_000 % 60);
            if hours > 0 {
                let _ = write!(out, "{hours}h");
            }
            if hours > 0 || minutes > 0 {
                let _ = write!(out, "{minutes}m");
            }
            write_fraction(&mut out, nanos % 60_000_000_000, 1_000_000_000, "s");
        }
    }
    out
}

/// One number with its unit, in nanoseconds, and what follows it.
fn element(text: &str) -> Result<(u128, &str), DurationError> {
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(DurationError::Syntax)?;
    let (number, rest) = text.split_at(number_end);
    let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    let (unit, tail) = rest.split_at(unit_end);
    let unit: u128 = match unit {
        "ns" => 1,
        // U+00B5 and U+03BC are both in use for micro.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(DurationError::Syntax),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(DurationError::Syntax);
    }
    let nanos = digits(whole)?.saturating_mul(unit).saturating_add(scaled(fraction, unit));
    Ok((nanos, tail))
}

/// A whole number; what cannot fit a duration in any unit is too long already.
fn digits(text: &str) -> Result<u128, DurationError> {
    let significant = text.trim_start_matches('0');
    match significant.len() {
        0 => Ok(0),
        1..=19 => significant.parse().map_err(|_not_a_number| DurationError::Syntax),
        _ => Err(DurationError::TooLong),
    }
}

/// A decimal fraction of a unit, cut off below a nanosecond. Digits beyond the 18th are below that for every unit.
fn scaled(fraction: &str, unit: u128) -> u128 {
    let (mut nanos, mut divisor) = (0, 1);
    for digit in fraction.bytes().take(18) {
        nanos = nanos * 10 + u128::from(digit - b'0');
        divisor *= 10;
    }
    nanos * unit / divisor
}

fn write_fraction(out: &mut String, value: u128, unit: u128, name: &str) {
    let _ = write!(out, "{}", value / unit);
    let rest = value % unit;
    if rest > 0 {
        let width = unit.ilog10() as usize;
        let decimals = format!("{rest:0width$}");
        out.push('.');
        out.push_str(decimals.trim_end_matches('0'));
    }
    out.push_str(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_reads_is_read_alike() {
        for (text, nanos) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("5s", 5_000_000_000),
            ("+5.0s", 5_000_000_000),
            ("1m30s", 90_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("300ms", 300_000_000),
            ("12\u{b5}s34\u{3bc}s1us", 47_000),
            ("3h30m", 12_600_000_000_000),
            ("0.3333333333333333333h", 1_200_000_000_000 - 1),
            ("1s1s", 2_000_000_000),
            ("9223372036854775807ns", 9_223_372_036_854_775_807),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text:?}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in ["", "-", "+", "3", "s", ".", ".s", "+.s", "1..5s", "1 s", " 1s", "1d", "1S", "1s ", "--1s", "1e3s"]
        {
            assert_eq!(parse(text), Err(DurationError::Syntax), "{text:?}");
        }
        for text in ["9223372036854775808ns", "2562048h", "99999999999999999999999h"] {
            assert_eq!(parse(text), Err(DurationError::TooLong), "{text:?}");
        }
        assert_eq!(parse("-1ns"), Err(DurationError::Negative));
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (480_000_000_001, "8m0.000000001s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(format(Duration::from_nanos(nanos)), text);
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)));
        }
    }
}
