//! Certificates that Kubernetes Secrets hold: for clients by the name they ask for, and for the pods of routes that name one.

mod pods;

use integration::{Interceptor, Pod, World, eventually, soon, world::NAMESPACE};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    HOST,
    tls::{Authority, world},
};

/// A Secret with this certificate and key, for this use.
pub(crate) fn secret(name: &str, used: &str, (certificate, key): &(String, String)) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "http.keda.sh/tls": used } },
        "stringData": { "tls.crt": certificate, "tls.key": key },
    })
}

/// An interceptor for clients with TLS whose certificates are all in Secrets of the folder.
async fn serving(world: &World, more: &[(&str, &str)]) -> Interceptor {
    let mut env = vec![
        ("KEDA_HTTP_PROXY_TLS_ENABLED", "true"),
        ("KEDA_HTTP_PROXY_TLS_PORT", "0"),
        ("ROUSE_TLS_SECRETS", "*"),
        ("ROUSE_TLS_DEFAULT_SECRET", "shop/default"),
    ];
    env.extend(more);
    Interceptor::start_with(world, &env).await
}

fn leaf((certificate, _): &(String, String)) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()
}

/// The certificate that a client gets who asks for `host`; `None` if it gets none that fits.
pub(crate) async fn shown(
    authority: &Authority,
    interceptor: &Interceptor,
    host: &str,
) -> Option<CertificateDer<'static>> {
    let stream = authority.try_connect(interceptor.tls(), host, &[]).await.ok()?;
    Some(stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned())
}

pub(crate) async fn is_shown(authority: &Authority, interceptor: &Interceptor, host: &str, pair: &(String, String)) {
    eventually(&format!("the certificate of {host}"), async || {
        (shown(authority, interceptor, host).await? == leaf(pair)).then_some(())
    })
    .await;
}

