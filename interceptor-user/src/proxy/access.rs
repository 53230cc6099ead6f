//! The access log: an event for each request when it has ended. Its line is that of the KEDA HTTP Add-on, Apache's
//! combined log format with the client's port and without the query; where the log is JSON each part is a field, too.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http::Method;
use interceptor_core::ObjectKey;

use super::message::Ask;
use crate::config::AccessLog;

/// What is told of a request, as it came.
#[derive(Debug)]
pub(crate) struct Line {
    log: AccessLog,
    at: SystemTime,
    method: Method,
    path: String,
    version: http::Version,
    referer: Option<String>,
    user_agent: Option<String>,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) client: SocketAddr,
    pub(crate) status: u16,
    /// Of the response's body.
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) route: Option<&'a ObjectKey>,
}

/// Text of a client's, in which nothing can end the quotes around it or the line.
struct Quoted<'a>(&'a str);

// === impl Line ===

impl Line {
    /// `None` when requests are not logged.
    pub(crate) fn of(ask: &Ask, log: AccessLog) -> Option<Box<Self>> {
        if log == AccessLog::Off {
            return None;
        }
        let path =
            ask.target.as_ref().map(|target| percent_encoding::percent_decode(target.path()).decode_utf8_lossy());
        let field = |name| ask.fields.find(name).map(|value| String::from_utf8_lossy(value).into_owned());
        Some(Box::new(Self {
            log,
            at: SystemTime::now(),
            method: ask.method.clone(),
            path: path.unwrap_or_default().into_owned(),
            version: ask.version,
            referer: field("referer"),
            user_agent: field("user-agent"),
        }))
    }

    /// Writes it.
    pub(crate) fn write(&self, end: End<'_>) {
        let seconds = end.elapsed.as_secs_f64();
        let route = end.route.map(tracing::field::display);
        if self.log == AccessLog::Lines {
            tracing::info!(target: "access", seconds, route, "{}", self.combined(end));
            return;
        }
        let Self { log: _, at: _, method, path, version, referer, user_agent } = self;
        let End { client, status, bytes, .. } = end;
        tracing::info!(target: "access", %client, %method, path, ?version, status, bytes, referer, user_agent, seconds, route, "{}", self.combined(end));
    }

    fn combined(&self, end: End<'_>) -> String {
        let Self { log: _, at, method, path, version, referer, user_agent } = self;
        let End { client, status, bytes, .. } = end;
        let at = jiff::Timestamp::try_from(*at).unwrap_or_default().strftime("%d/%b/%Y:%H:%M:%S +0000");
        let text = |text: &Option<String>| Quoted(text.as_deref().unwrap_or_default()).to_string();
        format!(
            "{client} - - [{at}] \"{method} {path} {version:?}\" {status} {bytes} \"{}\" \"{}\"",
            text(referer),
            text(user_agent),
            path = Quoted(path),
        )
    }
}

// === impl Quoted ===

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '"' | '\\' => write!(f, "\\{char}")?,
                char if char.is_control() => write!(f, "{}", char.escape_default())?,
                char => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_that_of_the_add_on() {
        let line = Line {
            log: AccessLog::Lines,
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            method: Method::GET,
            path: "/a b".to_owned(),
            version: http::Version::HTTP_11,
            referer: None,
            user_agent: Some("curl/8 \"x\"\n".to_owned()),
        };
        let client = SocketAddr::from(([10, 0, 0, 9], 4711));
        let end = End { client, status: 200, bytes: 12, elapsed: Duration::from_millis(3), route: None };
        let expected =
            r#"10.0.0.9:4711 - - [14/Nov/2023:22:13:20 +0000] "GET /a b HTTP/1.1" 200 12 "" "curl/8 \"x\"\n""#;
        assert_eq!(line.combined(end), expected);
    }
}
