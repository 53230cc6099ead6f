//! `cargo xtask sizes`: what of the style a program can see in the source files: sizes, first lines, names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// Lines before its tests that no file may exceed.
const LARGEST: usize = 500;
/// Lines that nine of ten files may not exceed.
const NINE_OF_TEN: usize = 400;
/// Lines that half of the files may not exceed.
const HALF: usize = 150;
/// Lines of a `main.rs`.
const MAIN: usize = 60;
/// Folders that hold nothing we wrote.
const FOREIGN: [&str; 4] = ["target", ".git", ".rouse", "gen"];
/// File names that say nothing.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "helper", "helpers", "misc", "common"];
/// The only file that may name the swap behind every snapshot.
const SWAP: &str = "runtime/src/snapshot.rs";

/// A source file, as far as the style concerns it.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    text: String,
}

/// Prints the figures, and fails naming each file that is not as the style wants it.
pub(crate) fn run(root: &Path) -> Result<()> {
    let sources = sources(root)?;
    let mut lines: Vec<usize> = sources.iter().map(Source::lines).collect();
    lines.sort_unstable();
    let at = |hundredths: usize| lines.get(lines.len() * hundredths / 100).copied().unwrap_or(0);
    let (half, nine_of_ten) = (at(50), at(90));
    println!("sizes: {} files, median {half} lines, p90 {nine_of_ten}, tests not counted", lines.len());
    let mut complaints: Vec<String> = sources.iter().flat_map(Source::complaints).collect();
    if half > HALF {
        complaints.push(format!("the median file has {half} lines, expected at most {HALF}"));
    }
    if nine_of_ten > NINE_OF_TEN {
        complaints.push(format!("one file in ten has more than {nine_of_ten} lines, expected {NINE_OF_TEN}"));
    }
    if !complaints.is_empty() {
        bail!("{} complaints:\n  {}", complaints.len(), complaints.join("\n  "));
    }
    Ok(())
}

impl Source {
    /// Lines before the tests.
    fn lines(&self) -> usize {
        let is_test = |line: &str| line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test");
        self.text.lines().take_while(|line| !is_test(line)).count()
    }

    fn complaints(&self) -> Vec<String> {
        let Self { path, text } = self;
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let mut complaints = Vec::new();
        let mut complain = |what: String| complaints.push(format!("{}: {what}", path.display()));
        let limit = if path.ends_with("src/main.rs") { MAIN } else { LARGEST };
        if self.lines() > limit {
            complain(format!("{} lines before its tests, expected at most {limit}", self.lines()));
        }
        if !text.starts_with("//!") {
            complain("line 1 is not `//!`, expected what the file owns, who writes it, who reads it".to_owned());
        }
        if stem == "mod" {
            complain("expected `foo.rs` beside `foo/`, not `mod.rs`".to_owned());
        }
        if EMPTY_NAMES.contains(&stem) {
            complain(format!("`{stem}` says nothing, expected a noun of the domain"));
        }
        if text.contains("ArcSwap") && !path.ends_with(SWAP) && !path.starts_with("xtask") {
            complain(format!("names ArcSwap, expected only in {SWAP}"));
        }
        for mark in ["TODO", "FIXME", "XXX"] {
            let open = |line: &str| line.contains("//") && line.contains(mark) && !line.contains("TODO(#");
            if let Some(number) = text.lines().position(open) {
                complain(format!("line {}: {mark} without an issue, expected TODO(#n)", number + 1));
            }
        }
        complaints
    }
}

/// All source files that people wrote, by their path below `root`, with their text.
pub(crate) fn texts(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    Ok(sources(root)?.into_iter().map(|Source { path, text }| (path, text)).collect())
}

/// All source files that people wrote, by their path below `root`.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            if entry.file_type()?.is_dir() {
                if !FOREIGN.iter().any(|foreign| name == *foreign) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                found.push(Source { path: path.strip_prefix(root).unwrap_or(&path).to_owned(), text });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.to_owned() }
    }

    #[test]
    fn tests_do_not_count_as_lines_of_a_file() {
        let text = format!("//! Doc.\nfn f() {{}}\n#[cfg(test)]\nmod tests {{{}}}\n", "\n".repeat(1000));
        let source = source("core/src/f.rs", &text);
        assert_eq!(source.lines(), 2);
        assert_eq!(source.complaints(), Vec::<String>::new());
    }

    #[test]
    fn each_breach_is_named_with_its_file() {
        let complaints = |path: &str, text: &str| source(path, text).complaints().join("\n");
        assert!(complaints("a/src/long.rs", &format!("//! Doc.{}", "\n".repeat(501))).contains("501 lines"));
        assert!(complaints("a/src/main.rs", &format!("//! Doc.{}", "\n".repeat(61))).contains("at most 60"));
        assert!(complaints("a/src/bare.rs", "fn f() {}").contains("line 1"));
        assert!(complaints("a/src/mod.rs", "//! Doc.").contains("foo.rs"));
        assert!(complaints("a/src/utils.rs", "//! Doc.").contains("`utils`"));
        assert!(complaints("a/src/f.rs", concat!("//! Doc.\n// TO", "DO later")).contains("line 2"));
        assert_eq!(complaints("a/src/f.rs", "//! Doc.\n// TODO(#7): later"), "");
    }
}
