//! Keys, certificates and tokens of a cluster, made by openssl: what is needed and no more. Valid for days; nobody keeps them.

use std::{fmt::Write as _, fs, io::Read as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    cluster::place::{Machine, Place, hex},
    process,
};

/// The most nodes a cluster can have.
pub(crate) const MOST_NODES: u8 = 2;
/// Port of the API server.
pub(crate) const PORT: u16 = 6443;
const CURVE: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
/// KEDA makes new certificates for itself three months before the old ones end.
const DAYS: [&str; 2] = ["-days", "365"];

/// Who speaks with the API server: the kubeconfig's name, the user, its group.
fn users() -> Vec<(String, String, &'static str)> {
    let mut users: Vec<_> = [
        ("admin", "admin", "system:masters"),
        ("kcm", "kcm", "system:masters"),
        ("scheduler", "system:kube-scheduler", ""),
        ("proxy", "system:kube-proxy", ""),
    ]
    .map(|(file, user, group)| (file.to_owned(), user.to_owned(), group))
    .to_vec();
    users.extend(
        (1..=MOST_NODES).map(|node| (format!("node{node}"), format!("system:node:node{node}"), "system:nodes")),
    );
    users
}

/// Makes all of it.
pub(crate) fn make(place: &Place) -> Result<()> {
    let pki = Pki { folder: place.pki() };
    fs::create_dir_all(&pki.folder).with_context(|| format!("cannot make {}", pki.folder.display()))?;
    for name in ["ca", "front-ca"] {
        pki.authority(name, name)?;
    }
    let address = Machine::ControlPlane.address();
    let server = format!(
        "IP:127.0.0.1,IP:{address},IP:10.96.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    );
    pki.leaf("apiserver", "ca", "/CN=kube-apiserver", Some(&server))?;
    pki.leaf("front-proxy", "front-ca", "/CN=front-proxy-client", None)?;
    pki.leaf("kubelet-client", "ca", "/O=system:masters/CN=kube-apiserver-kubelet-client", None)?;
    pki.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"])?;
    pki.openssl(&["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"])?;
    let authority = pki.openssl(&["base64", "-A", "-in", "ca.crt"])?;
    let mut tokens = String::new();
    for (file, user, group) in users() {
        let token = token()?;
        let config = kubeconfig(&format!("https://{address}:{PORT}"), authority.trim(), &token);
        fs::write(place.folder().join(format!("{file}.kubeconfig")), config)?;
        // Writing to a String cannot fail.
        let _ = writeln!(tokens, "{token},{user},{file},\"{group}\"");
    }
    fs::write(pki.folder.join("tokens.csv"), tokens).context("cannot write the tokens")
}

/// An authority and a certificate for KEDA's services, as it makes them itself.
pub(crate) fn make_keda(place: &Place, names: &str) -> Result<()> {
    let pki = Pki { folder: place.pki() };
    pki.authority("keda-ca", "KEDA")?;
    pki.leaf("keda", "keda-ca", "/CN=keda-operator", Some(names))
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex(&bytes))
}

fn kubeconfig(server: &str, authority: &str, token: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Config
clusters: [{{name: rouse, cluster: {{server: "{server}", certificate-authority-data: {authority}}}}}]
users: [{{name: rouse, user: {{token: "{token}"}}}}]
contexts: [{{name: rouse, context: {{cluster: rouse, user: rouse}}}}]
current-context: rouse
"#
    )
}

struct Pki {
    folder: PathBuf,
}

impl Pki {
    fn openssl(&self, args: &[&str]) -> Result<String> {
        process::output(Command::new("openssl").args(args).current_dir(&self.folder))
    }

    /// With an RSA key in the old form: KEDA reads no other.
    fn authority(&self, name: &str, subject: &str) -> Result<()> {
        let (key, file) = (format!("{name}.key"), format!("{name}.crt"));
        self.openssl(&["genrsa", "-traditional", "-out", &key, "2048"])?;
        let (subject, alternative) = (format!("/CN={subject}"), format!("subjectAltName=DNS:{subject}"));
        let mut args = vec!["req", "-x509", "-subj", &subject, "-key", &key, "-out", &file];
        args.extend(DAYS);
        args.extend(["-addext", "basicConstraints=critical,CA:TRUE", "-addext", &alternative]);
        args.extend(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
        self.openssl(&args).map(drop)
    }

    fn leaf(&self, name: &str, authority: &str, subject: &str, names: Option<&str>) -> Result<()> {
        let (key, request) = (format!("{name}.key"), format!("{name}.csr"));
        let mut args = vec!["req", "-nodes", "-subj", subject, "-keyout", &key, "-out", &request];
        args.extend(CURVE);
        self.openssl(&args)?;
        let extensions = format!("{name}.ext");
        let names = names.map_or_else(String::new, |names| format!("subjectAltName={names}\n"));
        fs::write(self.folder.join(&extensions), format!("extendedKeyUsage=serverAuth,clientAuth\n{names}"))?;
        let (signer, signers_key, file) =
            (format!("{authority}.crt"), format!("{authority}.key"), format!("{name}.crt"));
        let mut args = vec!["x509", "-req", "-in", &request, "-CA", &signer, "-CAkey", &signers_key, "-CAcreateserial"];
        args.extend(DAYS);
        args.extend(["-extfile", &extensions, "-out", &file]);
        self.openssl(&args).map(drop)
    }
}
