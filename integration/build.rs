//! Whether the interceptor of the tests has the eBPF programs in it: the same question as in dataplane's build script.

use std::{env, path::Path};

fn main() {
    println!("cargo:rustc-check-cfg=cfg(ebpf_object)");
    println!("cargo:rerun-if-env-changed=ROUSE_EBPF_OBJECTS");
    let folder = Path::new("../target/bpf");
    if folder.is_dir() {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    let given = env::var_os("ROUSE_EBPF_OBJECTS").is_some_and(|path| !path.is_empty());
    if given || ["own", "count", "hold", "queue", "steer"].iter().all(|object| folder.join(object).is_file()) {
        println!("cargo:rustc-cfg=ebpf_object");
    }
}
