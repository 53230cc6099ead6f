//! Durations in custom resources: text, that the API server checks by a pattern and that is parsed where it is used, so that
//! a bad one harms only the object it stands in.

use std::{borrow::Cow, time::Duration};

use interceptor_core::go_duration::{self, DurationError};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What the API server lets pass: all that Go takes for a duration and that is not below zero.
pub const PATTERN: &str = r"^\+?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$";

/// A Go duration as written, such as `300ms` or `1m30s`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GoDuration(pub String);

// === impl GoDuration ===

impl GoDuration {
    /// What it says.
    pub fn parse(&self) -> Result<Duration, DurationError> {
        go_duration::parse(&self.0)
    }
}

impl From<Duration> for GoDuration {
    fn from(duration: Duration) -> Self {
        Self(go_duration::format(duration))
    }
}

impl JsonSchema for GoDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "GoDuration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_the_pattern_lets_pass_is_a_duration(text in PATTERN.trim_matches(['^', '$'])) {
            let parsed = GoDuration(text).parse();
            prop_assert!(matches!(parsed, Ok(_) | Err(DurationError::TooLong)), "{:?}", parsed);
        }
    }
}
