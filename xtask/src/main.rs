//! `cargo xtask`: the project's one build tool, one command a file. Reads the command line, runs it, sets the exit code.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool speaks on its terminal")]
#![expect(clippy::disallowed_types, reason = "a build tool has no tokio; std's clock is the one it measures with")]

mod bench;
mod build_ebpf;
mod ci;
mod cli;
mod cluster;
mod codegen;
mod demo;
mod e2e;
mod fuzz;
mod image;
mod kernels;
mod process;
mod report;
mod setup;
mod sizes;
mod test;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli.run(&root()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The top of the workspace, wherever the command was started.
fn root() -> PathBuf {
    // What cargo says as it runs this: a checkout that has been copied or moved may bring a program that was built elsewhere.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().expect("xtask lies in a folder of the workspace").to_owned()
}
