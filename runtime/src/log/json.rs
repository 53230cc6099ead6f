//! A log line as one JSON object, with the keys that the KEDA HTTP Add-on's logger (zap) gives it: `level`, `ts`, `logger`,
//! `msg`, and then the event's own fields.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    registry::LookupSpan,
};

use super::Clock;
use crate::args::TimeEncoding;

/// Writes events so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json(pub(super) TimeEncoding);

/// What an event says.
#[derive(Debug, Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

// === impl Json ===

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut w: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let metadata = event.metadata();
        write!(w, "{{\"level\":\"{}\",\"ts\":{}", level(*metadata.level()), time(self.0))?;
        pair(&mut w, "logger", &metadata.target().into())?;
        pair(&mut w, "msg", &said.message.into())?;
        for (name, value) in &said.fields {
            pair(&mut w, name, value)?;
        }
        if let Some(span) = context.lookup_current() {
            let extensions = span.extensions();
            let text = extensions.get::<FormattedFields<N>>().map(|fields| fields.as_str()).unwrap_or_default();
            let mut fields = serde_json::from_str::<Value>(text).unwrap_or_else(|_none| json!({}));
            fields["name"] = span.name().into();
            pair(&mut w, "span", &fields)?;
        }
        writeln!(w, "}}")
    }
}

fn pair(w: &mut Writer<'_>, name: &str, value: &Value) -> fmt::Result {
    write!(w, ",{}:{value}", Value::from(name))
}

/// zap's words; it has none below debug.
fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

/// A text for people, a number for all others.
fn time(encoding: TimeEncoding) -> Value {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    match encoding {
        TimeEncoding::Rfc3339 => Clock(encoding).to_string().into(),
        TimeEncoding::Epoch => since.as_secs_f64().into(),
        TimeEncoding::Millis => (since.as_secs_f64() * 1e3).into(),
        TimeEncoding::Nano => nanoseconds(since).into(),
    }
}

fn nanoseconds(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Said ===

impl Said {
    fn say(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.say(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.say(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.say(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.say(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.say(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.say(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.say(field, value.to_string().into());
    }
}
