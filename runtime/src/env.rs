//! Typed reading of environment variables, with the rules of the KEDA HTTP Add-on: Go durations, Go booleans, an empty
//! value counts as unset. Read once, by each process's argument parser; an error names variable, value and expectation.

use std::{collections::HashMap, ffi::OsString, num::NonZeroUsize, time::Duration};

use interceptor_core::go_duration;
use thiserror::Error;

/// The environment, as it was when it was read.
#[derive(Clone, Debug, Default)]
pub struct Env(HashMap<OsString, OsString>);

/// A variable that keeps the process from starting.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EnvError {
    /// It must be set, and is not or is empty.
    #[error("environment variable {variable} is required: set it to {expected}")]
    Missing {
        /// Its name.
        variable: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// It is set to something that cannot be used.
    #[error("environment variable {variable} is {value:?}, expected {expected}")]
    Invalid {
        /// Its name.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: String,
    },
}

const DURATION: &str = "a duration of zero or more such as 500ms, 30s or 1m30s";
/// What [`bool_of`] reads.
pub(crate) const BOOL: &str = "one of 1, t, T, TRUE, true, True, 0, f, F, FALSE, false, False";
const PORT: &str = "a port number from 0 to 65535";

/// A Go boolean.
pub(crate) fn bool_of(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Variables that earlier releases of the add-on had, and manifests may still set.
const REMOVED: [&str; 9] = [
    "KEDA_HTTP_FORCE_HTTP2",
    "KEDA_HTTP_TLS_HANDSHAKE_TIMEOUT",
    "KEDA_HTTP_EXPECT_CONTINUE_TIMEOUT",
    "KEDA_HTTP_KEEP_ALIVE",
    "KEDA_HTTP_IDLE_CONN_TIMEOUT",
    "KEDA_HTTP_DIAL_RETRY_TIMEOUT",
    "KEDA_HTTP_CURRENT_NAMESPACE",
    "KEDA_HTTP_ENDPOINTS_CACHE_POLLING_INTERVAL_MS",
    "KEDA_HTTP_SCALER_DEPLOYMENT_INFORMER_RSYNC_PERIOD",
];

/// Where the add-on serves profiles of Go.
const PROFILES: &str = "PROFILING_BIND_ADDRESS";

// === impl Env ===

impl Env {
    /// The process's own environment.
    pub fn from_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// Just these variables.
    pub fn from_pairs<K: Into<OsString>, V: Into<OsString>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// Says which variables are set that change nothing: those that the add-on has had, and its profiles of Go.
    pub fn warn_of_unused(&self) {
        for variable in self.unused() {
            if variable == PROFILES {
                tracing::warn!(variable, "there is no Go profile to serve");
            } else {
                tracing::warn!(variable, "environment variable of an earlier release is ignored");
            }
        }
    }

    fn unused(&self) -> impl Iterator<Item = &'static str> {
        let is_set =
            |variable: &&str| self.0.get(std::ffi::OsStr::new(variable)).is_some_and(|value| !value.is_empty());
        REMOVED.into_iter().chain([PROFILES]).filter(is_set)
    }

    /// A text, if it is set.
    pub fn optional_string(&self, variable: &'static str) -> Result<Option<String>, EnvError> {
        self.parsed(variable, "valid UTF-8", |text| Some(text.to_owned()))
    }

    /// A text.
    pub fn string(&self, variable: &'static str, default: &str) -> Result<String, EnvError> {
        Ok(self.optional_string(variable)?.unwrap_or_else(|| default.to_owned()))
    }

    /// A text that must be set.
    pub fn required_string(&self, variable: &'static str, expected: &'static str) -> Result<String, EnvError> {
        self.optional_string(variable)?.ok_or(EnvError::Missing { variable, expected })
    }

    /// A port, if it is set; 0 asks the system for a free one.
    pub fn optional_port(&self, variable: &'static str) -> Result<Option<u16>, EnvError> {
        self.parsed(variable, PORT, |text| text.parse().ok())
    }

    /// A port; 0 asks the system for a free one.
    pub fn port(&self, variable: &'static str, default: u16) -> Result<u16, EnvError> {
        Ok(self.optional_port(variable)?.unwrap_or(default))
    }

    /// A port that must be set; 0 asks the system for a free one.
    pub fn required_port(&self, variable: &'static str) -> Result<u16, EnvError> {
        self.optional_port(variable)?.ok_or(EnvError::Missing { variable, expected: PORT })
    }

    /// A Go duration, if it is set.
    pub fn optional_duration(&self, variable: &'static str) -> Result<Option<Duration>, EnvError> {
        self.parsed(variable, DURATION, |text| go_duration::parse(text).ok())
    }

    /// A Go duration.
    pub fn duration(&self, variable: &'static str, default: Duration) -> Result<Duration, EnvError> {
        Ok(self.optional_duration(variable)?.unwrap_or(default))
    }

    /// A Go duration whose deprecated name still wins when it is set and above zero, with a warning.
    pub fn renamed_duration(
        &self,
        variable: &'static str,
        deprecated: &'static str,
        default: Duration,
    ) -> Result<Duration, EnvError> {
        let value = self.duration(variable, default)?;
        match self.optional_duration(deprecated)? {
            Some(old) if !old.is_zero() => {
                tracing::warn!(variable = deprecated, instead = variable, "deprecated environment variable is set");
                Ok(old)
            }
            _ => Ok(value),
        }
    }

    /// A Go boolean.
    pub fn bool(&self, variable: &'static str, default: bool) -> Result<bool, EnvError> {
        Ok(self.parsed(variable, BOOL, bool_of)?.unwrap_or(default))
    }

    /// A whole number, if it is set.
    pub fn optional_u64(&self, variable: &'static str) -> Result<Option<u64>, EnvError> {
        self.parsed(variable, "a whole number of zero or more", |text| text.parse().ok())
    }

    /// A whole number.
    pub fn u64(&self, variable: &'static str, default: u64) -> Result<u64, EnvError> {
        Ok(self.optional_u64(variable)?.unwrap_or(default))
    }

    /// How many idle connections are kept, as Go's transport reads it: below zero none, and at zero as many as `zero` says.
    pub fn idle(&self, variable: &'static str, default: i64, zero: u64) -> Result<u64, EnvError> {
        let number = self.parsed(variable, "a whole number", |text| text.parse::<i64>().ok())?.unwrap_or(default);
        Ok(if number == 0 { zero } else { u64::try_from(number).unwrap_or_default() })
    }

    /// A number of things of which there must be one at least, if it is set.
    pub fn optional_count(&self, variable: &'static str) -> Result<Option<NonZeroUsize>, EnvError> {
        self.parsed(variable, "a whole number above zero", |text| text.parse().ok())
    }

    /// One of a few words, whatever their case.
    pub fn one_of<T: Copy>(&self, variable: &'static str, words: &[(&str, T)], default: T) -> Result<T, EnvError> {
        let listed = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let value = self.parsed(variable, &format!("one of {listed}"), |text| {
            words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, value)| *value)
        })?;
        Ok(value.unwrap_or(default))
    }

    /// Several things with commas between them, blanks around each left out; none if it is not set.
    pub fn list<T>(
        &self,
        variable: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, EnvError> {
        let all = self.parsed(variable, expected, |text| text.split(',').map(|one| parse(one.trim())).collect())?;
        Ok(all.unwrap_or_default())
    }

    fn parsed<T>(
        &self,
        variable: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, EnvError> {
        let Some(raw) = self.0.get(std::ffi::OsStr::new(variable)).filter(|raw| !raw.is_empty()) else {
            return Ok(None);
        };
        match raw.to_str().and_then(parse) {
            Some(value) => Ok(Some(value)),
            None => Err(EnvError::Invalid {
                variable,
                value: raw.to_string_lossy().into_owned(),
                expected: expected.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn env(variable: &str, value: &str) -> Env {
        Env::from_pairs([(variable, value)])
    }

    #[test]
    fn an_empty_value_counts_as_unset() {
        let env = env("KEDA_HTTP_DRAIN_TIMEOUT", "");
        assert_eq!(env.duration("KEDA_HTTP_DRAIN_TIMEOUT", Duration::from_secs(30)), Ok(Duration::from_secs(30)));
        let missing = env.required_port("KEDA_HTTP_PROXY_PORT").unwrap_err();
        assert_eq!(
            missing.to_string(),
            "environment variable KEDA_HTTP_PROXY_PORT is required: set it to a port number from 0 to 65535"
        );
    }

    #[test]
    fn an_error_names_variable_value_and_expectation() {
        let error = env("KEDA_HTTP_PROXY_PORT", "80808").required_port("KEDA_HTTP_PROXY_PORT").unwrap_err();
        assert_eq!(
            error.to_string(),
            "environment variable KEDA_HTTP_PROXY_PORT is \"80808\", expected a port number from 0 to 65535"
        );
    }

    #[test]
    fn durations_are_those_of_go_and_not_negative() {
        let parse = |text| env("D", text).duration("D", Duration::ZERO);
        assert_eq!(parse("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("1.5ms"), Ok(Duration::from_micros(1500)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        for text in ["10", "-1s", "1 s", "s", "1d", " 1s"] {
            assert!(matches!(parse(text), Err(EnvError::Invalid { .. })), "{text:?}");
        }
    }

    #[test]
    fn booleans_are_those_of_go() {
        let parse = |text| env("B", text).bool("B", false);
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(parse(text), Ok(true), "{text:?}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(parse(text), Ok(false), "{text:?}");
        }
        for text in ["yes", "on", "tRUE", " true"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_list_is_read_whole_or_not_at_all() {
        let parse = |text| env("L", text).list("L", "numbers", |one| one.parse::<u8>().ok());
        assert_eq!(parse("1, 2,3"), Ok(vec![1, 2, 3]));
        assert_eq!(parse(""), Ok(Vec::new()));
        for text in ["1,,2", "1,", "1 2", "x"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_deprecated_name_wins_only_above_zero() {
        let read = |old: &str| {
            Env::from_pairs([("NEW", "2s"), ("OLD", old)]).renamed_duration("NEW", "OLD", Duration::from_secs(9))
        };
        assert_eq!(read(""), Ok(Duration::from_secs(2)));
        assert_eq!(read("0s"), Ok(Duration::from_secs(2)));
        assert_eq!(read("5s"), Ok(Duration::from_secs(5)));
        assert!(read("soon").unwrap_err().to_string().contains("OLD"));
    }

    #[test]
    fn a_word_is_found_whatever_its_case_and_an_unknown_one_lists_them_all() {
        let words = [("none", 0), ("auto", 1)];
        assert_eq!(env("W", "AUTO").one_of("W", &words, 0), Ok(1));
        let error = env("W", "kernel").one_of("W", &words, 0).unwrap_err();
        assert_eq!(error.to_string(), "environment variable W is \"kernel\", expected one of none, auto");
    }

    #[test]
    fn variables_that_change_nothing_are_told_of() {
        let set = ["KEDA_HTTP_KEEP_ALIVE", "PROFILING_BIND_ADDRESS"];
        let env =
            Env::from_pairs(set.map(|variable| (variable, "x")).into_iter().chain([("KEDA_HTTP_FORCE_HTTP2", "")]));
        assert_eq!(env.unused().collect::<Vec<_>>(), set, "an empty one is not set");
    }

    #[test]
    fn idle_connections_are_counted_as_go_does() {
        let idle = |text| env("I", text).idle("I", 200, 2);
        assert_eq!((idle(""), idle("7"), idle("0"), idle("-1")), (Ok(200), Ok(7), Ok(2), Ok(0)));
        assert!(idle("1e3").unwrap_err().to_string().contains("expected a whole number"));
    }

    #[test]
    fn a_count_is_never_zero() {
        assert_eq!(env("C", "2").optional_count("C"), Ok(NonZeroUsize::new(2)));
        assert!(env("C", "0").optional_count("C").unwrap_err().to_string().contains("above zero"));
    }

    #[test]
    fn bytes_that_are_not_text_are_an_error_of_the_variable_asked_for_only() {
        let env = Env::from_pairs([("BAD", OsString::from_vec(vec![0xff])), ("GOOD", "7".into())]);
        assert_eq!(env.u64("GOOD", 0), Ok(7));
        assert!(env.string("BAD", "").is_err());
    }
}
