//! `operator crds`: the CustomResourceDefinitions as YAML, on standard output or as the files of the chart.

use std::{fs, io, path::Path};

use anyhow::Context as _;

/// Writes all definitions, one document each, to `out`.
pub fn print(out: &mut impl io::Write) -> anyhow::Result<()> {
    for (_, crd) in api::crd::all() {
        writeln!(out, "---")?;
        serde_yaml_ng::to_writer(&mut *out, &crd)?;
    }
    Ok(())
}

/// Writes each definition to a file of its own in `folder`, and nothing else there.
pub fn write(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, crd) in api::crd::all() {
        let path = folder.join(name);
        let text = serde_yaml_ng::to_string(&crd)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
