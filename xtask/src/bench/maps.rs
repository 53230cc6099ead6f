//! `cargo xtask bench maps`: how long it takes until the kernel's maps are in step with a hundred thousand endpoints, and with one change
//! among them.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    bench::{files, machine},
    build_ebpf, process,
};

/// Columns of the table, and where the program beside it says them, with as many decimals.
const COLUMNS: [(&str, &str, usize); 11] = [
    ("Services", "/services", 0),
    ("objects in the index, ms", "/indexMs", 1),
    ("pods' addresses in the map, ms", "/mapsMs", 1),
    ("Services' addresses in the map, ms", "/holdMs", 1),
    ("memory of the objects, MiB", "/objectsMiB", 1),
    ("of all that is made of them, MiB", "/residentMiB", 1),
    ("a pod goes, another comes, ms", "/endpointMs", 2),
    ("the slowest of these", "/endpointWorstMs", 2),
    ("a Service gets cold or warm, ms", "/coldMs", 2),
    ("the slowest of these", "/coldWorstMs", 2),
    ("read back, ms", "/repairMs", 1),
];

/// Arguments of `bench maps`.
#[derive(Debug, clap::Args)]
pub(crate) struct MapsArgs {
    /// Folder for the results.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// Runs the bench.
pub(crate) fn run(root: &Path, args: &MapsArgs) -> Result<()> {
    let disturbance = machine::disturbance();
    build_ebpf::build(root)?;
    let mut command = process::cargo(root);
    command.args(["run", "--quiet", "--release", "--package", "dataplane", "--example", "maps"]);
    let text = process::output(&mut command)?;
    let parse = |line| serde_json::from_str(line).with_context(|| format!("expected a line of JSON, not {line}"));
    let measured: Vec<Value> = text.lines().map(parse).collect::<Result<_>>()?;
    let page = page(&measured, disturbance.as_deref());
    let json = json!({ "machine": machine::describe(), "measured": measured });
    let out = root.join(&args.out);
    files::write(&out, [("maps.md", page.clone()), ("maps.json", format!("{json:#}\n"))])?;
    println!("\n{page}\nwritten to {}", out.display());
    Ok(())
}

fn page(measured: &[Value], disturbance: Option<&str>) -> String {
    let mut page = format!("# Maps bench\n\nMachine: {}.\n\n", machine::describe());
    page.push_str(
        "100,000 endpoints in slices of 100, of so many Services with a direct route each. From objects, as a watch hands them over, to the \
         kernel's maps: those of level `self`, which have all pods' addresses, and those of the hold, which have the Services'. Memory is \
         what the process has grown by. Changes are made one by one, from the object to the map; the median of 51.\n\n",
    );
    let heads: Vec<_> = COLUMNS.iter().map(|(head, ..)| *head).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(page, "| {} |\n|{}", heads.join(" | "), "---|".repeat(COLUMNS.len()));
    for line in measured {
        let cell = |(_, at, decimals): (&str, &str, usize)| {
            format!("{:.decimals$}", line.pointer(at).and_then(Value::as_f64).unwrap_or(f64::NAN))
        };
        let _ = writeln!(page, "| {} |", COLUMNS.map(cell).join(" | "));
    }
    if let Some(disturbance) = disturbance {
        let _ = writeln!(page, "\n- {disturbance}");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_row_with_the_decimals_of_its_columns() {
        let line = json!({
            "services": 1000, "indexMs": 25.04, "mapsMs": 1.0, "holdMs": 2.0, "objectsMiB": 20.0, "residentMiB": 33.26, "endpointMs": 0.123,
            "endpointWorstMs": 4.0, "coldMs": 0.5, "coldWorstMs": 5.0, "repairMs": 100.0,
        });
        let page = page(&[line], Some("It was busy."));
        assert!(
            page.contains("\n| 1000 | 25.0 | 1.0 | 2.0 | 20.0 | 33.3 | 0.12 | 4.00 | 0.50 | 5.00 | 100.0 |\n"),
            "{page}"
        );
        assert!(page.ends_with("\n- It was busy.\n"));
    }
}
