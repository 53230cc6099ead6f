//! TLS for clients and for pods: settings under the add-on's names, certificates chosen by SNI and reloaded when their
//! files change. Used by the interceptor, and by the operator for its metrics; knows no
//! request.
//!
//! ```text
//! environment ─► Settings ─► server::config ─► Certificates (by SNI) ◄─ reload ◄─ files
//!                        │                                           ◄─ secret ◄─ Secrets
//!                        └─► client::Client (system's and private CAs; a route's Identity)
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on panics"))]

mod certificates;
pub mod client;
mod files;
pub mod reload;
pub mod secret;
pub mod server;
pub mod settings;

pub use self::{
    certificates::{Certificates, Resolver, names},
    files::{FileError, Paths},
    settings::Settings,
};
