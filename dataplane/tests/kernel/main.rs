//! The data plane against the real kernel, and both levels against one suite. Those that need root run in a cgroup of their
//! own, one at a time; without an object built in there is nothing that they could load.
#![expect(clippy::unwrap_used, reason = "tests: the lint knows only functions that bear the attribute")]

#[cfg(ebpf_object)]
mod cell;
mod conformance;
#[cfg(ebpf_object)]
mod exact;
mod log;
#[cfg(ebpf_object)]
mod peers;
#[cfg(ebpf_object)]
mod reasons;
#[cfg(ebpf_object)]
mod step;
mod upstreams;
mod without;
