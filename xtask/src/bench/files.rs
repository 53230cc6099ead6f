//! Where benches leave what they have found.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Writes files of a folder, by their names; makes it if it is not there.
pub(crate) fn write<const N: usize>(folder: &Path, files: [(&str, String); N]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in files {
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name} in {}", folder.display()))?;
    }
    Ok(())
}
