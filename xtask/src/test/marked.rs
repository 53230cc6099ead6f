//! Tests that say in their source what they need, so that each is run by the command that has it, and none by another.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::sizes;

/// The reason that tests give which need an API server.
pub(crate) const CONTROL_PLANE: &str = "needs a control plane: run by cargo xtask e2e";

/// Names of all tests that need an API server.
pub(crate) fn control_plane(root: &Path) -> Result<Vec<String>> {
    let mut marked = Vec::new();
    for (path, text) in sizes::texts(root)? {
        // This program names the mark itself.
        if !path.starts_with("xtask") {
            marked.extend(names(&text, CONTROL_PLANE).with_context(|| path.display().to_string())?);
        }
    }
    Ok(marked)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_function_is_found_under_further_attributes() {
        let text = "#[tokio::test]\n#[ignore = \"it\"]\n#[x]\nasync fn a_b1() {}\n#[ignore = \"other\"]\nfn c() {}";
        assert_eq!(names(text, "it").unwrap(), ["a_b1"]);
        assert!(names("#[ignore = \"it\"]", "it").is_err());
    }
}
