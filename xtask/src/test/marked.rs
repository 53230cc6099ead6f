//! Tests that say in their source what they need, so that each is run by the command that has it, and none by another.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::sizes;

/// The reason that tests give which need an API server.
pub(crate) const CONTROL_PLANE: &str = "needs a control plane: run by cargo xtask e2e";

/// The reason of tests that need root and a kernel not older than that which is named there.
const KERNEL: (&str, &str) = ("needs root and Linux ", ": run by cargo xtask test");

/// Names of all tests that need an API server.
pub(crate) fn control_plane(root: &Path) -> Result<Vec<String>> {
    let marked = marked(root, &format!("\"{CONTROL_PLANE}\"]"))?;
    Ok(marked.into_iter().map(|(name, _)| name).collect())
}

/// Names of all tests that need a kernel of some version, and which.
pub(crate) fn kernel(root: &Path) -> Result<Vec<(String, (u32, u32))>> {
    let (before, after) = KERNEL;
    let of = |(name, rest): (String, String)| {
        let version = rest.split_once(after).and_then(|(version, _)| parsed(version));
        Ok((name, version.with_context(|| format!("no version in `{before}{rest}`"))?))
    };
    marked(root, &format!("\"{before}"))?.into_iter().map(of).collect()
}

/// The first two numbers of a kernel's version.
pub(crate) fn parsed(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-', '+']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn marked(root: &Path, reason: &str) -> Result<Vec<(String, String)>> {
    let mut marked = Vec::new();
    for (path, text) in sizes::texts(root)? {
        // This program names the mark itself.
        if !path.starts_with("xtask") {
            marked.extend(names(&text, reason).with_context(|| path.display().to_string())?);
        }
    }
    Ok(marked)
}

/// Names of the functions that are ignored for a reason that begins so, and how the line goes on.
fn names(text: &str, reason: &str) -> Result<Vec<(String, String)>> {
    let mark = format!("#[ignore = {reason}");
    let mut names = Vec::new();
    for (at, _) in text.match_indices(&mark) {
        let rest = &text[at + mark.len()..];
        let line = rest.lines().next().unwrap_or_default();
        let name = rest.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).map(|(name, _)| name.trim());
        let Some(name) = name.filter(|name| name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric()))
        else {
            bail!("no function follows `{mark}`");
        };
        names.push((name.to_owned(), line.to_owned()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_function_is_found_under_further_attributes() {
        let text = "#[tokio::test]\n#[ignore = \"it\"]\n#[x]\nasync fn a_b1() {}\n#[ignore = \"other\"]\nfn c() {}";
        assert_eq!(names(text, "\"it\"]").unwrap(), [("a_b1".to_owned(), String::new())]);
        assert_eq!(names(text, "\"ot").unwrap(), [("c".to_owned(), "her\"]".to_owned())]);
        assert!(names("#[ignore = \"it\"]", "\"it\"]").is_err());
    }

    #[test]
    fn a_kernels_version_is_its_first_two_numbers() {
        assert_eq!(parsed("5.10.0-32-cloud-amd64"), Some((5, 10)));
        assert_eq!(parsed("6.6"), Some((6, 6)));
        assert_eq!(parsed("6"), None);
    }
}
