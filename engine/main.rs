//! The `samara` command: reads the arguments, runs a subcommand and turns its outcome into an exit code.
//!
//! 0 is success, 1 a failure while running or a regression found, 2 invalid input.

mod cli;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;
use samara::Error;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Failure, note};

fn main() -> ExitCode {
    cli::begin();
    let cli = Cli::parse_from(cli::arguments(std::env::args_os()));
    match start_log().and_then(|()| cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader closed the pipe (`samara generate | head`).
        Err(Failure::Output(e)) if e.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            note(format_args!("error: {failure}"));
            ExitCode::from(if matches!(failure, Failure::Run(Error::Input(_))) { 2 } else { 1 })
        }
    }
}

/// Sends events to standard error, filtered by `SAMARA_LOG` (`info`, `samara=debug`); by default warnings.
fn start_log() -> Result<(), Failure> {
    let filter = match std::env::var("SAMARA_LOG") {
        Ok(filter) => EnvFilter::try_new(&filter)
            .map_err(|e| Error::Input(format!("SAMARA_LOG `{filter}` is not a log filter: {e}")))?,
        Err(_) => EnvFilter::new("warn"),
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}
