//! The library's errors: what was expected, what was found, and where.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::operation::Precision;

/// `Result` with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of any kind, as another crate may have made it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Everything that can go wrong for a reason outside the library.
///
/// As usual, the text is that of the error alone, and its cause is its
/// [`source`](std::error::Error::source); the alternate form, `{error:#}`, is the text with those of
/// all sources behind it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be used, and why.
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        reason: String,
    },
    /// An operation of the file system that failed.
    Io {
        /// What was tried: "read", "write", ...
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said: the source.
        error: std::io::Error,
    },
    /// A file whose content is at fault.
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it: the source.
        error: Box<Error>,
    },
    /// A folder that another process is writing into.
    Locked {
        /// The folder.
        path: PathBuf,
        /// "another training", "another packing".
        by: String,
    },
    /// A file of another version of this library.
    Version {
        /// What it is the version of: "metadata", ...
        what: &'static str,
        /// The version that is read.
        expected: u32,
        /// The file's.
        found: u32,
    },

    /// A network description that cannot be built, or weights that are not a network's.
    Network(String),
    /// A network of another program that is no chain of layers that we have: it branches, or a layer is another one.
    NotAChain {
        /// What was expected and found, and up to where it is a chain.
        reason: String,
        /// The node up to which it is a chain, if it is one anywhere.
        until: Option<String>,
    },
    /// A layer that the network does not have.
    UnknownLayer {
        /// The layer that was asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// Bytes that are no safetensors file; the source says why.
    NotSafetensors(BoxError),
    /// A file of weights that does not say which network they belong to, where nobody else said so: what it has.
    UnknownNetwork(String),
    /// A file of a network that does not say how images are prepared for it, where nobody else said so.
    /// Why a file beside it, which might have, does not, if there is one.
    UnknownPreprocessing(Option<String>),
    /// A file of a network that leaves its input's size open, where nobody else said it; and which sizes fit, if that
    /// is known.
    UnknownInputSize(Option<String>),

    /// Images that cannot be used as a set.
    Data(String),
    /// More files that cannot be read as images than the caller allows.
    TooManyBad {
        /// "files", "train files", "val files".
        files: String,
        /// How many are bad.
        bad: usize,
        /// Of how many.
        of: usize,
        /// The allowed share.
        allowed: f64,
        /// The last one, and what is wrong with it.
        last: String,
    },
    /// Tars of images, where a folder of images or a set of shards was expected.
    NotPacked {
        /// The tar, or the folder that holds them.
        path: PathBuf,
    },
    /// An order along shards for images that are in none.
    NotInShards,
    /// A set of shards that is unfinished, or has lost or damaged files. Packing the same source into its
    /// folder again makes them anew; if it is the manifest, the whole set must be removed first.
    DamagedSet {
        /// The set, or the file.
        path: PathBuf,
        /// What was expected, what was found.
        reason: String,
    },
    /// A shard that could be opened but no longer read: it has been cut short, or the disk fails.
    LostShard {
        /// The shard.
        path: PathBuf,
        /// What was expected, what was found.
        reason: String,
    },

    /// Training whose numbers are no longer finite.
    Diverged {
        /// "the loss is NaN", "the momentum of conv1 is no longer finite".
        what: String,
        /// The update after which that is so, from 1.
        step: u32,
        /// The learning rate then.
        learning_rate: f32,
    },
    /// A folder that holds a training already, where a new one was to begin.
    RunExists {
        /// The run's folder.
        path: PathBuf,
    },
    /// A checkpoint that is not as it was written: a file is missing, cut short or changed. One that this version
    /// cannot read for another reason is not called damaged.
    DamagedCheckpoint {
        /// The file.
        path: PathBuf,
        /// What was expected, what was found.
        reason: String,
    },
    /// A rank of which nothing has been heard: it was killed or stopped, or its machine is gone.
    LostRank {
        /// Which one, from 0.
        rank: usize,
        /// The name of its host.
        host: String,
        /// For how long.
        silence: Duration,
    },
    /// A rank that has told the others that it cannot go on.
    FailedRank {
        /// Which one, from 0.
        rank: usize,
        /// The name of its host.
        host: String,
        /// What it said.
        reason: String,
    },
    /// Ranks that were not given the same to do.
    RanksDiffer {
        /// The first that differs from rank 0.
        rank: usize,
        /// The name of its host.
        host: String,
        /// "seed", "recipe", ...
        what: String,
        /// What rank 0 has, and what that rank has.
        difference: String,
    },
    /// Ranks, or a batch's parts, of a number that does not do: what would.
    CannotShare(String),
    /// Ranks that cannot be used.
    Ranks(String),
    /// A signal that one of several ranks was given, because of which all have stopped.
    Stopped {
        /// Its number.
        signal: u8,
    },

    /// A training that was to be continued, and was begun otherwise.
    ResumeMismatch {
        /// The checkpoint.
        path: PathBuf,
        /// What differs: "recipe", "network", "set of classes", ...
        what: &'static str,
        /// In which values: "learning_rate = 0.01 then, 0.02 now".
        difference: String,
    },
    /// A training that takes more memory than there is.
    TrainingMemory {
        /// Bytes that were asked for at last.
        wanted: usize,
        /// Bytes that were free, if that is known.
        free: Option<usize>,
        /// How much it takes in all, and what would fit.
        needs: String,
        /// Samples of an update.
        batch: usize,
        /// Samples at a time: those of an update, or of a part of it.
        samples: usize,
        /// About how many samples at a time would fit, if that is known.
        largest: Option<usize>,
    },

    /// More memory than there is.
    Memory {
        /// Bytes that were asked for.
        wanted: usize,
        /// Bytes that were free, if that is known.
        free: Option<usize>,
    },
    /// No GPU that can be used, and why.
    NoDevice(String),
    /// A precision that the device does not compute in.
    UnsupportedPrecision {
        /// The precision.
        precision: Precision,
        /// What it takes.
        expected: &'static str,
        /// What there is.
        found: String,
    },
    /// A library that the machine does not have.
    MissingLibrary {
        /// The library.
        name: &'static str,
        /// Its file.
        file: &'static str,
    },
    /// A backend that cannot do what was asked.
    Backend(String),

    /// What a function of the caller's, given to be told of progress, say, has returned. It passes
    /// through unchanged: text and source are its own.
    Callback(BoxError),
}

