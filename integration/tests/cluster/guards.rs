//! What is read of a real API server only when settings ask for it: Secrets with certificates, and namespaces.

use integration::{CRDS, Cluster, Interceptor, eventually};
use serde_json::{Value, json};

use super::{HOST, answers, app, interceptor_of, pod, rules};
use crate::{
    secrets::{is_shown, shown},
    tls::Authority,
};

fn secret(cluster: &Cluster, name: &str, (certificate, key): &(String, String)) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": { "name": name, "namespace": cluster.namespace, "labels": { "http.keda.sh/tls": "server" } },
        "stringData": { "tls.crt": certificate, "tls.key": key },
    })
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn certificates_of_secrets_come_change_and_go_with_the_rights_that_the_chart_gives() {
    let _crds = CRDS.read().await;
    let cluster = Cluster::with_crds("secrets").await;
    app(&cluster).await;
    let authority = Authority::new();
    let [default, first, second] = ["default.test", HOST, HOST].map(|host| authority.pair(&[host]));
    cluster.apply(&secret(&cluster, "default", &default)).await;
    // Another one of the namespace, which it may not read.
    let other = authority.pair(&["other.test"]);
    cluster.apply(&secret(&cluster, "other", &other)).await;
    let mut allowed = rules();
    let some = json!({ "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["default", "app"], "verbs": ["get", "list", "watch"] });
    allowed.as_array_mut().unwrap().push(some);
    let namespace = &cluster.namespace;
    let env = [
        ("KEDA_HTTP_PROXY_TLS_ENABLED", "true"),
        ("KEDA_HTTP_PROXY_TLS_PORT", "0"),
        ("ROUSE_TLS_SECRETS", &*format!("{namespace}/app")),
        ("ROUSE_TLS_DEFAULT_SECRET", &*format!("{namespace}/default")),
    ];
    let interceptor = interceptor_of(&cluster, &allowed, &env).await;
    is_shown(&authority, &interceptor, "default.test", &default).await;
    assert_eq!(shown(&authority, &interceptor, HOST).await, None, "the default does not fit it");
    cluster.apply(&secret(&cluster, "app", &first)).await;
    is_shown(&authority, &interceptor, HOST, &first).await;
    cluster.apply(&secret(&cluster, "app", &second)).await;
    is_shown(&authority, &interceptor, HOST, &second).await;
    assert_eq!(shown(&authority, &interceptor, "other.test").await, None);
    cluster.delete(&secret(&cluster, "app", &second)).await;
    eventually("the certificate is gone", async || shown(&authority, &interceptor, HOST).await.is_none().then_some(()))
        .await;
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn the_annotation_of_a_namespace_says_which_hosts_its_routes_get() {
    let _crds = CRDS.read().await;
    let cluster = Cluster::with_crds("guard").await;
    let pod = pod(&cluster).await.answering("well");
    app(&cluster).await;
    cluster.apply(&cluster.slice("app", "http", pod.addr, true)).await;
    let annotated = |hosts: &str| {
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": cluster.namespace, "annotations": { "http.keda.sh/allowed-hosts": hosts } },
        })
    };
    let user = cluster.user("interceptor", &rules()).await;
    cluster.let_read_its_namespace(&user).await;
    let kubeconfig = cluster.kubeconfig(None, Some(&user));
    let env = [("ROUSE_HOST_GUARD", "allow-list")];
    let interceptor = Interceptor::start_in_with(&kubeconfig, &cluster.namespace, &env).await.is_ready().await;
    answers(&interceptor, HOST, 404).await;
    interceptor.problem("has no annotation http.keda.sh/allowed-hosts").await;
    cluster.apply(&annotated("*.test")).await;
    answers(&interceptor, HOST, 200).await;
    cluster.apply(&annotated("other.test")).await;
    answers(&interceptor, HOST, 404).await;
}
