//! Why a subcommand ends early.

use std::{fmt, io};

use samara::Error;

/// Why a subcommand ended early.
#[derive(Debug)]
pub enum Failure {
    /// The library refused or failed.
    Run(Error),
    /// Standard output took no more.
    Output(io::Error),
    /// Everything went well, and what was measured became slower.
    Regression(String),
    /// Kernels compute something else than their references.
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
