//! Embeds the object that `cargo xtask build-ebpf` has built, if it is there; builds without it everywhere else.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rustc-check-cfg=cfg(ebpf_object)");
    println!("cargo:rerun-if-env-changed=ROUSE_EBPF_OBJECT");
    let object = match env::var_os("ROUSE_EBPF_OBJECT").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "ROUSE_EBPF_OBJECT={}: expected the path of a built object", path.display());
            println!("cargo:rerun-if-changed={}", path.display());
            path
        }
        None => built(),
    };
    if object.is_file() {
        println!("cargo:rustc-cfg=ebpf_object");
        println!("cargo:rustc-env=ROUSE_EBPF_OBJECT_PATH={}", object.display());
    }
}

/// Where xtask puts it. Watches the folder, not the file: a file that is missing would count as changed in every build.
fn built() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo tells a build script its folder");
    let folder = PathBuf::from(manifest).join("../target/bpf");
    if fs::create_dir_all(&folder).is_ok() {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    folder.join("interceptor-ebpf")
}
