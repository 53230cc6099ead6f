//! TLS at the interceptors: certificates from Secrets, mounted and read by watch, chosen by the name that a client asks for.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{
    client::{Client, NODE},
    tenant::{App, Metric, PROXY, SOON, SYSTEM, Tenant, route},
};
use crate::{cluster::Cluster, e2e::release, process};

/// Secret, and the name that its certificate is for: the first is the default, the second one of the stores.
const SECRETS: [(&str, &str); 2] = [("keda-tls-certs", "default.e2e"), ("e2e-more-certs", "named.e2e")];

/// Another one, which is not mounted: it is in the tenant's namespace.
const WATCHED: (&str, &str) = ("watched", "watched.e2e");

/// The chart mounts two and lets a third be read; each host gets its own certificate, and requests get through as without TLS.
pub(super) fn served(cluster: &Cluster) -> Result<()> {
    let tenant = Tenant::new(cluster, "tls")?;
    tenant.apply(&App::new("app").never_encrypted().replicas(1).objects())?;
    let mut both = route("app", SECRETS[0].1, Metric::Concurrency(10));
    both["spec"]["rules"][0]["hosts"] = [SECRETS[0], SECRETS[1], WATCHED].map(|(_, host)| host).into_iter().collect();
    tenant.apply(&[both])?;
    tenant.at_least("app", 1)?;
    let folder = cluster.place().folder().join("certificates");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (secret, host) in SECRETS {
        make(cluster, &folder, (SYSTEM, secret), host)?;
    }
    make(cluster, &folder, (&tenant.namespace, WATCHED.0), WATCHED.1)?;
    let store = format!("interceptor.tls.certStores[0]={}", SECRETS[1].0);
    let watched = format!("interceptor.tls.secrets[0]={}/{}", tenant.namespace, WATCHED.0);
    release::upgrade(cluster, &["interceptor.tls.enabled=true", &store, &watched])?;
    let mut all = SECRETS.iter().chain([&WATCHED]);
    let asked = all.try_for_each(|(secret, host)| ask(cluster, &folder, secret, host)).and_then(|()| {
        // Another certificate, without a restart and at every interceptor: nobody is asked twice.
        make(cluster, &folder, (&tenant.namespace, WATCHED.0), WATCHED.1)?;
        cluster.wait_for("the new certificate", SOON, || {
            Ok((0..8).all(|_| ask(cluster, &folder, WATCHED.0, WATCHED.1).is_ok()).then_some(()))
        })
    });
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
fn make(cluster: &Cluster, folder: &Path, (namespace, secret): (&str, &str), host: &str) -> Result<()> {
    let (certificate, key) = (folder.join(format!("{secret}.crt")), folder.join(format!("{secret}.key")));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", &format!("/CN={host}"), "-addext", &format!("subjectAltName=DNS:{host}")]);
    process::output(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
    cluster.kubectl(&["delete", "secret", "--namespace", namespace, "--ignore-not-found", secret])?;
    let (certificate, key) = (format!("--cert={}", certificate.display()), format!("--key={}", key.display()));
    cluster.kubectl(&["create", "secret", "tls", "--namespace", namespace, secret, &certificate, &key]).map(drop)
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
