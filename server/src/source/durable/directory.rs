//! The directory itself: whose it is, who has it, how its last run ended, and which streams are in it.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    DataError, SyncPolicy,
    disk::{self, Disk, replace},
    recovery,
};
use crate::model::{Epoch, Mode, Placement};

/// The file that says whose directory this is, and its content in this version.
pub(super) const MARK: (&str, &str) = ("tidegate-data", "tidegate data directory, format 1\n");
const LOCK: &str = "lock";
pub(super) const RUNNING: &str = "running";
pub(super) const STREAMS: &str = "streams";
/// What a stream is: in its directory.
pub(super) const ABOUT: &str = "about";

/// What a stream is, as its directory says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    pub(super) mode: Mode,
    pub(super) placement: Placement,
    /// Of each partition.
    pub(super) epochs: Vec<String>,
}

impl About {
    pub(super) fn says(&self) -> String {
        let (mode, placement) = (
            serde_json::to_string(&self.mode),
            serde_json::to_string(&self.placement),
        );
        let (mode, placement) = (mode.unwrap_or_default(), placement.unwrap_or_default());
        format!(
            "mode = {mode}, placement = {placement}, partitions = {}",
            self.epochs.len()
        )
    }
}

/// Makes sure that the directory is ours, of this version, and nobody else's. Gives its lock.
pub(super) fn take(dir: &Path, disk: &dyn Disk) -> Result<File, DataError> {
    if dir.exists() && !dir.is_dir() {
        return Err(DataError::NotADirectory {
            path: dir.to_owned(),
        });
    }
    let path = dir.join(MARK.0);
    let marked = match fs::read_to_string(&path) {
        Ok(found) if found == MARK.1 => true,
        Ok(found) => {
            return Err(DataError::Version {
                dir: dir.to_owned(),
                found: found.trim_end().chars().take(80).collect(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(DataError::io("read", &path, error)),
    };
    if !marked
        && recovery::paths_in(dir)?
            .iter()
            .any(|path| !may_be_there(path))
    {
        return Err(DataError::NotOurs {
            dir: dir.to_owned(),
        });
    }
    disk.create_dir(&dir.join(STREAMS))
        .map_err(|error| DataError::io("make", dir, error))?;
    let lock = take_lock(dir)?;
    if !marked {
        replace(disk, &path, MARK.1.as_bytes())
            .map_err(|error| DataError::io("write", &path, error))?;
    }
    Ok(lock)
}

/// What may be in a directory that is not marked yet: what a file system puts there, and what a first start left that was
/// cut off.
fn may_be_there(path: &Path) -> bool {
    let mine = [MARK.0, LOCK, STREAMS]
        .iter()
        .any(|name| path.file_name().is_some_and(|found| found == *name));
    mine || path.ends_with("lost+found")
        || path
            .extension()
            .is_some_and(|end| disk::UNFINISHED.ends_with(&*end.to_string_lossy()))
}

/// The system lets go of the lock with the process, however it ends.
fn take_lock(dir: &Path) -> Result<File, DataError> {
    let path = dir.join(LOCK);
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(false).open(&path);
    let lock = opened.map_err(|error| DataError::io("open", &path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DataError::InUse {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(DataError::io("lock", &path, error)),
    }
}

/// Whether the last run promised less than every record, and did not end in order.
pub(super) fn was_weak_and_unclean(running: &Path) -> Result<bool, DataError> {
    match fs::read_to_string(running) {
        Ok(policy) => Ok(policy != SyncPolicy::Commit.word()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DataError::io("read", running, error)),
    }
}

/// Gives all logs new epochs, and cuts what did not make it to the device. Done again if it is cut off itself.
pub(super) fn renew(
    disk: &dyn Disk,
    streams: &Path,
    epoch: impl Fn() -> Epoch,
) -> Result<(), DataError> {
    for (name, mut about) in streams_in(streams)? {
        let dir = streams.join(name);
        for partition in 0..about.epochs.len() {
            recovery::cut_last(disk, &dir.join(partition.to_string()))?;
        }
        about.epochs.fill_with(|| epoch().as_str().to_owned());
        let (path, text) = (
            dir.join(ABOUT),
            serde_json::to_string(&about).unwrap_or_default(),
        );
        replace(disk, &path, text.as_bytes())
            .map_err(|error| DataError::io("write", &path, error))?;
    }
    Ok(())
}

/// The streams of a directory by name. One without its description was never finished, and has no record.
pub(super) fn streams_in(streams: &Path) -> Result<Vec<(String, About)>, DataError> {
    let mut found = Vec::new();
    for path in recovery::paths_in(streams)? {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        if let (Some(name), Some(about)) = (name.filter(|_| path.is_dir()), read_about(&path)?) {
            found.push((name, about));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

pub(super) fn read_about(stream: &Path) -> Result<Option<About>, DataError> {
    let path = stream.join(ABOUT);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| DataError::Corrupt {
                path,
                at: 0,
                flaw: error.to_string(),
            }),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(DataError::io("read", &path, error)),
    }
}
