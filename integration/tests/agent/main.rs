//! The agent's node as its clients and pods see it: namespaces for each of them, and rules as kube-proxy writes them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![cfg(ebpf_object)]

mod backlog;
mod bench;
mod clients;
mod count;
mod crowd;
mod external;
mod flaps;
mod foreign;
mod hold;
mod host;
mod kubelet;
mod listens;
mod moved;
mod peers;
mod pins;
mod probes;
mod refused;
mod steer;
mod telemetry;
#[path = "../../../dataplane/tests/theirs/program.rs"]
mod theirs;
mod uncounted;
mod upgrades;
