//! Metrics by TLS, for those who may read them.

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use operator::{app, secure::Security};

use crate::support::{Namespace, SCHEMAS, start, within};

fn accounts(namespace: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: reader}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: other}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {namespace}}}
rules: [{{nonResourceURLs: [/metrics], verbs: [get]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {namespace}}}
subjects: [{{kind: ServiceAccount, name: reader, namespace: {namespace}}}]
"
    )
}

async fn token(namespace: &Namespace, account: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let spec = TokenRequestSpec { audiences: Vec::new(), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap().status.unwrap().token
}

#[tokio::test]
#[ignore = "needs a control plane: run by cargo xtask e2e"]
async fn metrics_are_read_by_tls_and_by_those_alone_who_may() {
    let _as_they_are = SCHEMAS.read().await;
    let namespace = Namespace::new("secured").await;
    namespace.apply_everywhere(&accounts(&namespace.name)).await;
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    let certificates = Some(folder.path().to_owned());
    let operator = start(app::Config {
        metrics_addr: Some(([127, 0, 0, 1], 0).into()),
        security: Security { tls: true, certificates, auth: true },
        ..namespace.config("secured")
    })
    .await;
    let addr = operator.metrics_addr.unwrap();

    let get = async |token: Option<String>, path: &str| {
        let mut config = kube::Config::new(format!("https://{addr}").parse().unwrap());
        config.root_cert = Some(vec![made.cert.der().to_vec()]);
        config.auth_info.token = token.map(Into::into);
        let client = Client::try_from(config).unwrap();
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        within("an answer", client.request_text(request)).await
    };
    let refused = |answer: Result<String, kube::Error>| match answer {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("{other:?}"),
    };
    let metrics = get(Some(token(&namespace, "reader").await), "/metrics").await.unwrap();
    assert!(metrics.contains("leader_election_master_status"), "{metrics}");
    assert_eq!(refused(get(Some(token(&namespace, "other").await), "/metrics").await), 403);
    assert_eq!(refused(get(Some("made-up".to_owned()), "/metrics").await), 401);
    assert_eq!(refused(get(None, "/metrics").await), 401);
    assert_eq!(refused(get(Some(token(&namespace, "reader").await), "/debug").await), 403);
    operator.end().await;
}
