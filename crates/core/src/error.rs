//! The library's errors: what was expected, what was found, and where.

use std::path::{Path, PathBuf};

/// `Result` with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong for a reason outside the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be used, and why.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        reason: String,
    },
    /// An operation of the file system that failed.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried: "read", "write", ...
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A network description that cannot be built.
    #[error("network: {0}")]
    Network(String),
    /// Images that cannot be used as a set.
    #[error("data: {0}")]
    Data(String),
    /// Training that cannot go on.
    #[error("training: {0}")]
    Training(String),
    /// More memory than there is.
    #[error("no room for {}{}", human_bytes(*wanted), free_of(*free))]
    Memory {
        /// Bytes that were asked for.
        wanted: usize,
        /// Bytes that were free, if that is known.
        free: Option<usize>,
    },
    /// A backend that cannot do what was asked.
    #[error("backend: {0}")]
    Backend(String),
}

impl Error {
    /// A file or folder that cannot be used.
    pub fn file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::File { path: path.into(), reason: reason.into() }
    }

    /// What does not fit in a network's description or weights, as an error of their file.
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            Error::Network(reason) => Error::file(path, reason),
            other => other,
        }
    }

    /// What is wrong, without the file's name, for messages that begin with it.
    pub fn without_path(self) -> String {
        match self {
            Error::File { reason, .. } => reason,
            Error::Io { action, error, .. } => format!("cannot {action} it: {error}"),
            other => other.to_string(),
        }
    }

    /// For `map_err`: a failed operation of the file system.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| Error::Io { action, path, error }
    }
}

/// A number of bytes, for people.
pub fn human_bytes(bytes: usize) -> String {
    match bytes as f64 {
        bytes if bytes < 1e5 => format!("{:.1} kB", bytes / 1e3),
        bytes if bytes < 1e8 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.2} GB", bytes / 1e9),
    }
}

fn free_of(free: Option<usize>) -> String {
    free.map_or(String::from(" in memory"), |free| format!(": {} are free", human_bytes(free)))
}
