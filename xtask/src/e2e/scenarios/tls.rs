//! TLS at the interceptors: certificates from Secrets, chosen by the name that a client asks for.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{
    client::{Client, NODE},
    tenant::{App, Metric, PROXY, SOON, SYSTEM, Tenant, route},
};
use crate::{cluster::Cluster, e2e::release, process};

/// Secret, and the name that its certificate is for: the first is the default, the second one of the stores.
const SECRETS: [(&str, &str); 2] = [("keda-tls-certs", "default.e2e"), ("e2e-more-certs", "named.e2e")];

/// The chart mounts both; each host gets its own certificate, and requests get through as without TLS.
pub(super) fn served(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "tls")?;
    tenant.apply(&App::new("app").never_encrypted().replicas(1).objects())?;
    let mut both = route("app", SECRETS[0].1, Metric::Concurrency(10));
    both["spec"]["rules"][0]["hosts"] = SECRETS.map(|(_, host)| host).into_iter().collect();
    tenant.apply(&[both])?;
    tenant.at_least("app", 1)?;
    let folder = cluster.place().folder().join("certificates");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (secret, host) in SECRETS {
        make(cluster, &folder, secret, host)?;
    }
    let values = ["interceptor.tls.enabled=true", &format!("interceptor.tls.certStores[0]={}", SECRETS[1].0)];
    release::upgrade(cluster, &values)?;
    let asked = SECRETS.iter().try_for_each(|(secret, host)| ask(cluster, &folder, secret, host));
    // Also after a failure: what comes next expects the defaults.
    release::install(cluster)?;
    asked?;
    for (secret, _) in SECRETS {
        cluster.kubectl(&["delete", "secret", "--namespace", SYSTEM, secret])?;
    }
    Client::new(cluster, SECRETS[0].1)?.until(200, SOON)?;
    tenant.finish()
}

/// A certificate that signs itself, as a Secret.
fn make(cluster: &Cluster, folder: &Path, secret: &str, host: &str) -> Result<()> {
    let (certificate, key) = (folder.join(format!("{secret}.crt")), folder.join(format!("{secret}.key")));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", &format!("/CN={host}"), "-addext", &format!("subjectAltName=DNS:{host}")]);
    process::output(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
    cluster.kubectl(&["delete", "secret", "--namespace", SYSTEM, "--ignore-not-found", secret])?;
    let (certificate, key) = (format!("--cert={}", certificate.display()), format!("--key={}", key.display()));
    cluster.kubectl(&["create", "secret", "tls", "--namespace", SYSTEM, secret, &certificate, &key]).map(drop)
}

/// A request that trusts this one certificate alone.
fn ask(cluster: &Cluster, folder: &Path, secret: &str, host: &str) -> Result<()> {
    let address = cluster.service_address(SYSTEM, PROXY)?;
    let (resolve, authority) = (format!("{host}:8443:{address}"), folder.join(format!("{secret}.crt")));
    let (authority, url) = (authority.display().to_string(), format!("https://{host}:8443/"));
    let args = ["--fail", "--max-time", "30", "--cacert", &authority, "--resolve", &resolve, &url];
    let body = cluster.curl(NODE, &args).with_context(|| format!("https for {host}"))?;
    ensure!(body.starts_with("Hello from app-"), "no pod answered: {body}");
    Ok(())
}