/// Waits until the log says this.
async fn is_logged(interceptor: &Interceptor, text: &str) {
    eventually(&format!("{text} in the log"), async || interceptor.log().contains(text).then_some(())).await;
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_a_secret_by_the_name_it_asks_for() {
    let authority = Authority::new();
    let world = world(Some("http"));
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let pod = pod.answering("hello");
    let [exact, wildcard, default] =
        [&[HOST][..], &["*.wild.test"], &["default.test"]].map(|names| authority.pair(names));
    world.object(&secret("exact", "server", &exact));
    world.object(&secret("wildcard", "server", &wildcard));
    world.object(&secret("default", "server", &default));
    let interceptor = serving(&world, &[]).await;
    interceptor.endpoints("app", 1).await;
    assert_eq!(shown(&authority, &interceptor, HOST).await, Some(leaf(&exact)));
    assert_eq!(shown(&authority, &interceptor, "any.wild.test").await, Some(leaf(&wildcard)));
    assert_eq!(shown(&authority, &interceptor, "default.test").await, Some(leaf(&default)));
    assert_eq!(shown(&authority, &interceptor, "other.test").await, None, "the default does not fit it");
    assert_eq!(authority.curl(&interceptor, HOST, &[]).await, "hello");
    assert_eq!(pod.requests(), 1);
}

#[tokio::test]
async fn a_secret_that_changes_or_goes_is_heeded_without_a_dropped_connection() {
    let authority = Authority::new();
    let world = world(Some("http"));
    let pod = Pod::start().await;
    world.endpoints("app", &[pod.addr]);
    let _pod = pod.answering("hello");
    let [old, new, default] = [HOST, HOST, "default.test"].map(|name| authority.pair(&[name]));
    world.object(&secret("default", "server", &default));
    world.object(&secret("app", "server", &old));
    let interceptor = serving(&world, &[]).await;
    interceptor.endpoints("app", 1).await;
    let mut open = authority.connect(interceptor.tls()).await;
    world.object(&secret("app", "server", &new));
    is_shown(&authority, &interceptor, HOST, &new).await;
    world.remove("Secret", "app");
    eventually("the certificate is gone", async || shown(&authority, &interceptor, HOST).await.is_none().then_some(()))
        .await;
    open.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("the answer on the old connection", open.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn a_malformed_secret_hurts_only_itself_and_tells_nothing_of_its_key() {
    let authority = Authority::new();
    let world = world(Some("http"));
    let [good, first, other] = [HOST, "first.test", "other.test"].map(|name| authority.pair(&[name]));
    world.object(&secret("default", "server", &good));
    world.object(&secret("torn", "server", &first));
    let interceptor = serving(&world, &[]).await;
    assert_eq!(shown(&authority, &interceptor, "first.test").await, Some(leaf(&first)));
    // The key of another certificate; a certificate that is a key; data that is no base64; another type; no key at all.
    world.object(&secret("torn", "server", &(first.0.clone(), other.1.clone())));
    world.object(&secret("swapped", "server", &(other.1.clone(), other.1.clone())));
    let mut raw = secret("raw", "server", &other);
    raw["data"] = json!({ "tls.key": other.1 });
    world.object(&raw);
    let mut opaque = secret("opaque", "server", &other);
    opaque["type"] = "Opaque".into();
    world.object(&opaque);
    let mut lacking = secret("lacking", "server", &other);
    lacking["stringData"] = json!({ "tls.crt": other.0 });
    world.object(&lacking);
    for (name, why) in [
        ("torn", "cannot be used together"),
        ("swapped", "tls.crt is of no use"),
        ("raw", "cannot be read"),
        ("opaque", "expected kubernetes.io/tls"),
        ("lacking", "has no tls.key"),
    ] {
        let problem = interceptor.problem(&format!("Secret shop/{name}")).await;
        assert!(problem.contains(why), "{problem}");
        is_logged(&interceptor, &format!("Secret shop/{name}")).await;
    }
    assert_eq!(shown(&authority, &interceptor, HOST).await, Some(leaf(&good)));
    assert_eq!(shown(&authority, &interceptor, "first.test").await, Some(leaf(&first)), "what was served stays");
    let metrics = interceptor.metrics().await;
    assert!(metrics.contains("rouse_tls_secrets{use=\"server\",state=\"unusable\"} 4"), "{metrics}");
    let told = format!("{}{}{metrics}", interceptor.state().await, interceptor.log());
    for line in [&good, &first, &other].iter().flat_map(|(_, key)| key.lines().filter(|line| !line.starts_with('-'))) {
        assert!(!told.contains(line), "a key is told");
    }
    world.object(&secret("torn", "server", &first));
    eventually("the problem is gone", async || {
        let metrics = interceptor.metrics().await;
        metrics.contains("rouse_tls_secrets{use=\"server\",state=\"unusable\"} 3").then_some(())
    })
    .await;
}

#[tokio::test]
async fn of_two_secrets_for_a_name_the_older_is_served_and_the_other_told() {
    let authority = Authority::new();
    let world = world(Some("http"));
    let [older, younger, default] = [HOST, HOST, "default.test"].map(|name| authority.pair(&[name]));
    let aged = |name: &str, pair, created: &str| {
        let mut secret = secret(name, "server", pair);
        secret["metadata"]["creationTimestamp"] = created.into();
        secret
    };
    world.object(&secret("default", "server", &default));
    world.object(&aged("a", &younger, "2026-02-01T00:00:00Z"));
    world.object(&aged("b", &older, "2026-01-01T00:00:00Z"));
    let interceptor = serving(&world, &[]).await;
    assert_eq!(shown(&authority, &interceptor, HOST).await, Some(leaf(&older)));
    let problem = interceptor.problem("Secret shop/a").await;
    assert!(problem.contains("is not served for app.test: Secret shop/b is older"), "{problem}");
    world.remove("Secret", "b");
    is_shown(&authority, &interceptor, HOST, &younger).await;
}

#[tokio::test]
async fn secrets_without_the_label_or_of_other_namespaces_are_not_served() {
    let authority = Authority::new();
    let world = world(Some("http"));
    let [plain, named, elsewhere] = ["plain.test", "named.test", "elsewhere.test"].map(|name| authority.pair(&[name]));
    let unlabelled = |name: &str, pair| {
        let mut secret = secret(name, "", pair);
        secret["metadata"]["labels"] = json!({});
        secret
    };
    world.object(&unlabelled("plain", &plain));
    world.object(&unlabelled("default", &named));
    let mut other = secret("elsewhere", "server", &elsewhere);
    other["metadata"]["namespace"] = "other".into();
    world.object(&other);
    let interceptor = serving(&world, &[("ROUSE_TLS_SECRETS", "third/*")]).await;
    assert_eq!(shown(&authority, &interceptor, "named.test").await, Some(leaf(&named)), "it was named for itself");
    assert_eq!(shown(&authority, &interceptor, "plain.test").await, None);
    assert_eq!(shown(&authority, &interceptor, "elsewhere.test").await, None);
}
