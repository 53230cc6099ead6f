//! The data plane against the real kernel, and both levels against one suite. Those that need root run in a cgroup of their
//! own, one at a time.
#![expect(clippy::unwrap_used, reason = "tests: the lint knows only functions that bear the attribute")]

mod cell;
mod conformance;
mod exact;
mod peers;
mod reasons;
mod step;
