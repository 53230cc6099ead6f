//! Clients and pods that speak TLS.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use integration::{Interceptor, Pod, World, eventually, soon};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{HOST, foreign};

/// A folder of certificates, all of one authority of ours.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// With certificates for the host of most tests, for its Service, and for nobody in particular.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of the tests");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        for name in ["authorities", "store", "pod"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("authorities/ca.crt"), certificate.pem()).unwrap();
        let authority = Self { folder, issuer: Issuer::new(params, key) };
        authority.certificate("default", &["default.test"]);
        authority.certificate("store/app", &[HOST]);
        authority.certificate("pod/app", &["app.shop"]);
        authority
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a pair for `names`.
    pub(crate) fn certificate(&self, stem: &str, names: &[&str]) {
        let (certificate, key) = self.pair(names);
        fs::write(self.path().join(format!("{stem}.crt")), certificate).unwrap();
        fs::write(self.path().join(format!("{stem}.key")), key).unwrap();
    }

    /// A certificate for `names` and its key, in PEM.
    pub(crate) fn pair(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// An interceptor that serves these certificates and believes their authority.
    async fn interceptor(&self, world: &World) -> Interceptor {
        self.interceptor_with(world, &[]).await
    }

    async fn interceptor_with(&self, world: &World, more: &[(&str, &str)]) -> Interceptor {
        let (certificate, key) = (self.at("default.crt"), self.at("default.key"));
        let (store, authorities) = (self.at("store"), self.at("authorities"));
        let mut env = vec![
            ("KEDA_HTTP_PROXY_TLS_ENABLED", "true"),
            ("KEDA_HTTP_PROXY_TLS_PORT", "0"),
            ("KEDA_HTTP_PROXY_TLS_CERT_PATH", &certificate),
            ("KEDA_HTTP_PROXY_TLS_KEY_PATH", &key),
            ("KEDA_HTTP_PROXY_TLS_CERT_STORE_PATHS", &store),
            ("KEDA_HTTP_TLS_CA_DIRS", &authorities),
        ];
        env.extend(more);
        Interceptor::start_with(world, &env).await
    }

    /// The same in front of a pod that speaks no TLS.
    async fn in_front_of_a_pod_in_clear(&self) -> (World, Pod, Interceptor) {
        let world = world(Some("http"));
        let pod = Pod::start().await;
        world.endpoints("app", &[pod.addr]);
        let interceptor = self.interceptor(&world).await;
        interceptor.endpoints("app", 1).await;
        (world, pod, interceptor)
    }

    /// curl to the TLS port, which it takes for `host`.
    pub(crate) async fn curl(&self, interceptor: &Interceptor, host: &str, args: &[&str]) -> String {
        let connect = format!("{host}:443:{}", interceptor.tls());
        let (ca, url) = (self.at("authorities/ca.crt"), format!("https://{host}/"));
        let mut all = vec!["-sS", "--cacert", &ca, "--connect-to", &connect];
        all.extend(args);
        all.push(&url);
        foreign::text(&foreign::run("curl", &all).await)
    }

    /// A connection of our own to the TLS port.
    pub(crate) async fn connect(&self, addr: SocketAddr) -> TlsStream<TcpStream> {
        self.connect_for(addr, &[]).await
    }

    /// The same, which offers these protocols.
    async fn connect_for(&self, addr: SocketAddr, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        self.try_connect(addr, HOST, protocols).await.unwrap()
    }

    /// The same to this host, which may fail.
    pub(crate) async fn try_connect(
        &self,
        addr: SocketAddr,
        host: &str,
        protocols: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path().join("authorities/ca.crt")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let connector = TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(addr).await.unwrap();
        soon("a handshake", connector.connect(ServerName::try_from(host.to_owned()).unwrap(), stream)).await
    }
}

/// A route whose Service has this `appProtocol`.
pub(crate) fn world(app_protocol: Option<&str>) -> World {
    let world = World::new();
    world.route("app", json!([{ "hosts": [HOST] }]));
    let mut port = json!({ "name": "http", "port": 80, "targetPort": 8080 });
    if let Some(app_protocol) = app_protocol {
        port["appProtocol"] = app_protocol.into();
    }
    world.service_with("app", json!([port]));
    world
}

