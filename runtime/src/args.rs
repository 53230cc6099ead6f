//! Command-line pieces that all processes share: the add-on's `--zap-…` flags and `--kubeconfig`.
//! Each process flattens them into its own clap parser.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::env;

/// How the process logs. The names are those of the add-on's manifests.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Development mode: level debug and console encoding, unless said otherwise; `false` is JSON.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub zap_devel: Option<bool>,

    /// How a log line is written.
    #[arg(long, value_name = "ENCODING")]
    pub zap_encoder: Option<Encoder>,

    /// Which lines are written: error, warn, info, debug, trace, or a number of zap's (1 is debug, 2 and above trace).
    #[arg(long, value_name = "LEVEL")]
    pub zap_log_level: Option<Level>,

    /// Accepted for the sake of the add-on's manifests; errors carry their causes instead of stack traces.
    #[arg(long, value_name = "LEVEL", ignore_case = true, value_parser = ["info", "warn", "error", "panic"])]
    pub zap_stacktrace_level: Option<String>,

    /// How a line's time is written.
    #[arg(long, value_name = "ENCODING")]
    pub zap_time_encoding: Option<TimeEncoding>,
}

/// Where the Kubernetes API is found.
#[derive(Args, Clone, Debug, Default)]
pub struct KubeArgs {
    /// Path of a kubeconfig file; without it that of `KUBECONFIG`, the pod's service account, or `~/.kube/config`.
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Encoder {
    /// For people.
    #[default]
    Console,
    /// One JSON object a line.
    Json,
}

/// How a line's time is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TimeEncoding {
    /// RFC 3339, UTC.
    #[default]
    #[value(alias = "rfc3339nano", alias = "iso8601")]
    Rfc3339,
    /// Seconds since 1970, with a fraction.
    Epoch,
    /// Milliseconds since 1970.
    Millis,
    /// Nanoseconds since 1970.
    Nano,
}

/// The least severe level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(pub LevelFilter);

/// Reads a flag that is on or off, in all spellings of Go's flag package.
pub fn go_bool(text: &str) -> Result<bool, String> {
    env::bool_of(text).ok_or_else(|| format!("expected {}", env::BOOL))
}

/// Makes `-zap-log-level=info`, which Go's flag package reads too, into `--zap-log-level=info`.
///
/// Arguments after `--` and those of a single letter stay as they are.
pub fn with_double_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut all = args.into_iter();
    let mut out = Vec::new();
    for arg in all.by_ref() {
        let is_end = arg == "--";
        out.push(if is_single_dash_word(&arg) { prefixed(&arg) } else { arg });
        if is_end {
            break;
        }
    }
    out.extend(all);
    out
}

fn is_single_dash_word(arg: &OsStr) -> bool {
    matches!(arg.as_encoded_bytes(), [b'-', first, second, ..] if first.is_ascii_alphabetic() && second.is_ascii_alphabetic())
}

fn prefixed(arg: &OsStr) -> OsString {
    let mut long = OsString::from("-");
    long.push(arg);
    long
}

// === impl LogArgs ===

impl LogArgs {
    /// How a line is written: as a flag says, or else as zap's modes have it.
    pub fn encoder(&self) -> Encoder {
        let by_mode = if self.zap_devel == Some(false) { Encoder::Json } else { Encoder::Console };
        self.zap_encoder.unwrap_or(by_mode)
    }
}

// === impl Level ===

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let filter = match text.to_ascii_lowercase().as_str() {
            // zap's panic, dpanic and fatal are worse than error, which is the worst there is here.
            "error" | "panic" | "dpanic" | "fatal" => LevelFilter::ERROR,
            "warn" => LevelFilter::WARN,
            "info" | "0" => LevelFilter::INFO,
            "debug" | "1" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            number if number.parse::<u8>().is_ok() => LevelFilter::TRACE,
            _ => return Err("expected error, warn, info, debug, trace or a number from 0 to 255".to_owned()),
        };
        Ok(Self(filter))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        log: LogArgs,
        #[command(flatten)]
        kube: KubeArgs,
    }

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        let args = std::iter::once("test").chain(args.iter().copied()).map(OsString::from);
        Cli::try_parse_from(with_double_dashes(args))
    }

    #[test]
    fn the_flags_of_the_original_manifests_are_accepted() {
        let cli = parse(&["--zap-log-level=info", "--zap-encoder=console", "--zap-time-encoding=rfc3339"]).unwrap();
        assert_eq!(cli.log.zap_log_level, Some(Level(LevelFilter::INFO)));
        assert_eq!(cli.log.zap_encoder, Some(Encoder::Console));
        assert_eq!(cli.log.zap_time_encoding, Some(TimeEncoding::Rfc3339));
    }

    #[test]
    fn one_dash_and_separate_values_are_accepted_as_in_go() {
        let cli = parse(&["-zap-log-level", "debug", "-kubeconfig=/etc/kube", "-zap-devel"]).unwrap();
        assert_eq!(cli.log.zap_log_level, Some(Level(LevelFilter::DEBUG)));
        assert_eq!(cli.kube.kubeconfig, Some("/etc/kube".into()));
        assert_eq!(cli.log.zap_devel, Some(true));
        assert_eq!(parse(&["--zap-devel=false"]).unwrap().log.zap_devel, Some(false));
        assert_eq!(parse(&["--zap-devel=T", "--zap-stacktrace-level=Panic"]).unwrap().log.zap_devel, Some(true));
        for wrong in ["--zap-devel=yes", "--zap-stacktrace-level=never"] {
            assert!(parse(&[wrong]).unwrap_err().to_string().contains(&wrong[..wrong.find('=').unwrap()]), "{wrong}");
        }
    }

    #[test]
    fn lines_are_json_outside_of_development_unless_said_otherwise() {
        assert_eq!(parse(&[]).unwrap().log.encoder(), Encoder::Console);
        assert_eq!(parse(&["--zap-devel=false"]).unwrap().log.encoder(), Encoder::Json);
        assert_eq!(parse(&["--zap-devel=false", "--zap-encoder=console"]).unwrap().log.encoder(), Encoder::Console);
        assert_eq!(parse(&["--zap-encoder=json"]).unwrap().log.encoder(), Encoder::Json);
    }

    #[test]
    fn numbers_are_levels_of_verbosity() {
        for (text, level) in [("1", LevelFilter::DEBUG), ("2", LevelFilter::TRACE), ("10", LevelFilter::TRACE)] {
            assert_eq!(text.parse(), Ok(Level(level)));
        }
    }

    #[test]
    fn an_unknown_level_is_refused_with_the_flag_and_what_was_expected() {
        let error = parse(&["--zap-log-level=loud"]).unwrap_err().to_string();
        assert!(
            error.contains("'loud'") && error.contains("--zap-log-level") && error.contains("expected error, warn")
        );
    }
}
