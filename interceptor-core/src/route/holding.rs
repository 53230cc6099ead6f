//! How a route holds requests: how many, what becomes of the next one, and how they are let go.

use std::num::{NonZeroU32, NonZeroU64};

/// What a route says of holding its requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Most requests that one interceptor holds for it; `None` takes the environment's.
    pub most: Option<NonZeroU64>,
    /// What becomes of a request when so many are held.
    pub overflow: Overflow,
    /// Most requests of it that one interceptor has at a pod while others are still held; `None` lets all go at once.
    pub per_pod: Option<NonZeroU32>,
}

/// What becomes of a request for which there is no place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is refused.
    #[default]
    Reject,
    /// It gets the placeholder, which others do not get as long as they can be held.
    Placeholder,
}

// === impl Holding ===

impl Holding {
    /// Whether requests are held although there is a placeholder.
    pub fn goes_before_placeholder(&self) -> bool {
        self.overflow == Overflow::Placeholder && self.most.is_some()
    }
}
