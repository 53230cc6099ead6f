//! Handshakes between both sides, in memory, with certificates from files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use runtime::env::Env;
use rustls::{ClientConnection, HandshakeKind, ServerConnection, pki_types::CertificateDer};
use tempfile::TempDir;
use tls::{
    Certificates, Resolver, Settings,
    client::{Client, Offer, follow, state},
    reload::Reload,
    server,
};

/// An authority of our own, and a folder for everything.
struct World {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        for name in ["authorities", "store"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("authorities/ca.crt"), authority.pem()).unwrap();
        fs::write(folder.path().join("authorities/README"), "no certificate").unwrap();
        let world = Self { folder, issuer: Issuer::new(params, key) };
        world.certificate("default", &["default.test"]);
        world
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a pair for `names`.
    fn certificate(&self, stem: &str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path().join(format!("{stem}.crt")), certificate.pem()).unwrap();
        fs::write(self.path().join(format!("{stem}.key")), key.serialize_pem()).unwrap();
    }

    fn settings(&self, more: &[(&'static str, &str)]) -> Settings {
        let at = |name: &str| self.path().join(name).to_str().unwrap().to_owned();
        let mut pairs = vec![
            ("KEDA_HTTP_PROXY_TLS_ENABLED", "true".to_owned()),
            ("KEDA_HTTP_PROXY_TLS_CERT_PATH", at("default.crt")),
            ("KEDA_HTTP_PROXY_TLS_KEY_PATH", at("default.key")),
            ("KEDA_HTTP_PROXY_TLS_CERT_STORE_PATHS", at("store")),
            ("KEDA_HTTP_TLS_CA_DIRS", at("authorities")),
        ];
        pairs.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        Settings::from_env(&Env::from_pairs(pairs)).unwrap()
    }
}

fn resolver(settings: &Settings) -> Resolver {
    let provider = rustls::crypto::ring::default_provider();
    Resolver::new(Certificates::load(settings.serving.as_ref().unwrap(), &provider).unwrap())
}

/// Both ends of a connection after the handshake, or why there is none.
fn shake(
    server: &Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let mut client = ClientConnection::new(client, name.to_owned().try_into().unwrap())?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok((client, server))
}

fn shown(connection: &ClientConnection) -> CertificateDer<'static> {
    connection.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn a_client_gets_the_certificate_of_the_name_it_asks_for_and_the_protocol_both_know() {
    let world = World::new();
    world.certificate("store/shop", &["shop.test"]);
    let settings = world.settings(&[]);
    let resolver = resolver(&settings);
    let server = server::config(&settings, resolver.clone()).unwrap();
    let client = Client::new(settings, None).unwrap();
    for (offer, protocol) in [(Offer::Any, "h2"), (Offer::H2, "h2"), (Offer::Http1, "http/1.1")] {
        let (connection, _) = shake(&server, client.config(offer), "shop.test").unwrap();
        assert_eq!(connection.alpn_protocol(), Some(protocol.as_bytes()), "{offer:?}");
        assert_eq!(shown(&connection), resolver.current().find(Some("shop.test")).unwrap().cert[0]);
    }
}

#[test]
fn a_pod_s_certificate_must_come_from_a_known_authority_and_have_its_name() {
    let world = World::new();
    let settings = world.settings(&[]);
    let server = server::config(&settings, resolver(&settings)).unwrap();
    let elsewhere = World::new();
    let stranger = Client::new(elsewhere.settings(&[]), None).unwrap();
    let error = shake(&server, stranger.config(Offer::Any), "default.test").unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error}");

    let client = Client::new(settings, None).unwrap();
    let error = shake(&server, client.config(Offer::Any), "other.test").unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");

    let trusting = world.settings(&[("KEDA_HTTP_PROXY_TLS_SKIP_VERIFY", "true")]);
    let client = Client::new(trusting, None).unwrap();
    shake(&server, client.config(Offer::Any), "other.test").unwrap();
}

#[test]
fn versions_are_kept_to() {
    let world = World::new();
    let old = world.settings(&[("KEDA_HTTP_TLS_MAX_VERSION", "1.2")]);
    let server = server::config(&old, resolver(&old)).unwrap();
    let client = Client::new(world.settings(&[]), None).unwrap();
    let (connection, _) = shake(&server, client.config(Offer::Any), "default.test").unwrap();
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
    let new = world.settings(&[("KEDA_HTTP_TLS_MIN_VERSION", "TLS13")]);
    assert!(shake(&server, Client::new(new, None).unwrap().config(Offer::Any), "default.test").is_err());
}

#[test]
fn a_client_that_comes_again_resumes_its_session() {
    let world = World::new();
    let settings = world.settings(&[]);
    let server = server::config(&settings, resolver(&settings)).unwrap();
    let client = Client::new(settings, None).unwrap().config(Offer::Any);
    let kind = |(client, _): (ClientConnection, ServerConnection)| client.handshake_kind().unwrap();
    assert_eq!(kind(shake(&server, Arc::clone(&client), "default.test").unwrap()), HandshakeKind::Full);
    assert_eq!(kind(shake(&server, client, "default.test").unwrap()), HandshakeKind::Resumed);
}

#[tokio::test(start_paused = true)]
async fn changed_files_are_served_and_broken_ones_are_not() {
    let world = World::new();
    let settings = world.settings(&[]);
    let read = state(&settings);
    let resolver = resolver(&settings);
    let client = Client::new(settings.clone(), None).unwrap();
    // Between the first reading and the first look.
    world.certificate("store/early", &["early.test"]);
    let (told, mut news) = tokio::sync::mpsc::unbounded_channel();
    let following = follow(settings, read, Some(resolver.clone()), client, move |reload| told.send(reload).unwrap());
    let test = async {
        assert_eq!(news.recv().await, Some(Reload::Done));
        assert_ne!(
            resolver.current().find(Some("early.test")).unwrap().cert,
            resolver.current().find(None).unwrap().cert
        );
        world.certificate("store/new", &["new.test"]);
        assert_eq!(news.recv().await, Some(Reload::Done));
        let served = resolver.current();
        let new = served.find(Some("new.test")).unwrap().cert[0].clone();
        assert_ne!(new, served.find(None).unwrap().cert[0]);

        fs::write(world.path().join("store/new.crt"), "half a fi").unwrap();
        assert_eq!(news.recv().await, Some(Reload::Failed));
        assert_eq!(resolver.current().find(Some("new.test")).unwrap().cert[0], new, "what was served stays");

        fs::remove_file(world.path().join("store/new.crt")).unwrap();
        fs::remove_file(world.path().join("store/new.key")).unwrap();
        assert_eq!(news.recv().await, Some(Reload::Done));
        assert_eq!(resolver.current().find(Some("new.test")).unwrap().cert, served.find(None).unwrap().cert);
    };
    tokio::select! {
        _never = following => {}
        () = test => {}
    }
}
