//! Probes of pods that a test plays.

use std::{net::Ipv4Addr, sync::Arc};

use ::http::{HeaderName, HeaderValue, header};
use interceptor_common::{
    flow::Says,
    http1::HEAD,
    probe::{HEADER, is_ours, place},
};
use interceptor_core::probe::HttpGet;
use runtime::task;
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn probe(action: Action) -> Probe {
    Probe {
        action,
        timeout: Duration::from_millis(200),
        period: Duration::from_secs(10),
        initial_delay: Duration::ZERO,
        successes: 1,
        failures: 3,
    }
}

fn get(port: u16, tls: bool) -> HttpGet {
    HttpGet { port, path: "/ready".to_owned(), tls, headers: Vec::new() }
}

/// Reads a head and answers it.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: impl Fn(&str) -> String) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    stream.write_all(answer(&head).as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    head
}

/// A pod that answers one request in clear; its port, and the head it got.
async fn pod(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = task::spawn("pod", async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream, |_| answer.to_owned()).await
    });
    (port, serving)
}

async fn outcome(answer: &'static str) -> Outcome {
    let (port, _serving) = pod(answer).await;
    ask(LOCALHOST, &probe(Action::Http(get(port, false)))).await
}

#[tokio::test]
async fn a_pod_is_ready_by_a_status_from_200_to_399() {
    assert_eq!(outcome("HTTP/1.1 204 No Content\r\n\r\n").await, Outcome::Ready);
    assert_eq!(outcome("HTTP/1.1 304 Not Modified\r\n\r\n").await, Outcome::Ready);
    assert_eq!(outcome("HTTP/1.1 404 Not Found\r\n\r\n").await, Outcome::Unready);
    assert_eq!(outcome("HTTP/1.1 503 Service Unavailable\r\n\r\n").await, Outcome::Unready);
    assert_eq!(outcome("nonsense\r\n\r\n").await, Outcome::Unready);
    assert_eq!(outcome("").await, Outcome::Unready);
}

#[tokio::test]
async fn headers_are_sent_as_a_kubelet_sends_them() {
    let (port, serving) = pod("HTTP/1.1 200 OK\r\n\r\n").await;
    let headers = vec![
        (header::HOST, HeaderValue::from_static("app.example")),
        (HeaderName::from_static("x-a"), HeaderValue::from_static("b")),
    ];
    let get = HttpGet { headers, path: "health?full".to_owned(), ..get(port, false) };
    assert_eq!(ask(LOCALHOST, &probe(Action::Http(get))).await, Outcome::Ready);
    let head = serving.await.unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /health?full http/1.1\r\n"), "{head}");
    for line in ["host: app.example", "x-a: b", "user-agent: kube-probe/", "connection: close", "accept: */*"] {
        assert!(head.contains(line), "{line} in {head}");
    }
    assert_eq!(head.matches("host:").count(), 1);
}

/// What the kernel's programs make of a connection that begins so.
fn is_known(first: &[u8]) -> bool {
    let looked_at = |at: usize| {
        let mut part = [0; HEAD];
        let there = first.get(at..).unwrap_or_default();
        let len = there.len().min(HEAD);
        part[..len].copy_from_slice(&there[..len]);
        part
    };
    let len = u32::try_from(first.len()).unwrap();
    let says = Says::client(false, &looked_at(0), len, |at| looked_at(usize::try_from(at).unwrap()));
    is_ours(&looked_at(usize::try_from(place(says, len)).unwrap()))
}

#[tokio::test]
async fn agents_of_other_nodes_know_by_the_first_segment_that_it_is_no_demand() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let headers = vec![
        (HeaderName::from_static(HEADER), HeaderValue::from_static("mine")),
        (header::USER_AGENT, HeaderValue::from_static("mine")),
    ];
    let http = Action::Http(HttpGet { headers, ..get(port, false) });
    let https = Action::Http(get(port, true));
    for action in [http, https, Action::Grpc { port, service: "shop".to_owned() }] {
        let asked = probe(action);
        let (_, first) = tokio::join!(ask(LOCALHOST, &asked), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut first = vec![0; 4096];
            let len = stream.read(&mut first).await.unwrap();
            first.truncate(len);
            first
        });
        assert!(is_known(&first), "{}", first.escape_ascii());
    }
}

#[tokio::test]
async fn a_redirect_to_elsewhere_is_not_followed() {
    let answer = "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n";
    assert_eq!(outcome(answer).await, Outcome::Ready);
}

#[tokio::test]
async fn a_redirect_to_the_pod_itself_is_followed() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = task::spawn("pod", async move {
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = |head: &str| {
                let redirect = "HTTP/1.1 302 Found\r\nLocation: /really\r\n\r\n";
                let is_first = head.starts_with("GET /ready ");
                if is_first { redirect } else { "HTTP/1.1 500 Internal Server Error\r\n\r\n" }.to_owned()
            };
            serve(stream, answer).await;
        }
    });
    assert_eq!(ask(LOCALHOST, &probe(Action::Http(get(port, false)))).await, Outcome::Unready);
    serving.await.unwrap();
}

#[tokio::test]
async fn a_pod_that_says_nothing_times_out_and_one_that_is_not_there_refuses() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(ask(LOCALHOST, &probe(Action::Http(get(port, false)))).await, Outcome::Timeout);
    assert_eq!(ask(LOCALHOST, &probe(Action::Tcp(port))).await, Outcome::Ready);
    drop(listener);
    assert_eq!(ask(LOCALHOST, &probe(Action::Http(get(port, false)))).await, Outcome::Refused);
    assert_eq!(ask(LOCALHOST, &probe(Action::Tcp(port))).await, Outcome::Refused);
}

#[tokio::test]
async fn https_takes_whatever_certificate_the_pod_has() {
    let signed = rcgen::generate_simple_self_signed(vec!["elsewhere.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(signed.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = task::spawn("pod", async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await.unwrap();
        serve(stream, |_| "HTTP/1.1 200 OK\r\n\r\n".to_owned()).await
    });
    assert_eq!(ask(LOCALHOST, &probe(Action::Http(get(port, true)))).await, Outcome::Ready);
    serving.await.unwrap();
}

#[tokio::test]
async fn a_pod_in_clear_is_not_ready_by_https() {
    let (port, _serving) = pod("HTTP/1.1 200 OK\r\n\r\n").await;
    let outcome = ask(LOCALHOST, &probe(Action::Http(get(port, true)))).await;
    assert!(matches!(outcome, Outcome::Unready | Outcome::Timeout), "{outcome:?}");
}

#[tokio::test]
async fn a_grpc_pod_is_ready_when_its_health_service_says_so() {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    let _serving = task::spawn("pod", server);
    let asked = |service: &str| probe(Action::Grpc { port, service: service.to_owned() });
    assert_eq!(ask(LOCALHOST, &asked("shop")).await, Outcome::Unready, "it does not know the service");
    reporter.set_service_status("shop", tonic_health::ServingStatus::NotServing).await;
    assert_eq!(ask(LOCALHOST, &asked("shop")).await, Outcome::Unready);
    reporter.set_service_status("shop", tonic_health::ServingStatus::Serving).await;
    assert_eq!(ask(LOCALHOST, &asked("shop")).await, Outcome::Ready);
}
