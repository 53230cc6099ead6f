//! Pods that ask the interceptor for a certificate.

use std::{net::SocketAddr, sync::Arc};

use integration::{Interceptor, Pod, World, eventually, soon};
use parking_lot::Mutex;
use runtime::task;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::{is_logged, leaf, secret};
use crate::{HOST, tls::Authority};

/// A pod that asks each client for a certificate of one authority, keeps connections open, and notes who sent each request.
struct MutualPod {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<CertificateDer<'static>>>>,
    task: JoinHandle<()>,
}

impl MutualPod {
    async fn start(own: &(String, String), clients: &Authority) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(clients.path().join("authorities/ca.crt")).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_client_cert_verifier(verifier.unwrap());
        let key = PrivateKeyDer::from_pem_slice(own.1.as_bytes()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![leaf(own)], key).unwrap()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let task = task::spawn("pod", async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, noted) = (acceptor.clone(), Arc::clone(&noted));
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let client = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
                    let mut head = Vec::new();
                    while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                        if head.ends_with(b"\r\n\r\n") {
                            head.clear();
                            noted.lock().push(client.clone());
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                            if stream.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { addr, seen, task }
    }

    fn last(&self) -> Option<CertificateDer<'static>> {
        self.seen.lock().last().cloned()
    }
}

