//! The process's log: tracing events on standard error, as text or JSON. Set up once at start; the level can be
//! changed while the process runs.

use std::{fmt, io, time::SystemTime};

use thiserror::Error;
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::{
        MakeWriter,
        format::{JsonFields, Writer},
        time::{FormatTime, SystemTime as Rfc3339},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use self::json::Json;
use crate::args::{Encoder, Level, LogArgs, TimeEncoding};

mod json;

/// Changes the filter of a log that runs. Clones share it.
#[derive(Clone, Debug)]
pub struct Handle {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// The log could not be set up or changed.
#[derive(Debug, Error)]
pub enum LogError {
    /// Someone has set up a log in this process before.
    #[error("the process has a log already")]
    Twice,
    /// The text is no list of directives.
    #[error("log filter {value:?} is not valid, expected a level or target=level pairs: {message}")]
    Filter {
        /// The text.
        value: String,
        /// What is wrong with it.
        message: String,
    },
    /// The log has ended.
    #[error("the process's log has ended")]
    Gone,
}

/// Libraries that say at debug what a reader of our log rarely wants.
const QUIET: [&str; 8] = [
    "h2=info",
    "hyper=info",
    "hyper_util=info",
    "rustls=info",
    "tower=info",
    // Whether the Kubernetes API answers is told once, by `watch`; these tell it at every attempt.
    "kube_client=error",
    "kube_runtime=error",
    "tower_http=error",
];

/// Sets up the process's log on standard error. The filter of `ROUSE_LOG`, if there is one, is passed as `directives`
/// and wins over the level of the flags.
pub fn init(args: &LogArgs, directives: Option<&str>) -> Result<Handle, LogError> {
    let devel = args.zap_devel.unwrap_or_default();
    let default = if devel { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let level = args.zap_log_level.map_or(default, |Level(level)| level);
    let filter = match directives {
        Some(text) => parse(text)?,
        None => filter(level),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let encoder = args.encoder();
    let time = args.zap_time_encoding.unwrap_or_default();
    let registry = Registry::default().with(filter);
    match encoder {
        Encoder::Console => registry.with(console(time, io::stderr)).try_init(),
        Encoder::Json => registry.with(json(time, io::stderr)).try_init(),
    }
    .map_err(|_already| LogError::Twice)?;
    Ok(Handle { filter: handle })
}

fn console<S, W>(time: TimeEncoding, writer: W) -> impl tracing_subscriber::Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    let ansi = io::IsTerminal::is_terminal(&io::stderr());
    tracing_subscriber::fmt::layer().with_ansi(ansi).with_timer(Clock(time)).with_writer(writer)
}

fn json<S, W>(time: TimeEncoding, writer: W) -> impl tracing_subscriber::Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .fmt_fields(JsonFields::new())
        .event_format(Json(time))
        .with_writer(writer)
}

fn filter(level: LevelFilter) -> EnvFilter {
    let mut filter = EnvFilter::default().add_directive(level.into());
    for directive in QUIET {
        filter = filter.add_directive(directive.parse().expect("the directives above are valid"));
    }
    filter
}

fn parse(text: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| LogError::Filter { value: text.to_owned(), message: error.to_string() })
}

/// Writes the time of a line.
#[derive(Clone, Copy, Debug)]
struct Clock(TimeEncoding);

// === impl Handle ===

impl Handle {
    /// From now on, writes what `directives` say: a level, or pairs such as `info,scaler=debug`.
    pub fn set(&self, directives: &str) -> Result<(), LogError> {
        self.filter.reload(parse(directives)?).map_err(|_gone| LogError::Gone)
    }

    /// What is written now, in the same form.
    pub fn current(&self) -> Result<String, LogError> {
        self.filter.with_current(EnvFilter::to_string).map_err(|_gone| LogError::Gone)
    }
}

// === impl Clock ===

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.format_time(&mut Writer::new(f))
    }
}

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let since_epoch = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match self.0 {
            TimeEncoding::Rfc3339 => Rfc3339.format_time(w),
            TimeEncoding::Epoch => write!(w, "{:.6}", since_epoch().as_secs_f64()),
            TimeEncoding::Millis => write!(w, "{}", since_epoch().as_millis()),
            TimeEncoding::Nano => write!(w, "{}", since_epoch().as_nanos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn writer(&self) -> impl Fn() -> Self + use<> {
            let buffer = self.clone();
            move || buffer.clone()
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    #[test]
    fn a_json_line_has_the_keys_of_zap_and_the_fields_beside_them() {
        let buffer = Buffer::default();
        let subscriber = Registry::default().with(json(TimeEncoding::Millis, buffer.writer()));
        tracing::subscriber::with_default(subscriber, || {
            let _in_task = tracing::info_span!("run", task = "discover").entered();
            tracing::warn!(route = "ns/a", "duplicate \"route\"");
        });
        let line: serde_json::Value = serde_json::from_str(&buffer.text()).unwrap();
        assert!(buffer.text().starts_with("{\"level\":\"warn\",\"ts\":"), "{}", buffer.text());
        assert_eq!((&line["logger"], &line["msg"]), (&module_path!().into(), &"duplicate \"route\"".into()));
        assert_eq!(line["route"], "ns/a");
        assert_eq!(line["span"], serde_json::json!({ "name": "run", "task": "discover" }));
        assert!(line["ts"].as_f64().unwrap() > 1.6e12);
    }

    #[test]
    fn the_level_can_be_changed_while_the_process_runs() {
        let buffer = Buffer::default();
        let (layer, handle) = reload::Layer::new(filter(LevelFilter::INFO));
        let handle = Handle { filter: handle };
        let subscriber = Registry::default().with(layer).with(console(TimeEncoding::Rfc3339, buffer.writer()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("one");
            handle.set("debug").unwrap();
            assert_eq!(handle.current().unwrap(), "debug");
            tracing::debug!("two");
            assert!(matches!(handle.set("a=b=c"), Err(LogError::Filter { .. })));
        });
        assert!(!buffer.text().contains("one") && buffer.text().contains("two"));
    }
}
