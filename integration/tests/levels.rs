//! The same suite over the other level of the data plane: nothing that clients, pods or operators see may differ.

use std::process::Command;

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_whole_suite_passes_at_level_self() {
    let mut suite = Command::new(std::env::current_exe().unwrap());
    // Whether curl is there or not has been told at level none.
    suite.args(["--skip", "foreign::"]).env("ROUSE_TEST_DATAPLANE", "self");
    let output = suite.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result: ok."), "{text}");
}
