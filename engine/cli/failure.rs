//! Why a subcommand ends early.

use std::{fmt, io};

use samara::Error;

/// Why a subcommand ended early.
#[derive(Debug)]
pub enum Failure {
    /// The library returned an error.
    Run(Error),
    /// Standard output cannot be written.
    Output(io::Error),
    /// A comparison found measurements that became slower.
    Regression(String),
    /// Kernel output differs from the reference.
    Wrong(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(error) => error.fmt(f),
            Self::Output(error) => write!(f, "cannot write to standard output: {error}"),
            Self::Regression(what) => f.write_str(what),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Run(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
