//! The embedded engine's logs on disk: a data directory.
//!
//! Does: opens the directory, and nobody else's; reads its streams back; stores what publishers submit, many in one sync;
//! closes it in order. Owns: the directory's lock and the writer's thread. Never knows: who reads, who publishes, wire formats.
//! Keeps: under [`SyncPolicy::Commit`] a record is answered, and handed to readers, only once it is on the device; epochs
//! and offsets survive every restart. Under the weaker policies a start after an unclean end gives every log a new epoch,
//! since records may be gone that somebody has seen. No row of a view is ever lost to retention (`fold.rs`).
//!
//! `DIR/tidegate-data` says whose directory and which format this is; `lock` is held by the process; `running` is there while
//! one runs, or when one did not end in order; `streams/NAME/about` says what the stream is; `streams/NAME/PARTITION/` has
//! the segments and the fold.

mod commit;
mod disk;
mod fold;
mod plan;
mod recovery;
mod segment;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    thread::JoinHandle,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use disk::{Disk, Files};
pub(super) use store::Store;
pub(super) use writer::{Batch, Work};

use crate::{
    clock::Clock,
    model::{Epoch, Mode, Offset, Placement},
    source::embedded::{EmbeddedLog, Expiry, LogSpec},
    telemetry::{LogCounts, Throttle},
};
use disk::replace;
use store::{Home, Place};
use writer::{Known, Writer};

/// The file that says whose directory this is, and its content in this version.
const MARK: (&str, &str) = ("tidegate-data", "tidegate data directory, format 1\n");
const LOCK: &str = "lock";
const RUNNING: &str = "running";
const STREAMS: &str = "streams";
/// What a stream is: in its directory.
const ABOUT: &str = "about";

/// When a record counts as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Once it is on the device: nothing that was acknowledged is lost, whatever happens.
    Commit,
    /// Once the operating system has it; it is on the device so much later. What a loss of power takes is less than that.
    Interval(Duration),
    /// Once the operating system has it, which writes it when it likes.
    Never,
}

impl SyncPolicy {
    /// Its word, in the configuration and in the directory.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Interval(_) => "interval",
            Self::Never => "never",
        }
    }
    const fn every(self) -> Option<Duration> {
        match self {
            Self::Interval(every) => Some(every),
            Self::Commit | Self::Never => None,
        }
    }
}

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
    #[error("the data directory {} is marked {found:?}, but this version knows {:?} only: run the version that wrote it", dir.display(), MARK.1.trim_end())]
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
    fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            error,
        }
    }
    fn missing(dir: &Path, first: Offset) -> Self {
        Self::Missing {
            dir: dir.to_owned(),
            first,
        }
    }
}

/// What a stream is, as its directory says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    mode: Mode,
    placement: Placement,
    /// Of each partition.
    epochs: Vec<String>,
}

impl About {
    fn says(&self) -> String {
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

/// A stream that a directory keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptStream {
    /// Its name.
    pub name: String,
    /// View or events.
    pub mode: Mode,
    /// How records are placed.
    pub placement: Placement,
    /// Its lanes.
    pub partitions: u32,
}

/// An open data directory.
#[derive(Debug)]
pub struct DataDir {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    work: mpsc::Sender<Work>,
    known: Known,
    counts: Arc<LogCounts>,
    writer: Mutex<Option<(JoinHandle<()>, File)>>,
}

impl DataDir {
    /// Opens a directory, made where there is none, and starts its writer. `epoch` names logs whose last end was unclean
    /// under a weak policy.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn open(
        dir: &Path,
        policy: SyncPolicy,
        disk: Arc<dyn Disk>,
        epoch: impl Fn() -> Epoch,
    ) -> Result<Self, DataError> {
        let lock = take(dir, &*disk)?;
        let running = dir.join(RUNNING);
        if was_weak_and_unclean(&running)? {
            renew(&*disk, &dir.join(STREAMS), epoch)?;
        }
        let failed = |error| DataError::io("write", &running, error);
        replace(&*disk, &running, policy.word().as_bytes()).map_err(failed)?;
        let (work, queue) = mpsc::channel(writer::QUEUE_MAX);
        let (known, counts) = (Known::default(), Arc::<LogCounts>::default());
        let writer = Writer {
            queue,
            policy,
            disk: disk.clone(),
            running,
            known: known.clone(),
            counts: counts.clone(),
            clock: Clock::start(),
            buffer: Vec::new(),
            warning: Throttle::default(),
        };
        let thread =
            start(writer).map_err(|error| DataError::io("start the writer of", dir, error))?;
        Ok(Self {
            dir: dir.to_owned(),
            disk,
            work,
            known,
            counts,
            writer: Mutex::new(Some((thread, lock))),
        })
    }

