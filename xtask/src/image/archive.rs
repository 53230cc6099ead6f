//! An OCI image of one layer as an archive: the same input gives the same bytes. `skopeo`, `ctr images import` and, by the list
//! it keeps besides (`manifest.json`), `docker load` read it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::cluster::hex;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The user of a program that needs no rights: that of "distroless" images.
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
/// What [`PASSWD`] calls `nonroot`, as Kubernetes wants to see it: by number.
pub(crate) const NONROOT: &str = "65532:65532";

/// What goes into an image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Its full name with tag.
    pub(crate) reference: String,
    /// Its architecture, in Go's words.
    pub(crate) arch: &'static str,
    /// The program it starts.
    pub(crate) entrypoint: Vec<String>,
    /// Who it runs as; empty is root.
    pub(crate) user: &'static str,
    /// Labels of its configuration.
    pub(crate) labels: Vec<(&'static str, String)>,
    /// Files of this machine and their paths in the image.
    pub(crate) files: Vec<(PathBuf, String)>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Digest of the image's manifest.
    pub(crate) digest: String,
    /// Bytes of the archive.
    pub(crate) size: u64,
}

/// A part of the image by its digest.
struct Blob {
    kind: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(kind: &'static str, bytes: Vec<u8>) -> Self {
        Self { kind, digest: hex(&Sha256::digest(&bytes)), bytes }
    }

    fn json(kind: &'static str, value: &Value) -> Self {
        Self::new(kind, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.kind, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len() })
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }
}

impl Image {
    /// Writes the archive in one step.
    pub(crate) fn write(&self, to: &Path) -> Result<Written> {
        let layer = Blob::new(LAYER, self.layer()?);
        let config = Blob::json(CONFIG, &self.config(&layer));
        let manifest = Blob::json(
            MANIFEST,
            &json!({
                "schemaVersion": 2, "mediaType": MANIFEST,
                "config": config.descriptor(), "layers": [layer.descriptor()],
            }),
        );
        let mut entry = manifest.descriptor();
        entry["platform"] = json!({ "architecture": self.arch, "os": "linux" });
        entry["annotations"] = json!({
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": self.reference.rsplit(':').next(),
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        let docker = json!([{ "Config": config.path(), "RepoTags": [self.reference], "Layers": [layer.path()] }]);
        let mut archive = Builder::new(Vec::new());
        file(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        file(&mut archive, "index.json", index.to_string().as_bytes(), 0o644)?;
        file(&mut archive, "manifest.json", docker.to_string().as_bytes(), 0o644)?;
        for blob in [&config, &manifest, &layer] {
            file(&mut archive, &blob.path(), &blob.bytes, 0o644)?;
        }
        let bytes = archive.into_inner()?;
        put(to, &bytes)?;
        Ok(Written { digest: format!("sha256:{}", manifest.digest), size: bytes.len() as u64 })
    }

    fn config(&self, layer: &Blob) -> Value {
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect();
        json!({
            // The moment an image is made is no part of it.
            "created": "1970-01-01T00:00:00Z",
            "architecture": self.arch,
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint, "User": self.user, "WorkingDir": "/",
                "Env": ["PATH=/"], "Labels": labels,
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
        })
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        folder(&mut layer, "etc/", 0o755)?;
        file(&mut layer, "etc/passwd", PASSWD.as_bytes(), 0o644)?;
        file(&mut layer, "etc/group", GROUP.as_bytes(), 0o644)?;
        folder(&mut layer, "tmp/", 0o1777)?;
        for (from, path) in &self.files {
            let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            file(&mut layer, path.trim_start_matches('/'), &bytes, 0o755)?;
        }
        Ok(layer.into_inner()?)
    }
}

/// Root's, as old as can be: nothing of the machine that writes it.
fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn file(to: &mut Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = header(EntryType::Regular, bytes.len() as u64, mode);
    to.append_data(&mut header, path, bytes).with_context(|| format!("cannot put {path} into the archive"))
}

fn folder(to: &mut Builder<Vec<u8>>, path: &str, mode: u32) -> Result<()> {
    let mut header = header(EntryType::Directory, 0, mode);
    to.append_data(&mut header, path, std::io::empty()).with_context(|| format!("cannot put {path} into the archive"))
}

fn put(to: &Path, bytes: &[u8]) -> Result<()> {
    let partial = to.with_extension(format!("{}.partial", std::process::id()));
    let mut file = fs::File::create(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("cannot put {} in place", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(program: &Path) -> Image {
        Image {
            reference: "docker.io/rouse/test:1".to_owned(),
            arch: "amd64",
            entrypoint: vec!["/test".to_owned()],
            user: NONROOT,
            labels: vec![("org.opencontainers.image.title", "test".to_owned())],
            files: vec![(program.to_owned(), "/test".to_owned())],
        }
    }

    #[test]
    fn the_same_program_gives_the_same_archive_whenever_and_wherever_it_is_written() {
        let folder = std::env::temp_dir().join(format!("rouse-xtask-archive-{}", std::process::id()));
        let mut written = Vec::new();
        for part in ["one", "two"] {
            let folder = folder.join(part);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("program"), "#!").unwrap();
            let to = folder.join("image.tar");
            let digest = image(&folder.join("program")).write(&to).unwrap();
            written.push((digest, fs::read(&to).unwrap()));
        }
        assert_eq!(written[0], written[1]);
        fs::write(folder.join("one/program"), "other").unwrap();
        let other = image(&folder.join("one/program")).write(&folder.join("one/image.tar")).unwrap();
        assert_ne!(other.digest, written[0].0.digest);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn every_part_lies_under_its_digest_and_has_no_owner_and_no_time() {
        let folder = std::env::temp_dir().join(format!("rouse-xtask-parts-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("program"), "#!").unwrap();
        image(&folder.join("program")).write(&folder.join("image.tar")).unwrap();
        let bytes = fs::read(folder.join("image.tar")).unwrap();
        let mut blobs = 0;
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
            let path = entry.path().unwrap().display().to_string();
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                let mut content = Vec::new();
                std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
                assert_eq!(hex(&Sha256::digest(&content)), digest);
                blobs += 1;
            }
        }
        assert_eq!(blobs, 3);
        fs::remove_dir_all(&folder).unwrap();
    }
}
