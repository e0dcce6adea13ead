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
mod directory;
mod disk;
mod error;
mod fold;
mod plan;
mod recovery;
mod segment;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::mpsc;

pub use disk::{Disk, Files};
pub use error::DataError;
pub(super) use store::Store;
pub(super) use writer::{Batch, Work};

use crate::{
    clock::Clock,
    model::{Epoch, Mode, Offset, Placement},
    source::embedded::{EmbeddedLog, Expiry, LogSpec},
    telemetry::{LogCounts, Throttle},
};
use directory::{
    ABOUT, About, RUNNING, STREAMS, read_about, renew, streams_in, take, was_weak_and_unclean,
};
use disk::replace;
use store::{Home, Place};
use writer::{Known, Writer};

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
        // Made with the stream: an empty one is a partition without records, none at all is a loss.
        if home.born.load(Ordering::Acquire) && !place.dir.is_dir() {
            return Err(DataError::missing(&place.dir, Offset::new(1)));
        }
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
