//! Tests that say in their source what they need, so that each is run by the command that has it, and none by another.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::sizes;

/// The reason that tests give which need an API server.
pub(crate) const CONTROL_PLANE: &str = "needs a control plane: run by cargo xtask e2e";

/// A marked test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marked {
    /// Its package.
    pub(crate) package: String,
    /// The function's name.
    pub(crate) name: String,
}

/// All that need an API server.
pub(crate) fn control_plane(root: &Path) -> Result<Vec<Marked>> {
    let mut marked = Vec::new();
    for (path, text) in sizes::texts(root)? {
        // This program names the mark itself.
        if !path.starts_with("xtask") {
            for name in names(&text, CONTROL_PLANE).with_context(|| path.display().to_string())? {
                marked.push(Marked { package: package(root, &path)?, name });
            }
        }
    }
    Ok(marked)
}

/// Their packages, each once.
pub(crate) fn packages(tests: &[Marked]) -> BTreeSet<&str> {
    tests.iter().map(|test| test.package.as_str()).collect()
}

/// Names of the functions that are ignored for this reason.
fn names(text: &str, reason: &str) -> Result<Vec<String>> {
    let mark = format!("#[ignore = \"{reason}\"]");
    let mut names = Vec::new();
    for (at, _) in text.match_indices(&mark) {
        let rest = &text[at + mark.len()..];
        let name = rest.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).map(|(name, _)| name.trim());
        let Some(name) = name.filter(|name| name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric()))
        else {
            bail!("no function follows `{mark}`");
        };
        names.push(name.to_owned());
    }
    Ok(names)
}

/// The package that a file belongs to.
fn package(root: &Path, path: &Path) -> Result<String> {
    let folder = path.ancestors().skip(1).find(|folder| root.join(folder).join("Cargo.toml").is_file());
    let manifest: PathBuf = root.join(folder.context("no Cargo.toml above")?).join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let name = text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    name.map(str::to_owned).with_context(|| format!("{} names no package", manifest.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_function_is_found_under_further_attributes() {
        let text = "#[tokio::test]\n#[ignore = \"it\"]\n#[x]\nasync fn a_b1() {}\n#[ignore = \"other\"]\nfn c() {}";
        assert_eq!(names(text, "it").unwrap(), ["a_b1"]);
        assert!(names("#[ignore = \"it\"]", "it").is_err());
    }

    #[test]
    fn a_file_belongs_to_the_package_above_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(package(root, Path::new("xtask/src/test/marked.rs")).unwrap(), "xtask");
    }
}