impl Drop for MutualPod {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A route to `app` that names the Secret `client`, and one for another host that names none.
fn world() -> World {
    let world = crate::tls::world(Some("https"));
    let target = json!({ "service": "app", "port": 80, "tls": { "secretName": "client" } });
    world.route_with("app", json!([{ "hosts": [HOST] }]), json!({ "target": target }));
    let target = json!({ "service": "app", "port": 80 });
    world.route_with("other", json!([{ "hosts": ["other.test"] }]), json!({ "target": target }));
    world
}

/// The Secret, with the authority of the pods.
fn client(pair: &(String, String), pods: &Authority) -> serde_json::Value {
    let mut client = secret("client", "client", pair);
    let authority = std::fs::read_to_string(pods.path().join("authorities/ca.crt")).unwrap();
    client["stringData"]["ca.crt"] = authority.into();
    client
}

async fn start(world: &World, pod: SocketAddr) -> Interceptor {
    world.endpoints("app", &[pod]);
    // One worker: another would have connections of its own.
    let env = [("ROUSE_TLS_SECRETS", "shop/*"), ("ROUSE_WORKERS", "1")];
    let interceptor = Interceptor::start_with(world, &env).await;
    interceptor.endpoints("app", 1).await;
    interceptor
}

#[tokio::test]
async fn a_pod_that_asks_for_a_certificate_gets_that_of_the_route_s_secret_and_no_other_route_s() {
    let (clients, pods) = (Authority::new(), Authority::new());
    let pair = clients.pair(&["client.test"]);
    let pod = MutualPod::start(&pods.pair(&["app.shop"]), &clients).await;
    let world = world();
    world.object(&client(&pair, &pods));
    let interceptor = start(&world, pod.addr).await;
    assert_eq!(interceptor.get(HOST, "/").await.status(), 200, "the pod is believed by the Secret's authority");
    assert_eq!(pod.last(), Some(leaf(&pair)));
    let other = interceptor.get("other.test", "/").await;
    assert_eq!(other.status(), 502, "it has no certificate, and a connection that lies open is not its own");
    assert_eq!(pod.seen.lock().len(), 1);
    assert_eq!(interceptor.get(HOST, "/").await.status(), 200);
}

#[tokio::test]
async fn a_changed_secret_is_who_the_next_request_is_and_old_connections_are_not_used_again() {
    let (clients, pods) = (Authority::new(), Authority::new());
    let (old, new) = (clients.pair(&["old.test"]), clients.pair(&["new.test"]));
    let pod = MutualPod::start(&pods.pair(&["app.shop"]), &clients).await;
    let world = world();
    world.object(&client(&old, &pods));
    let interceptor = start(&world, pod.addr).await;
    let mut kept = interceptor.client().await;
    kept.get(HOST, "/").await;
    assert_eq!((kept.response().await.status(), pod.last()), (200, Some(leaf(&old))));
    world.object(&client(&new, &pods));
    eventually("the new certificate is shown", async || {
        assert_eq!(interceptor.get(HOST, "/").await.status(), 200);
        (pod.last()? == leaf(&new)).then_some(())
    })
    .await;
    let switched = pod.seen.lock().len();
    for _ in 0..10 {
        assert_eq!(interceptor.get(HOST, "/").await.status(), 200);
    }
    kept.get(HOST, "/").await;
    assert_eq!(kept.response().await.status(), 200);
    assert!(pod.seen.lock()[switched..].iter().all(|client| *client == leaf(&new)), "an old connection was used");
}

#[tokio::test]
async fn a_secret_that_is_missing_or_malformed_is_an_error_that_is_told() {
    let (clients, pods) = (Authority::new(), Authority::new());
    let pair = clients.pair(&["client.test"]);
    let pod = MutualPod::start(&pods.pair(&["app.shop"]), &clients).await;
    let world = world();
    let interceptor = start(&world, pod.addr).await;
    assert_eq!(interceptor.get(HOST, "/").await.status(), 502);
    let problem = interceptor.problem("InterceptorRoute shop/app").await;
    assert!(problem.contains("Secret shop/client is not there"), "{problem}");
    is_logged(&interceptor, "Secret shop/client is not there").await;
    world.object(&client(&pair, &pods));
    let answers = async |status: u16| {
        eventually(&format!("it answers {status}"), async || {
            (interceptor.get(HOST, "/").await.status() == status).then_some(())
        })
        .await;
    };
    answers(200).await;
    // A Secret for something else is nobody's identity.
    world.object(&secret("client", "server", &pair));
    answers(502).await;
    world.object(&client(&pair, &pods));
    answers(200).await;
    world.object(&client(&(pair.0.clone(), "nothing".to_owned()), &pods));
    answers(502).await;
    let problem = interceptor.problem("Secret shop/client tls.key is of no use").await;
    assert!(problem.contains("InterceptorRoute shop/app"), "{problem}");
    world.object(&client(&pair, &clients));
    answers(502).await;
    let metrics = interceptor.metrics().await;
    assert!(metrics.contains("no_identity") && metrics.contains("tls_handshake"), "{metrics}");
}

#[tokio::test]
async fn openssl_as_a_pod_sees_the_certificate_and_gets_tls_whatever_its_app_protocol() {
    let (clients, pods) = (Authority::new(), Authority::new());
    pods.certificate("pod/app", &["app.shop"]);
    let world = world();
    world.service("app");
    world.object(&client(&clients.pair(&["client.test"]), &pods));
    let addr = Pod::absent().await;
    let (port, authority) = (addr.port().to_string(), clients.at("authorities/ca.crt"));
    let (certificate, key) = (pods.at("pod/app.crt"), pods.at("pod/app.key"));
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-www", "-accept", &port, "-cert", &certificate, "-key", &key]);
    command.args(["-Verify", "1", "-verify_return_error", "-CAfile", &authority]);
    let _pod = command.kill_on_drop(true).spawn().expect("openssl, which `cargo xtask setup` installs");
    eventually("openssl listens", async || TcpStream::connect(addr).await.ok().map(drop)).await;
    let interceptor = start(&world, addr).await;
    let page = soon("a page", interceptor.get(HOST, "/")).await;
    assert_eq!(page.status(), 200, "{}", interceptor.log());
    assert!(page.body.contains("DNS:client.test"), "{}", page.body);
    assert_ne!(interceptor.get("other.test", "/").await.status(), 200, "in clear it is not even asked");
}
