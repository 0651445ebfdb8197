//! The one error type. Every message says what was found and what to do about it.

use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong. The messages are complete sentences for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file holds something it must not; names the file, the value and the remedy.
    #[error("{}: {what}", path.display())]
    File { path: PathBuf, what: String },
    /// The operating system refused a read or a write.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A value given by the user (configuration, command line) can't be used.
    #[error("{0}")]
    Invalid(String),
    /// Shapes or attributes that an operation can't take; found when a graph is built or compiled.
    #[error("{operation}: {what}")]
    Operation { operation: String, what: String },
    /// A device that can't serve, and why.
    #[error("{0}")]
    Device(String),
    /// Training met a NaN or an infinity.
    #[error("{0}")]
    NonFinite(String),
    /// Results differ from what was expected (exit code 1; every other error exits with 2).
    #[error("{0}")]
    Mismatch(String),
    /// Ctrl-C; the work was saved.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub fn file(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    /// What the operating system said about `path`; a full disk comes with the remedy.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            StorageFull => {
                let what = "the disk is full; free some space and go on from what was saved";
                Error::File { path, what: what.into() }
            }
            QuotaExceeded => {
                let what =
                    "the disk quota is used up; free some space and go on from what was saved";
                Error::File { path, what: what.into() }
            }
            _ => Error::Io { path, source },
        }
    }

    pub fn invalid(what: impl Into<String>) -> Self {
        Error::Invalid(what.into())
    }

    pub fn operation(operation: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Operation { operation: operation.into(), what: what.into() }
    }

    /// The same, saying where in a network the operation stands; `label` may be empty.
    pub(crate) fn at(self, label: &str) -> Self {
        match self {
            Error::Operation { operation, what } if !label.is_empty() => {
                Error::operation(format!("{label} ({operation})"), what)
            }
            other => other,
        }
    }

    pub fn device(what: impl Into<String>) -> Self {
        Error::Device(what.into())
    }
}
