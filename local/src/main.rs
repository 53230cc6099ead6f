//! The `rouse-local` process: command line, runtime, exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use local::{
    args::{Cli, Command},
    process, start,
};

fn main() -> ExitCode {
    let Cli { command, run } = Cli::parse();
    let result = match command {
        Some(Command::RunChild { parent, cgroup, command }) => {
            match process::become_child(parent, cgroup.as_deref(), &command) {
                Ok(never) => match never {},
                Err(error) => Err(error.into()),
            }
        }
        None => start::run(&run),
    };
    result.unwrap_or_else(|error| {
        start::complain(&error);
        ExitCode::FAILURE
    })
}
