//! The images' archives as foreign readers see them: skopeo, as an OCI archive and as one of Docker's.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{image::archive::NONROOT, process};

/// Reads an archive in both ways.
pub(super) fn read(archive: &Path) -> Result<()> {
    let mut layers = Vec::new();
    for kind in ["oci-archive", "docker-archive"] {
        let config = inspect(&format!("{kind}:{}", archive.display()))?;
        ensure!(config["config"]["User"] == NONROOT, "{} runs as {}", archive.display(), config["config"]["User"]);
        layers.push(config["rootfs"]["diff_ids"].clone());
    }
    ensure!(layers[0] == layers[1] && layers[0].is_array(), "{} has two contents: {layers:?}", archive.display());
    Ok(())
}

fn inspect(image: &str) -> Result<Value> {
    let text = process::output(Command::new("skopeo").args(["inspect", "--config", image]))?;
    serde_json::from_str(&text).with_context(|| format!("skopeo wrote no JSON about {image}"))
}