/// A pod of OpenSSL's, which answers every GET.
struct OpenSsl(#[expect(dead_code, reason = "it is killed when it is dropped")] tokio::process::Child, SocketAddr);

async fn openssl_pod(authority: &Authority, stem: &str) -> OpenSsl {
    let addr = Pod::absent().await;
    let (certificate, key) = (authority.at(&format!("{stem}.crt")), authority.at(&format!("{stem}.key")));
    let port = addr.port().to_string();
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-www", "-accept", &port, "-cert", &certificate, "-key", &key]);
    let child = command.kill_on_drop(true).spawn().expect("openssl, which `cargo xtask setup` installs");
    eventually("openssl listens", async || TcpStream::connect(addr).await.ok().map(drop)).await;
    OpenSsl(child, addr)
}

#[tokio::test]
async fn curl_gets_the_certificate_of_its_host_and_either_protocol_in_front_of_a_pod_in_clear() {
    let authority = Authority::new();
    let (_world, pod, interceptor) = authority.in_front_of_a_pod_in_clear().await;
    let serving = pod.answering("hello");
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let said = authority.curl(&interceptor, HOST, &[flag, "-w", "|%{http_version}|%{http_code}"]).await;
        assert_eq!(said, format!("hello|{version}|200"));
    }
    let said = authority.curl(&interceptor, "default.test", &["-w", "%{http_code}"]).await;
    assert_eq!(said, "Not Found\n404", "the default certificate is that of a host without a route");
    let said = authority.curl(&interceptor, "other.test", &[]).await;
    assert!(said.contains("other.test"), "no certificate is for that host: {said}");
    assert_eq!(serving.requests(), 2);
}

#[tokio::test]
async fn a_pod_learns_that_its_client_spoke_tls() {
    let authority = Authority::new();
    let (_world, pod, interceptor) = authority.in_front_of_a_pod_in_clear().await;
    let mut client = authority.connect(interceptor.tls()).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
    let (_upstream, head) = pod.request().await;
    assert_eq!(head.get("x-forwarded-proto"), Some("https"));
}

#[tokio::test]
async fn a_request_that_came_over_tls_goes_on_over_tls_under_the_service_s_name() {
    let authority = Authority::new();
    let world = world(None);
    let pod = openssl_pod(&authority, "pod/app").await;
    world.endpoints("app", &[pod.1]);
    let interceptor = authority.interceptor(&world).await;
    interceptor.endpoints("app", 1).await;
    let said = authority.curl(&interceptor, HOST, &["-o", "/dev/null", "-w", "%{http_code}"]).await;
    assert_eq!(said, "200");
    assert_ne!(interceptor.get(HOST, "/").await.status(), 200, "in clear it went on in clear");
}

#[tokio::test]
async fn a_pod_whose_certificate_is_somebody_else_s_is_not_believed() {
    let authority = Authority::new();
    authority.certificate("pod/wrong", &["wrong.shop"]);
    let world = world(Some("https"));
    let pod = openssl_pod(&authority, "pod/wrong").await;
    world.endpoints("app", &[pod.1]);
    let interceptor = authority.interceptor(&world).await;
    interceptor.endpoints("app", 1).await;
    let response = interceptor.get(HOST, "/").await;
    assert_eq!((response.status(), response.body.as_str()), (502, "Bad Gateway\n"));
    let blind = authority.interceptor_with(&world, &[("KEDA_HTTP_PROXY_TLS_SKIP_VERIFY", "true")]).await;
    blind.endpoints("app", 1).await;
    assert_eq!(blind.get(HOST, "/").await.status(), 200);
}

