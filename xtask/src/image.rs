//! `cargo xtask image`: OCI images of our programs, without a Docker daemon.

pub(crate) mod archive;

/// This machine's architecture in Go's words, as images name it.
pub(crate) const fn host_arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}
