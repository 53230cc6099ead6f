//! The table of differences from the add-on: each row names tests that show it, and those must be there.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// The page.
const PAGE: &str = "docs/compatibility.md";

/// The last column of its tables.
const COLUMN: &str = "tests";

/// Fails with the rows that name no test, or one that is not there.
pub(crate) fn run(root: &Path) -> Result<()> {
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let files = process::output(std::process::Command::new("git").arg("-C").arg(root).args(["ls-files", "*.rs"]))?;
    let mut there = BTreeSet::new();
    for file in files.lines() {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        there.extend(functions(&text).map(str::to_owned));
    }
    let wrong = wrong(&page, &there);
    if !wrong.is_empty() {
        bail!("{PAGE}: {}", wrong.join("; "));
    }
    println!("compatibility: {} differences, each with its tests", rows(&page).count());
    Ok(())
}

/// What is wrong with which row.
fn wrong(page: &str, there: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in rows(page) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let names: Vec<_> = cells.last().into_iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        if names.is_empty() {
            wrong.push(format!("no test is named for {:?}", cells[0]));
        }
        let missing = names.into_iter().filter(|name| !there.contains(*name));
        wrong.extend(missing.map(|name| format!("there is no test {name}")));
    }
    wrong
}

/// The rows of tables that have the column.
fn rows(page: &str) -> impl Iterator<Item = &str> {
    let mut is_ours = false;
    page.lines().filter(move |line| {
        let is_row = line.starts_with('|');
        let is_head = is_row && line.trim_matches('|').rsplit('|').next().is_some_and(|cell| cell.trim() == COLUMN);
        is_ours = is_head || is_row && is_ours;
        is_row && is_ours && !is_head && !line.starts_with("|---")
    })
}

fn functions(text: &str) -> impl Iterator<Item = &str> {
    let names = text.match_indices("fn ").map(|(at, found)| &text[at + found.len()..]);
    names.filter_map(|rest| rest.split_once(['(', '<']).map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "text\n\n| a | tests |\n|---|---|\n| one | `first`, `second` |\n| two | |\n\n| b | c |\n|---|---|\n| 1 | `x` |\n";

    #[test]
    fn a_row_without_a_test_or_with_one_that_is_not_there_is_told() {
        let there = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let known: BTreeSet<_> = functions("async fn first() {}\nfn second<T>() {}").map(str::to_owned).collect();
        assert_eq!(wrong(PAGE, &known), ["no test is named for \"two\""]);
        assert_eq!(wrong(PAGE, &there(&["first"])), ["there is no test second", "no test is named for \"two\""]);
    }
}
