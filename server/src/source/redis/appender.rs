//! Appending to one partition: in order, each batch once.
//!
//! A task takes what waits, as one batch, and has one request under way at a time, so that order is kept whatever happens. What
//! is not answered is sent again under the same number until it is, or its time is over: the script drops repeats, and refuses a
//! batch that comes behind a later one.

mod lane;

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{RedisServer, keys::Keys};
use crate::source::{
    Recent,
    embedded::{Appended, Lost, NewRecord},
};
use lane::Lane;

/// What a record weighs beside its key, value and id, about.
const RECORD_HEAD: usize = 100;

/// What the log keeps, about: what is within both bounds. None: everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Entries.
    pub records: Option<u64>,
    /// Age of an entry.
    pub age: Option<Duration>,
}

/// What an appender keeps to.
#[derive(Clone, Copy, Debug)]
pub struct RedisAppenderSettings {
    /// Callers' batches that wait …
    pub queue: usize,
    /// … and their bytes, but for a single batch. Beyond them callers are told.
    pub queue_bytes: usize,
    /// How long a record is tried.
    pub delivery_timeout: Duration,
    /// What is trimmed behind an append.
    pub retention: Retention,
}

impl Default for RedisAppenderSettings {
    fn default() -> Self {
        Self {
            queue: 1024,
            queue_bytes: 16 << 20,
            delivery_timeout: Duration::from_secs(10),
            retention: Retention::default(),
        }
    }
}

/// A caller's batch.
struct Job {
    records: Vec<NewRecord>,
    deadline: Instant,
    lost: Arc<Lost>,
    reply: oneshot::Sender<Vec<Appended>>,
    /// What it takes of the queue's bytes, for as long as it waits.
    weight: Weight,
}

/// Bytes of a queue, given back when what they are of has left it.
struct Weight(Arc<AtomicUsize>, usize);

impl Drop for Weight {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// Where records of one partition are appended. Cheap to clone.
#[derive(Clone)]
pub struct RedisAppender {
    jobs: mpsc::Sender<Job>,
    waiting: Arc<AtomicUsize>,
    settings: RedisAppenderSettings,
    /// The task's: a breaker is gone once nobody appends or reads any more, whoever still knows the stream.
    server: Weak<RedisServer>,
}

impl fmt::Debug for RedisAppender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisAppender")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl RedisAppender {
    /// An appender beside a reader of the partition, with which it shares what was read of late, and its task, which ends when every
    /// clone of the appender is gone, or when it is told to stop: what was taken by then is still appended.
    pub fn beside(
        server: Arc<RedisServer>,
        (stream, partition): (&str, u32),
        recent: Arc<Recent>,
        settings: RedisAppenderSettings,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (jobs, queue) = mpsc::channel(settings.queue);
        let appender = Self {
            jobs,
            waiting: Arc::default(),
            settings,
            server: Arc::downgrade(&server),
        };
        let keys = Keys::new(&server.prefix, stream, partition);
        let lane = Lane::new(server, keys, partition, recent, settings.retention);
        (appender, lane.run(queue, stop))
    }

    /// Bytes that wait here for the log to take them, those of the batch that is under way included.
    #[must_use]
    pub fn held(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes records, which are appended in order: of each what became of it. When nobody is left to tell, the appender has ended,
    /// and they are not in the log.
    ///
    /// `lost` is the publisher's own: once one of its records has failed in a way that passes, what it submits of that channel
    /// is not taken either.
    ///
    /// # Errors
    /// What becomes of all of them, none of which was tried. Their channels are among the lost ones then.
    pub fn try_submit(
        &self,
        records: Vec<NewRecord>,
        lost: &Arc<Lost>,
    ) -> Result<oneshot::Receiver<Vec<Appended>>, Appended> {
        let (reply, answer) = oneshot::channel();
        let bytes = records.iter().map(size).sum();
        let others = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let job = Job {
            records,
            deadline: Instant::now() + self.settings.delivery_timeout,
            lost: lost.clone(),
            reply,
            weight: Weight(self.waiting.clone(), bytes),
        };
        let refused = |job: Job, why| {
            for record in job.records {
                lost.add(record.change.channel);
            }
            Err(why)
        };
        if let Some(left) = self.server.upgrade().and_then(|server| server.shed()) {
            return refused(job, Appended::NotTried(left));
        }
        if others > 0 && others + bytes > self.settings.queue_bytes {
            return refused(job, Appended::Overloaded);
        }
        match self.jobs.try_send(job) {
            Err(mpsc::error::TrySendError::Full(job)) => refused(job, Appended::Overloaded),
            // Of one that has ended the answer says so.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(answer),
        }
    }
}

/// Bytes that a record takes in a batch, about.
fn size(record: &NewRecord) -> usize {
    let value = record.change.data.as_ref().map_or(0, bytes::Bytes::len);
    let id = record.id.as_ref().map_or(0, |id| id.len());
    record.key.len() + value + id + RECORD_HEAD
}
