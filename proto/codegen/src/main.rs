//! Writes the Rust types of `proto/*.proto` to the folder given as the only argument. Needs no protoc.

use std::{error::Error, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: proto-codegen OUT_DIR")?);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let descriptors = protox::compile(["externalscaler.proto", "counts.proto"], [&root])?;
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().out_dir(&out).compile_fds(descriptors)?;
    Ok(())
}
