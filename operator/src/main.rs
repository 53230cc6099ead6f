//! The `operator` binary.

#![forbid(unsafe_code)]

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// The operator's command line.
#[derive(Debug, Parser)]
#[command(name = "operator", version, about = "Keeps ScaledObjects and statuses in step with routes")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the CustomResourceDefinitions as YAML and end.
    Crds {
        /// Write each to a file of its own in this folder, instead of all to standard output.
        #[arg(long, value_name = "PATH")]
        folder: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Args { command: Command::Crds { folder } } = Args::parse();
    let written = match folder {
        Some(folder) => operator::crds::write(&folder),
        None => operator::crds::print(&mut io::stdout().lock()),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "there is no log")]
            {
                eprintln!("operator: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