    /// The logs of a stream: read back, or new ones, whose files are made with their first record.
    ///
    /// # Errors
    /// [`DataError`].
    pub(super) fn logs(
        &self,
        spec: &LogSpec<'_>,
        epoch: impl Fn() -> Epoch,
    ) -> Result<Vec<Arc<EmbeddedLog>>, DataError> {
        let dir = self.dir.join(STREAMS).join(spec.stream);
        let kept = read_about(&dir)?;
        let new = || {
            (0..spec.partitions)
                .map(|_| epoch().as_str().to_owned())
                .collect::<Vec<_>>()
        };
        let same = |epochs: &Vec<String>| epochs.len() == spec.partitions as usize;
        let epochs = kept
            .as_ref()
            .map(|kept| kept.epochs.clone())
            .filter(same)
            .unwrap_or_else(new);
        let about = About {
            mode: spec.settings.mode,
            placement: spec.placement,
            epochs,
        };
        if let Some(kept) = kept.as_ref().filter(|kept| **kept != about) {
            let (stream, kept, wanted) = (spec.stream.to_owned(), kept.says(), about.says());
            return Err(DataError::Differs {
                stream,
                kept,
                wanted,
                dir,
            });
        }
        let home = Arc::new(Home {
            about: (ABOUT, serde_json::to_string(&about).unwrap_or_default()),
            partitions: spec.partitions,
            born: AtomicBool::new(kept.is_some()),
            dir,
        });
        let logs = (0..)
            .zip(&about.epochs)
            .map(|(partition, epoch)| self.log(spec, &home, partition, epoch));
        logs.collect()
    }

    fn log(
        &self,
        spec: &LogSpec<'_>,
        home: &Arc<Home>,
        partition: u32,
        epoch: &str,
    ) -> Result<Arc<EmbeddedLog>, DataError> {
        let place = Place {
            home: home.clone(),
            dir: home.of(partition),
            disk: self.disk.clone(),
            keep: spec.settings.retention,
            hot_bytes: spec.hot_bytes,
        };
        let epoch = Epoch::new(epoch).map_err(|_| DataError::Corrupt {
            path: home.dir.join(ABOUT),
            at: 0,
            flaw: format!("{epoch:?} is no epoch"),
        })?;
        let (store, mut state) = recovery::recover(place, spec.stream, spec.settings.mode)?;
        if spec.settings.row_ttl.is_some() {
            state.expiry = Expiry::recovered(&state.cache, Clock::start().wall_ms());
        }
        let log = EmbeddedLog::durable(
            partition,
            epoch,
            spec.settings,
            state,
            (store, self.work.clone()),
        );
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::downgrade(&log));
        Ok(log)
    }

    /// The streams that are in the directory.
    ///
    /// # Errors
    /// [`DataError`].
    pub(super) fn kept(&self) -> Result<Vec<KeptStream>, DataError> {
        let mut kept = Vec::new();
        for (name, about) in streams_in(&self.dir.join(STREAMS))? {
            let partitions = u32::try_from(about.epochs.len()).unwrap_or(u32::MAX);
            kept.push(KeptStream {
                name,
                mode: about.mode,
                placement: about.placement,
                partitions,
            });
        }
        Ok(kept)
    }

    pub(super) fn counts(&self) -> Arc<LogCounts> {
        self.counts.clone()
    }

    /// Has the writer store what waits and end, and gives the directory back.
    pub(super) fn close(&self) {
        let Some((thread, lock)) = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        else {
            return;
        };
        let mut work = Work::Close;
        // The writer always takes on: a full queue is soon not full.
        while let Err(mpsc::error::TrySendError::Full(back)) = self.work.try_send(work) {
            work = back;
            std::thread::yield_now();
        }
        if thread.join().is_err() {
            tracing::error!("the data directory's writer panicked");
        }
        drop(lock);
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        self.close();
    }
}

fn start(writer: Writer) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let thread = std::thread::Builder::new().name("tidegate-writer".into());
    thread.spawn(move || runtime.block_on(writer.run()))
}

/// Makes sure that the directory is ours, of this version, and nobody else's. Gives its lock.
fn take(dir: &Path, disk: &dyn Disk) -> Result<File, DataError> {
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
fn was_weak_and_unclean(running: &Path) -> Result<bool, DataError> {
    match fs::read_to_string(running) {
        Ok(policy) => Ok(policy != SyncPolicy::Commit.word()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DataError::io("read", running, error)),
    }
}

/// Gives all logs new epochs, and cuts what did not make it to the device. Done again if it is cut off itself.
fn renew(disk: &dyn Disk, streams: &Path, epoch: impl Fn() -> Epoch) -> Result<(), DataError> {
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
fn streams_in(streams: &Path) -> Result<Vec<(String, About)>, DataError> {
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

fn read_about(stream: &Path) -> Result<Option<About>, DataError> {
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