#[tokio::test]
async fn a_web_socket_passes_over_tls_to_a_pod_that_could_speak_http_2() {
    let authority = Authority::new();
    // A second interceptor is the pod: it offers HTTP/2.
    let (outer, inner) = (world(None), world(Some("http")));
    let pod = Pod::start().await;
    inner.endpoints("app", &[pod.addr]);
    fs::copy(authority.path().join("pod/app.crt"), authority.path().join("default.crt")).unwrap();
    fs::copy(authority.path().join("pod/app.key"), authority.path().join("default.key")).unwrap();
    // Of two workers, the second would have a connection of its own to the pod.
    let second = authority.interceptor_with(&inner, &[("ROUSE_WORKERS", "1")]).await;
    second.endpoints("app", 1).await;
    outer.endpoints("app", &[second.tls()]);
    let first = authority.interceptor(&outer).await;
    first.endpoints("app", 1).await;

    let mut plain = authority.connect(first.tls()).await;
    plain.write_all(b"GET /plain HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
    let (mut upstream, head) = pod.request().await;
    assert_eq!(head.target(), "/plain");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let mut answer = [0; 15];
    plain.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");

    let mut client = authority.connect(first.tls()).await;
    let ask = b"GET /chat HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(ask).await.unwrap();
    let head = upstream.head().await;
    assert_eq!((head.target(), head.get("upgrade")), ("/chat", Some("websocket")));
    upstream.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\npong").await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"pong") {
        assert_ne!(soon("the answer", client.read_buf(&mut answer)).await.unwrap(), 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    client.write_all(b"ping").await.unwrap();
    assert_eq!(upstream.exactly(4).await, "ping");
}

#[tokio::test]
async fn an_extended_connect_passes_over_tls_to_a_pod_in_clear() {
    let authority = Authority::new();
    let (_world, pod, interceptor) = authority.in_front_of_a_pod_in_clear().await;
    let stream = authority.connect_for(interceptor.tls(), &[b"h2", b"http/1.1"]).await;
    let (client, connection) = soon("HTTP/2 handshake", h2::client::handshake(stream)).await.unwrap();
    let driver = runtime::task::spawn("client", async move {
        let _ = connection.await;
    });
    eventually("extended CONNECT is offered", async || client.is_extended_connect_protocol_enabled().then_some(()))
        .await;
    let request = http::Request::connect(format!("https://{HOST}/chat"));
    let request = request.extension(h2::ext::Protocol::from_static("chat")).body(()).unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, mut up): (_, h2::SendStream<bytes::Bytes>) = client.send_request(request, false).unwrap();
    let (mut upstream, head) = pod.request().await;
    assert_eq!(
        (head.target(), head.get("upgrade"), head.get("x-forwarded-proto")),
        ("/chat", Some("chat"), Some("https"))
    );
    upstream.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\npong").await;
    let mut response = soon("a response", response).await.unwrap();
    assert_eq!((response.status().as_u16(), integration::h2::piece(response.body_mut()).await.as_str()), (200, "pong"));
    up.send_data("ping".into(), false).unwrap();
    assert_eq!(upstream.exactly(4).await, "ping");
    driver.abort();
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_dropped_connection() {
    let authority = Authority::new();
    let (_world, pod, interceptor) = authority.in_front_of_a_pod_in_clear().await;
    let _pod = pod.answering("hello");
    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let mut old = authority.connect(interceptor.tls()).await;
    authority.certificate("store/app", &[HOST]);
    let before = shown(&old);
    eventually("the new certificate is served", async || {
        (shown(&authority.connect(interceptor.tls()).await) != before).then_some(())
    })
    .await;
    old.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("the answer on the old connection", old.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn what_is_no_handshake_harms_nobody() {
    let authority = Authority::new();
    let (_world, pod, interceptor) = authority.in_front_of_a_pod_in_clear().await;
    let _pod = pod.answering("hello");
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"[..],
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    ] {
        let mut client = TcpStream::connect(interceptor.tls()).await.unwrap();
        client.write_all(garbage).await.unwrap();
        client.shutdown().await.unwrap();
        let _ = soon("the end of the connection", client.read_to_end(&mut Vec::new())).await;
    }
    assert_eq!(authority.curl(&interceptor, HOST, &[]).await, "hello");
    let errors = eventually("failed handshakes are counted", async || {
        let metrics = interceptor.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with("rouse_tls_handshake_errors_total "))?;
        (line.ends_with(" 3")).then_some(())
    });
    errors.await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_keeps_the_interceptor_from_starting() {
    let env = [("KEDA_HTTP_PROXY_TLS_ENABLED", "true"), ("KEDA_HTTP_PROXY_TLS_CERT_PATH", "/does/not/exist.crt")];
    let (status, said) = Interceptor::fails(&World::new(), &env).await;
    assert_eq!(status, Some(1));
    assert!(said.contains("/does/not/exist.crt"), "{said}");
}
