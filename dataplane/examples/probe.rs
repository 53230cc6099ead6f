//! Says which data plane level this machine gives a process, and why: `probe [auto|none|self] [CGROUP] [required]`.
#![expect(clippy::print_stdout, reason = "that is its purpose")]

use std::{env, process::ExitCode};

use dataplane::{Config, EMBEDDED, Mode, open};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = env::args().skip(1);
    let mode = match args.next().as_deref().unwrap_or("auto").parse::<Mode>() {
        Ok(mode) => mode,
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let cgroup = args.next().filter(|path| !path.is_empty()).map(Into::into);
    let required = args.next().as_deref() == Some("required");
    println!("built in: {EMBEDDED}");
    match open(Config { mode, required, cgroup }) {
        Ok((_, level, why)) => println!("{level}: {why}"),
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
