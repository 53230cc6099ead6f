//! The table of the chart's values: read off the comments in values.yaml, written between two marks of the chart's README.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail};

const VALUES: &str = "charts/http-add-on/values.yaml";
pub(super) const PAGE: &str = "charts/http-add-on/README.md";
const MARKS: (&str, &str) = ("<!-- values -->\n", "<!-- /values -->");

/// One value: its path, its default, what its comment says.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    path: String,
    default: String,
    text: String,
}

/// The README as it is, and as it should be.
pub(super) fn page(root: &Path) -> Result<(String, String)> {
    let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"));
    let committed = read(PAGE)?;
    let (before, rest) = committed.split_once(MARKS.0).with_context(|| format!("no {} in {PAGE}", MARKS.0.trim()))?;
    let (_, after) = rest.split_once(MARKS.1).with_context(|| format!("no {} in {PAGE}", MARKS.1))?;
    let fresh = format!("{before}{}{}{}{after}", MARKS.0, table(&rows(&read(VALUES)?)?), MARKS.1);
    Ok((committed, fresh))
}

fn table(rows: &[Row]) -> String {
    let mut text = "| value | default | what it does |\n|---|---|---|\n".to_owned();
    for Row { path, default, text: meaning } in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{path}` | `{default}` | {meaning} |");
    }
    text
}

/// The values that have a comment beginning with `# -- `, in their order. One without any, in itself or above, is an error.
fn rows(yaml: &str) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut above: Vec<(usize, &str)> = Vec::new();
    let mut comment = String::new();
    // The indent of the row whose default the following, deeper lines are.
    let mut described: Option<usize> = None;
    for line in yaml.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if content.is_empty() {
            comment.clear();
        } else if let Some(start) = content.strip_prefix("# -- ") {
            start.clone_into(&mut comment);
        } else if let Some(more) = content.strip_prefix("# ") {
            if !comment.is_empty() {
                comment = format!("{comment} {more}");
            }
        } else if let (Some(row), true) = (rows.last_mut(), described.is_some_and(|at| indent > at)) {
            let gap = if row.default.ends_with(':') { " " } else { ", " };
            row.default.push_str(if row.default.is_empty() { "" } else { gap });
            row.default.push_str(content);
        } else {
            let (key, default) = content.split_once(':').with_context(|| format!("neither key nor comment: {line}"))?;
            above.retain(|(at, _)| *at < indent);
            above.push((indent, key));
            described = (!comment.is_empty()).then_some(indent);
            let path = above.iter().map(|(_, key)| *key).collect::<Vec<_>>().join(".");
            if !comment.is_empty() {
                let text = std::mem::take(&mut comment);
                rows.push(Row { path, default: default.trim().to_owned(), text });
            } else if !default.is_empty() {
                bail!("{VALUES}: {path} has no comment that begins with `# -- `");
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_listed_with_path_default_and_comment() {
        let yaml = "# about the file\n\na:\n  # -- First\n  # line\n  b: 1\n  c:\n    # -- Second\n    d: \"\"\n# -- Third\ne:\n  f: 2\n  g:\n    - h\n";
        let row = |path: &str, default: &str, text: &str| Row {
            path: path.to_owned(),
            default: default.to_owned(),
            text: text.to_owned(),
        };
        let expected =
            [row("a.b", "1", "First line"), row("a.c.d", "\"\"", "Second"), row("e", "f: 2, g: - h", "Third")];
        assert_eq!(rows(yaml).unwrap(), expected);
    }

    #[test]
    fn a_value_without_a_comment_is_named() {
        let error = rows("a:\n  b: 1\n").unwrap_err().to_string();
        assert!(error.contains("a.b"), "{error}");
    }

    #[test]
    fn every_value_of_the_chart_is_in_the_table_of_its_page() {
        let (committed, fresh) = page(&crate::root()).unwrap();
        assert_eq!(committed, fresh, "run `cargo xtask codegen` and commit");
    }
}
