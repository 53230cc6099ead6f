//! Which test programs need root, and which tests are in them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{process, test::marked};

/// A test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suite {
    /// Its package and its own name.
    pub(super) name: String,
    /// Where cargo would start it.
    pub(super) folder: PathBuf,
    pub(super) program: PathBuf,
    /// Those of its tests that need root.
    pub(super) tests: Vec<String>,
}

/// Builds all tests, as `cargo xtask test` does, and lists those that need root.
pub(super) fn build(root: &Path) -> Result<Vec<Suite>> {
    let mut cargo = process::cargo(root);
    cargo.args(["test", "--no-run", "--lib", "--bins", "--tests", "--message-format", "json-render-diagnostics"]);
    let messages = process::output(cargo.stderr(Stdio::inherit()))?;
    let elsewhere = marked::control_plane(root)?;
    let mut suites = Vec::new();
    for mut suite in messages.lines().filter_map(suite) {
        suite.tests = tests(&suite.program)?;
        suite.tests.retain(|test| !elsewhere.iter().any(|name| test.ends_with(name)));
        if !suite.tests.is_empty() {
            suites.push(suite);
        }
    }
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(suites)
}

/// The test program that a message of cargo's tells of.
fn suite(message: &str) -> Option<Suite> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    let program = message["executable"].as_str().filter(|_| is_test)?;
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let name = format!("{}/{}", folder.file_name()?.to_str()?, message["target"]["name"].as_str()?);
    Some(Suite { name, folder, program: program.into(), tests: Vec::new() })
}

fn tests(program: &Path) -> Result<Vec<String>> {
    let listed = process::output(Command::new(program).args(["--list", "--ignored", "--format", "terse"]));
    let listed = listed.context("a test program does not list its tests")?;
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_other_programs() {
        let message = r#"{"reason":"compiler-artifact","manifest_path":"/w/dataplane/Cargo.toml",
            "target":{"name":"hold"},"profile":{"test":true},"executable":"/w/target/debug/deps/hold-1"}"#;
        let found = suite(message).unwrap();
        assert_eq!((found.name.as_str(), found.folder.as_path()), ("dataplane/hold", Path::new("/w/dataplane")));
        assert_eq!(suite(&message.replace("\"test\":true", "\"test\":false")), None);
        assert_eq!(suite("warning: not JSON"), None);
    }
}
