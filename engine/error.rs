//! The one error type of the crate: variants by what the caller can do about them.
//!
//! Every message is a full sentence that names the file, tensor, flag or limit and both values.
//! Internal mistakes (a graph with shapes that do not fit) are assertions, never an [`Error`].

use std::path::{Path, PathBuf};

/// What went wrong, in one sentence for a person and one variant for a program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file is damaged, incomplete or describes a model that samara does not run.
    #[error("{0}")]
    Model(String),
    /// A prompt, token id or option of the caller is out of range.
    #[error("{0}")]
    Input(String),
    /// No adapter was found, or it lacks a feature or limit that is needed.
    #[error("{0}")]
    Unsupported(String),
    /// The GPU ran out of memory, was lost or refused a command.
    #[error("{0}")]
    Gpu(String),
    /// A file could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive ("read", "write").
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns an [`Error::Io`] for `path`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_owned(), source }
    }
}