impl Error {
    /// A file or folder that cannot be used.
    pub fn file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::File { path: path.into(), reason: reason.into() }
    }

    /// What a function of the caller's returns to end what calls it.
    pub fn callback(error: impl Into<BoxError>) -> Self {
        Error::Callback(error.into())
    }

    /// What does not fit in a network's description or weights, as an error of their file.
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            Error::Network(reason) => Error::file(path, reason),
            Error::NotSafetensors(_)
            | Error::Version { .. }
            | Error::NotAChain { .. }
            | Error::UnknownNetwork(_)
            | Error::UnknownPreprocessing(_)
            | Error::UnknownInputSize(_) => {
                Error::InFile { path: path.into(), error: Box::new(self) }
            }
            other => other,
        }
    }

    /// The file or folder that it is about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::File { path, .. }
            | Error::Io { path, .. }
            | Error::InFile { path, .. }
            | Error::Locked { path, .. }
            | Error::DamagedSet { path, .. }
            | Error::DamagedCheckpoint { path, .. }
            | Error::LostShard { path, .. }
            | Error::RunExists { path }
            | Error::NotPacked { path }
            | Error::ResumeMismatch { path, .. } => Some(path),
            _ => None,
        }
    }

    /// What is wrong, without the file's name, for messages that begin with it.
    pub fn without_path(self) -> String {
        match self {
            Error::File { reason, .. }
            | Error::DamagedSet { reason, .. }
            | Error::DamagedCheckpoint { reason, .. }
            | Error::LostShard { reason, .. } => reason,
            Error::Io { action, error, .. } => format!("cannot {action} it: {error}"),
            Error::InFile { error, .. } => error.without_path(),
            other => format!("{other:#}"),
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

    /// The text of the error alone.
    fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File { path, reason }
            | Error::DamagedSet { path, reason }
            | Error::DamagedCheckpoint { path, reason }
            | Error::LostShard { path, reason } => write!(f, "{}: {reason}", path.display()),
            Error::Io { action, path, .. } => write!(f, "cannot {action} {}", path.display()),
            Error::InFile { path, .. } => write!(f, "{}", path.display()),
            Error::Locked { path, by } => write!(
                f,
                "{}: {by} is writing into it: wait for its end, or choose another folder",
                path.display()
            ),
            Error::Version { what, expected, found } => write!(
                f,
                "expected {what} of version {expected} at most, found {found}: use the version of zfnet that \
                 wrote it"
            ),
            Error::Network(text) => write!(f, "network: {text}"),
            Error::NotAChain { reason, .. } => write!(f, "{reason}"),
            Error::UnknownLayer { name, known } => {
                write!(f, "network: no layer `{name}`: expected one of {}", known.join(", "))
            }
            Error::NotSafetensors(_) => {
                write!(f, "expected a safetensors file, found a damaged or different one")
            }
            Error::UnknownNetwork(found) => write!(f, "{found}"),
            Error::UnknownPreprocessing(beside) => {
                write!(f, "does not say how images are to be prepared for the network")?;
                beside.as_ref().map_or(Ok(()), |beside| write!(f, " ({beside})"))
            }
            Error::UnknownInputSize(None) => {
                write!(f, "the size of the input is not in the file")
            }
            Error::UnknownInputSize(Some(fitting)) => write!(f, "{fitting}"),
            Error::Data(text) => write!(f, "data: {text}"),
            Error::TooManyBad { files, bad, of, allowed, last } => write!(
                f,
                "data: at least {bad} of {of} {files} cannot be read as images, more than the allowed share of \
                 {allowed}; the last one: {last}"
            ),
            Error::NotPacked { path } => write!(
                f,
                "{}: tars of images, of which no set of shards has been made yet; expected such a set, or a folder \
                 with train/CLASS/*.JPEG and val/CLASS/*.JPEG",
                path.display()
            ),
            Error::NotInShards => write!(
                f,
                "data: a shuffle window is about the order in shards, and these images are single \
                 files"
            ),
            Error::Diverged { what, step, learning_rate } => write!(
                f,
                "training: {what} at step {step}, with a learning rate of {learning_rate}: \
                 training diverged"
            ),
            Error::LostRank { rank, host, silence } => write!(
                f,
                "rank {rank} on {host} has not been heard of for {} s: it was killed or stopped, or has run out of memory",
                silence.as_secs_f32()
            ),
            Error::FailedRank { rank, host, reason } => {
                write!(f, "rank {rank} on {host}: {reason}")
            }
            Error::RanksDiffer { rank, host, what, difference } => {
                write!(f, "rank {rank} on {host} has another {what} than rank 0: {difference}")
            }
            Error::CannotShare(reason) | Error::Ranks(reason) => write!(f, "ranks: {reason}"),
            Error::Stopped { signal } => write!(f, "stopped by signal {signal}"),
            Error::RunExists { path } => {
                write!(f, "{}: holds a training already", path.display())
            }
            Error::ResumeMismatch { path, what, difference } => {
                write!(f, "{}: was begun with another {what}: {difference}", path.display())
            }
            Error::TrainingMemory { wanted, free, needs, .. } => {
                write!(f, "training: {}. {needs}", out_of_memory(*wanted, *free))
            }
            Error::Memory { wanted, free } => write!(f, "{}", out_of_memory(*wanted, *free)),
            Error::NoDevice(text) | Error::Backend(text) => write!(f, "backend: {text}"),
            Error::UnsupportedPrecision { precision, expected, found } => write!(
                f,
                "backend: precision {}: expected {expected}, found {found}",
                precision.name()
            ),
            Error::MissingLibrary { name, file } => write!(
                f,
                "backend: {name} ({file}) was not found on this machine: put its folder into \
                 LD_LIBRARY_PATH"
            ),
            Error::Callback(error) => write!(f, "{error}"),
        }
    }
}

