//! `cargo xtask kernels`: the tests that need root, on kernels of older Debian releases, each in a virtual machine that sees this
//! machine's files. No network, no image: a kernel, its modules, and the test programs as they are built here.

mod machine;
mod outcome;
mod suites;

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf,
    kernels::{machine::Machine, outcome::Outcomes, suites::Suite},
    process,
    report::{Outcome, Report},
    setup,
    test::marked,
};

/// Kernels, and the Debian releases that have them.
const KERNELS: [(&str, &str); 3] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie")];
/// Where the machines' logs are kept.
const FOLDER: &str = "target/kernels";

/// Arguments of `kernels`.
#[derive(Debug, clap::Args)]
pub(crate) struct KernelsArgs {
    /// Tests: those whose `package/program::name` has one of these in it. All that need root, if none is named.
    tests: Vec<String>,
    /// The kernel; all of them, one after the other, if none is named.
    #[arg(long, value_parser = KERNELS.map(|(kernel, _)| kernel))]
    only: Option<String>,
    /// What runs the machine, in QEMU's words: `kvm` is faster where it works.
    #[arg(long, default_value = "tcg,thread=multi")]
    accel: String,
    /// Minutes that one machine may take.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

/// `cargo xtask kernels`.
pub(crate) fn run(root: &Path, args: &KernelsArgs) -> Result<()> {
    if !process::is_root() || !cfg!(target_arch = "x86_64") {
        bail!("kernels are tried as root on an amd64 machine: it shares its files with the virtual ones");
    }
    let lacks = setup::for_test(root);
    if !lacks.lines().is_empty() {
        bail!("the tests need what this machine lacks: {}", lacks.lines().join("; "));
    }
    let virtiofsd = setup::for_kernels()?;
    build_ebpf::build(root)?;
    let suites = chosen(suites::build(root)?, &args.tests);
    if suites.is_empty() {
        bail!("no test that needs root has one of {:?} in its name", args.tests);
    }
    let newer = marked::kernel(root)?;
    let mut report = Report::default();
    for (name, release) in KERNELS.into_iter().filter(|(name, _)| args.only.as_deref().is_none_or(|only| only == *name))
    {
        let kernel = setup::kernel(root, release)?;
        println!("\n── Linux {} (Debian {release})", kernel.version);
        let folder = root.join(FOLDER).join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut outcomes = Outcomes::default();
        let (suites, newer) = split(&suites, &newer, &kernel.version);
        let machine = Machine { kernel: &kernel, accelerator: &args.accel, virtiofsd, folder: &folder };
        let ran = machine.run(&script(&suites), Duration::from_secs(args.minutes * 60), |line| {
            println!("{line}");
            outcomes.read(line, Instant::now());
        });
        for suite in &suites {
            let (outcome, took) = outcomes.of(suite, ran.as_ref().err());
            report.add(&format!("{name} {}", suite.name), outcome, took);
        }
        if !newer.is_empty() {
            report.add(&format!("{name} of later kernels"), Outcome::NotRun(newer.join(", ")), Duration::ZERO);
        }
    }
    println!("\nWhat ran, and where (logs in {FOLDER}):\n{}", report.table());
    report.verdict()
}

/// The suites with those tests alone that were asked for.
fn chosen(mut suites: Vec<Suite>, words: &[String]) -> Vec<Suite> {
    for Suite { name, tests, .. } in &mut suites {
        tests.retain(|test| words.is_empty() || words.iter().any(|word| format!("{name}::{test}").contains(word)));
    }
    suites.retain(|suite| !suite.tests.is_empty());
    suites
}

/// The suites with those tests alone that a kernel is not too old for, and the names of the others.
fn split(suites: &[Suite], newer: &[(String, (u32, u32))], kernel: &str) -> (Vec<Suite>, Vec<String>) {
    let (mut suites, mut left) = (suites.to_vec(), Vec::new());
    for Suite { name, tests, .. } in &mut suites {
        tests.retain(|test| {
            let needs =
                newer.iter().find(|(newer, _)| test.rsplit("::").next() == Some(newer)).map(|(_, needs)| *needs);
            let too_old = needs.filter(|needs| marked::parsed(kernel).is_some_and(|version| version < *needs));
            if let Some((major, minor)) = too_old {
                left.push(format!("{name}::{test} ({major}.{minor})"));
            }
            too_old.is_none()
        });
    }
    suites.retain(|suite| !suite.tests.is_empty());
    (suites, left)
}

/// Runs the suites one after the other, one test at a time, and once more what has failed: an emulated machine may be too slow for
/// what keepalives, heartbeats and clients' own time-outs allow.
fn script(suites: &[Suite]) -> String {
    let mut script =
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root ROUSE_TEST_SLOWNESS=5\n".to_owned();
    for Suite { name, folder, program, tests } in suites {
        let (folder, program, begins) = (folder.display(), program.display(), outcome::begins(name));
        let tests = tests.join(" ");
        let run = format!("'{program}' --ignored --test-threads=1 --color=never --exact");
        // Writing to a String cannot fail.
        let _ = write!(
            script,
            "{begins}\ncd '{folder}'; export CARGO_MANIFEST_DIR='{folder}'\n{run} {tests} | tee /run/told\n\
             again=$(sed -n 's/^---- \\(.*\\) stdout ----$/\\1/p' /run/told)\n\
             [ -z \"$again\" ] || {{ {AGAIN}; {run} $again; }}\n",
            AGAIN = outcome::again(),
        );
    }
    // The first process may not end.
    script.push_str("busybox poweroff -f\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_chosen_by_words_and_kept_from_kernels_that_are_too_old() {
        let tests = ["a::old", "a::new"].map(str::to_owned).to_vec();
        let suite = Suite { name: "p/s".to_owned(), folder: "/".into(), program: "/s".into(), tests };
        assert_eq!(chosen(vec![suite.clone()], &["p/s::a::o".to_owned()])[0].tests, ["a::old"]);
        assert!(chosen(vec![suite.clone()], &["else".to_owned()]).is_empty());
        let newer = [("new".to_owned(), (5, 17))];
        let (suites, left) = split(std::slice::from_ref(&suite), &newer, "5.10.0-32-cloud-amd64");
        assert_eq!(
            (suites[0].tests.as_slice(), left.as_slice()),
            (&["a::old".to_owned()][..], &["p/s::a::new (5.17)".to_owned()][..])
        );
        assert_eq!(split(&[suite], &newer, "5.17.1").0[0].tests.len(), 2);
    }
}
