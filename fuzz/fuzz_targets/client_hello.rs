//! What a client says to the TLS listener before anything is agreed upon: the hello, and the name in it.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use runtime::env::Env;
use rustls::{ServerConfig, ServerConnection};
use tls::{Certificates, Paths, Resolver, Settings, server};

static CONFIG: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("rouse-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the certificate");
    let made = rcgen::generate_simple_self_signed(["a.test".to_owned(), "*.b.test".to_owned()]).expect("a certificate");
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).expect("the certificate is written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("the key is written");
    let paths = Paths { default: Some((certificate, key)), stores: Vec::new() };
    let settings = Settings::from_env(&Env::default()).expect("the default settings");
    let certificates =
        Certificates::load(&paths, &rustls::crypto::ring::default_provider()).expect("the certificate is read");
    let _ = std::fs::remove_dir_all(folder);
    server::config(&settings, Resolver::new(certificates)).expect("a configuration")
});

fuzz_target!(|bytes: &[u8]| {
    let mut connection = ServerConnection::new(Arc::clone(&CONFIG)).expect("a connection");
    let mut input = bytes;
    while !input.is_empty() {
        if !matches!(connection.read_tls(&mut input), Ok(1..)) || connection.process_new_packets().is_err() {
            return;
        }
        let _ = connection.write_tls(&mut std::io::sink());
    }
});
