//! Embeds the objects that `cargo xtask build-ebpf` has built, if all are there; builds without them everywhere else.

use std::{env, fs, path::PathBuf};

/// `xtask` has the same list.
const OBJECTS: [&str; 5] = ["own", "count", "hold", "queue", "steer"];

fn main() {
    println!("cargo:rustc-check-cfg=cfg(ebpf_object)");
    println!("cargo:rerun-if-env-changed=ROUSE_EBPF_OBJECTS");
    let given = env::var_os("ROUSE_EBPF_OBJECTS").filter(|path| !path.is_empty()).map(PathBuf::from);
    let required = given.is_some();
    let folder = given.unwrap_or_else(built);
    // The folder, not its files: a file that is missing would count as changed in every build.
    if folder.is_dir() {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    let missing = OBJECTS.iter().find(|object| !folder.join(object).is_file());
    if let Some(missing) = missing {
        assert!(!required, "ROUSE_EBPF_OBJECTS={}: expected a folder with an object {missing}", folder.display());
        return;
    }
    println!("cargo:rustc-cfg=ebpf_object");
    println!("cargo:rustc-env=ROUSE_EBPF_FOLDER={}", folder.display());
}

/// Where xtask puts them.
fn built() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo tells a build script its folder");
    let folder = PathBuf::from(manifest).join("../target/bpf");
    _ = fs::create_dir_all(&folder);
    folder
}
