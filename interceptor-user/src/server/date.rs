//! The `Date` field, made once a second for each worker (RFC 9110 §6.6.1).

use std::{
    cell::RefCell,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::HeaderValue;
use tokio::time::Instant;

const LENGTH: usize = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n".len();

struct Cached {
    line: [u8; LENGTH],
    /// What stands in it.
    value: HeaderValue,
    /// Until when it is right.
    until: Option<Instant>,
}

thread_local! {
    static CACHED: RefCell<Cached> = const { RefCell::new(Cached { line: [b' '; LENGTH], value: HeaderValue::from_static(""), until: None }) };
}

/// Writes the field with the present time.
pub(crate) fn write(output: &mut Vec<u8>) {
    CACHED.with_borrow_mut(|cached| output.extend_from_slice(&cached.fresh().line));
}

/// The field's value with the present time.
pub(crate) fn value() -> HeaderValue {
    CACHED.with_borrow_mut(|cached| cached.fresh().value.clone())
}

// === impl Cached ===

impl Cached {
    fn fresh(&mut self) -> &Self {
        let now = Instant::now();
        if self.until.is_none_or(|until| now >= until) {
            self.renew(now);
        }
        self
    }

    fn renew(&mut self, now: Instant) {
        let clock = SystemTime::now();
        let date = httpdate::fmt_http_date(clock);
        let line = format!("Date: {date}\r\n");
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(date)) {
            self.value = value;
        }
        if let Ok(line) = line.into_bytes().try_into() {
            self.line = line;
        }
        let since = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let gone = Duration::from_nanos(u64::from(since.subsec_nanos()));
        self.until = Some(now + Duration::from_secs(1).saturating_sub(gone));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_a_whole_line() {
        let mut output = Vec::new();
        write(&mut output);
        write(&mut output);
        let text = String::from_utf8(output).unwrap();
        assert!(text.starts_with("Date: ") && text.ends_with(" GMT\r\n"), "{text}");
        assert_eq!(text.len(), 2 * LENGTH);
        assert!(text.contains(value().to_str().unwrap()), "{text}");
    }
}