impl Error {
    /// Whether all ranks come to it by themselves, so that none needs to tell it.
    pub fn is_of_all_ranks(&self) -> bool {
        use Error::{CannotShare, Diverged, FailedRank, LostRank, RanksDiffer, Stopped};
        matches!(
            self,
            CannotShare(_)
                | Diverged { .. }
                | FailedRank { .. }
                | LostRank { .. }
                | RanksDiffer { .. }
                | Stopped { .. }
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text(f)?;
        let mut source = std::error::Error::source(self).filter(|_| f.alternate());
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { error, .. } => Some(error),
            Error::InFile { error, .. } => Some(&**error),
            Error::NotSafetensors(error) => Some(&**error),
            Error::Callback(error) => error.source(),
            _ => None,
        }
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

fn out_of_memory(wanted: usize, free: Option<usize>) -> String {
    let wanted = human_bytes(wanted);
    match free {
        Some(free) => format!("out of memory: requested {wanted}, {} free", human_bytes(free)),
        None => format!("out of memory: requested {wanted}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn each_text_is_told_once() {
        let full = std::io::Error::other("the disk is full");
        let inner = Error::io("write", "run/last")(full);
        assert_eq!(inner.to_string(), "cannot write run/last");
        assert_eq!(format!("{inner:#}"), "cannot write run/last: the disk is full");
        assert_eq!(inner.source().unwrap().to_string(), "the disk is full");
        let version = Error::Version { what: "metadata", expected: 1, found: 2 };
        let text = version.to_string();
        let outer = version.in_file(Path::new("a.safetensors"));
        assert_eq!(format!("{outer:#}"), format!("a.safetensors: {text}"));
        let found = outer.source().and_then(|source| source.downcast_ref());
        assert!(matches!(found, Some(Error::Version { found: 2, .. })));
        let passed = Error::callback(inner);
        assert_eq!(format!("{passed:#}"), "cannot write run/last: the disk is full");
    }
}
