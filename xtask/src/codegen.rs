//! `cargo xtask codegen`: generated code is committed; this writes it again or compares it with what a fresh run gives.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

mod values;

/// What is generated: the package whose program writes it, the arguments before the folder it writes to, and that folder.
const GENERATED: [(&str, &[&str], &str); 2] =
    [("proto-codegen", &[], "proto/src/gen"), ("operator", &["crds", "--folder"], "charts/http-add-on/files/crds")];

/// Arguments of `codegen`.
#[derive(Debug, clap::Args)]
pub(crate) struct CodegenArgs {
    /// Write nothing; fail when the committed code differs from what would be written.
    #[arg(long)]
    check: bool,
}

/// Writes the generated code, or compares it.
pub(crate) fn run(root: &Path, args: &CodegenArgs) -> Result<()> {
    let CodegenArgs { check } = args;
    if *check {
        return check_all(root);
    }
    for (package, args, folder) in GENERATED {
        generate(root, package, args, &root.join(folder))?;
        println!("codegen: wrote {folder}");
    }
    let (_, page) = values::page(root)?;
    fs::write(root.join(values::PAGE), page).with_context(|| format!("cannot write {}", values::PAGE))?;
    println!("codegen: wrote {}", values::PAGE);
    Ok(())
}

/// Fails with the names of the files that differ.
pub(crate) fn check_all(root: &Path) -> Result<()> {
    let mut stale = Vec::new();
    for (package, args, folder) in GENERATED {
        let fresh = root.join("target/codegen").join(package);
        if fresh.exists() {
            fs::remove_dir_all(&fresh).with_context(|| format!("cannot empty {}", fresh.display()))?;
        }
        generate(root, package, args, &fresh)?;
        stale.extend(differing(&fresh, &root.join(folder))?.into_iter().map(|name| format!("{folder}/{name}")));
    }
    let (committed, fresh) = values::page(root)?;
    if committed != fresh {
        stale.push(values::PAGE.to_owned());
    }
    if !stale.is_empty() {
        bail!("not what the generator writes: {}; run `cargo xtask codegen` and commit", stale.join(", "));
    }
    println!("codegen: all generated code is up to date");
    Ok(())
}

fn generate(root: &Path, package: &str, args: &[&str], folder: &Path) -> Result<()> {
    process::run(process::cargo(root).args(["run", "--quiet", "--package", package, "--"]).args(args).arg(folder))
}

/// Names of files that are in only one of the folders or differ.
fn differing(fresh: &Path, committed: &Path) -> Result<Vec<String>> {
    let names: BTreeSet<PathBuf> = names(fresh)?.into_iter().chain(names(committed)?).collect();
    let differ = |name: &PathBuf| fs::read(fresh.join(name)).ok() != fs::read(committed.join(name)).ok();
    Ok(names.into_iter().filter(differ).map(|name| name.display().to_string()).collect())
}

fn names(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    entries.map(|entry| Ok(PathBuf::from(entry?.file_name()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_a_missing_and_a_new_file_are_named() {
        let root = std::env::temp_dir().join(format!("xtask-codegen-{}", std::process::id()));
        let (fresh, committed) = (root.join("fresh"), root.join("committed"));
        for (folder, name, text) in [
            (&fresh, "same", "1"),
            (&committed, "same", "1"),
            (&fresh, "changed", "1"),
            (&committed, "changed", "2"),
            (&fresh, "new", "1"),
            (&committed, "gone", "1"),
        ] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join(name), text).unwrap();
        }
        assert_eq!(differing(&fresh, &committed).unwrap(), ["changed", "gone", "new"]);
        fs::remove_dir_all(&root).unwrap();
    }
}
