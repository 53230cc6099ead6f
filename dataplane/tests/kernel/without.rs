//! A build without the object.
#![cfg(not(ebpf_object))]

use dataplane::{Config, Level, Mode, open};

#[test]
fn one_is_told_how_to_get_an_object() {
    let (dataplane, level, why) = open(Config::default()).unwrap();
    assert_eq!((dataplane.level(), level), (Level::None, Level::None));
    assert_eq!(why, "no eBPF programs were built in: run `cargo xtask build-ebpf` and build again");
    let error =
        open(Config { mode: Mode::SelfLevel, required: true, cgroup: None }).map(|(_, level, _)| level).unwrap_err();
    assert_eq!(error.to_string(), format!("data plane level self is required: {why}"));
}
