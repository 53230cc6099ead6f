//! Durations in custom resources: any text to the API server, parsed where it is used, so that a bad one harms only the
//! object it stands in.

use std::time::Duration;

use interceptor_core::go_duration::{self, DurationError};
use serde::{Deserialize, Serialize};

/// A Go duration as written, such as `300ms` or `1m30s`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
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
