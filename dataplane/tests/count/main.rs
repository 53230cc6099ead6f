//! Counting at level `node` against the real kernel: pods are cgroups of the test's own, and what the kernel counts is
//! compared with what the peers did. They need root, and objects that were built in.
#![cfg(ebpf_object)]
#![expect(clippy::unwrap_used, reason = "tests: the lint knows only functions that bear the attribute")]

mod connections;
mod foreign;
mod node;
mod notices;
mod others;
mod pins;
mod requests;
mod slots;
#[path = "../theirs/program.rs"]
mod theirs;
