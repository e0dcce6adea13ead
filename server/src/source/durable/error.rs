//! Why a data directory can't be used: what happened, where, and what to do.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::directory;
use crate::model::Offset;

/// Why a data directory can't be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Another process has it.
    #[error("another process uses the data directory {}: stop it, or name another directory", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// There is something, but no directory.
    #[error("the data directory {} is not a directory: name one that is, or one that does not exist yet", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A directory of something else.
    #[error("{} has files, but none of Tidegate's: name an empty directory, or one that does not exist yet", dir.display())]
    NotOurs {
        /// The directory.
        dir: PathBuf,
    },
    /// Another version's.
    #[error("the data directory {} is marked {found:?}, but this version knows {:?} only: run the version that wrote it", dir.display(), directory::MARK.1.trim_end())]
    Version {
        /// The directory.
        dir: PathBuf,
        /// What it says of itself.
        found: String,
    },
    /// The configuration says something else of a stream than its files.
    #[error("the stream {stream} has {kept} in {}, but the configuration says {wanted}: configure it as it was, or move that directory away to begin afresh", dir.display())]
    Differs {
        /// The stream.
        stream: String,
        /// What the files say.
        kept: String,
        /// What the configuration says.
        wanted: String,
        /// The stream's directory.
        dir: PathBuf,
    },
    /// What is in a file makes no sense, and is not the end of a write that was cut off.
    #[error("{} is damaged at byte {at} ({flaw}): put the stream's directory back from a backup, or move it away to begin afresh", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong.
        flaw: String,
    },
    /// A file is not there.
    #[error("{} has no segment that begins at offset {first}: put the stream's directory back from a backup, or move it away to begin afresh", dir.display())]
    Missing {
        /// The partition's directory.
        dir: PathBuf,
        /// The first offset that is missing.
        first: Offset,
    },
    /// The operating system refuses.
    #[error("can't {what} {}: {error}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

impl DataError {
    pub(super) fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            error,
        }
    }
    pub(super) fn missing(dir: &Path, first: Offset) -> Self {
        Self::Missing {
            dir: dir.to_owned(),
            first,
        }
    }
}
