//! The listener's side.

use std::sync::Arc;

use rustls::{ServerConfig, crypto::ring::Ticketer};

use crate::{Resolver, Settings};

/// What a handshake with a client needs: certificates by SNI, HTTP/2 and HTTP/1.1 by ALPN, and tickets, so that a client
/// that comes again to another worker need not shake hands anew.
pub fn config(settings: &Settings, resolver: Resolver) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&settings.provider))
        .with_protocol_versions(&settings.versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new()?;
    Ok(Arc::new(config))
}
