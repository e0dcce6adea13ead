//! Appending to one partition: in order, acknowledged by all replicas in sync, each record once.
//!
//! A task takes what waits, as one batch, and has one request under way at a time, so that order is kept whatever happens. What
//! is not acknowledged is sent again under the same number until it is, or its time is over: the broker drops repeats. Whoever
//! is given up leaves the producer's epoch behind, so that a request of it which is still on its way is refused from then on.

mod lane;

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub(super) use lane::Producer;

use super::{KafkaCluster, Recent, Shape};
use crate::{
    model::{Channel, Position},
    source::embedded::{Appended, Lost, NewRecord},
};
use lane::{Lane, Place};

/// What a record weighs beside its key, value and id, at most: its head, and the headers' names.
const RECORD_HEAD: usize = 100;
/// What a header weighs beside its name and value, at most: two lengths.
const HEADER_HEAD: usize = 10;

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKafkaRecord {
    /// Whose order it belongs to; it is not written.
    pub channel: Channel,
    /// What the log compacts by: `["channel","row"]`.
    pub key: Bytes,
    /// The value; none in a tombstone.
    pub value: Option<Bytes>,
    /// Its time in the log, in milliseconds since 1970; none: now.
    pub time_ms: Option<i64>,
    /// When it happened, as far as its publisher says, in milliseconds since 1970. Travels in the header `tidegate-ts`.
    pub happened_ms: Option<i64>,
    /// The publisher's name for it, which travels in the header `tidegate-id`.
    pub id: Option<Arc<str>>,
    /// What else travels in headers, by name.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

impl From<NewRecord> for NewKafkaRecord {
    fn from(new: NewRecord) -> Self {
        Self {
            channel: new.change.channel,
            key: new.key,
            value: new.change.data,
            time_ms: None,
            happened_ms: new.event_time_ms,
            id: new.id,
            headers: Vec::new(),
        }
    }
}

impl NewKafkaRecord {
    /// Bytes that it takes in a batch, at most.
    pub(super) fn size(&self) -> usize {
        let value = self.value.as_ref().map_or(0, Bytes::len);
        let id = self.id.as_ref().map_or(0, |id| id.len());
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| HEADER_HEAD + name.len() + value.as_ref().map_or(0, Bytes::len));
        self.key.len() + value + id + headers.sum::<usize>() + RECORD_HEAD
    }
}

/// Why a record is not in the log, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No broker took it in time. It may be in the log all the same: its `id` makes a second try harmless.
    #[error("the log does not take records now")]
    Unavailable,
    /// It is larger than the topic takes.
    #[error("the record is larger than the topic takes")]
    TooLarge,
    /// This node may not write to the topic.
    #[error("this node may not write to the topic")]
    NotAuthorized,
    /// An earlier one of its channel was not taken: so this one was not sent, to keep their order.
    #[error("an earlier record of its channel was not taken")]
    AfterFailed,
    /// The topic does not take such a record, for instance one without a key where it is compacted.
    #[error("the topic does not take such a record")]
    Refused,
}

impl AppendError {
    /// Whether another try may succeed: then nothing of the channel is taken of that publisher before it.
    pub(super) const fn passes(self) -> bool {
        match self {
            Self::Unavailable | Self::NotAuthorized | Self::AfterFailed => true,
            Self::TooLarge | Self::Refused => false,
        }
    }
}

impl From<NotTaken> for Appended {
    fn from(why: NotTaken) -> Self {
        match why {
            NotTaken::Full => Self::Overloaded,
            NotTaken::Shed(left) => Self::NotTried(left),
        }
    }
}

/// What an appender keeps to.
#[derive(Clone, Copy, Debug)]
pub struct AppenderSettings {
    /// Callers' batches that wait …
    pub queue: usize,
    /// … and their bytes, but for a single batch. Beyond them callers wait, or are told.
    pub queue_bytes: usize,
    /// How long a record is tried.
    pub delivery_timeout: Duration,
}

impl Default for AppenderSettings {
    fn default() -> Self {
        Self {
            queue: 1024,
            queue_bytes: 16 << 20,
            delivery_timeout: Duration::from_secs(10),
        }
    }
}

/// A record that is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where.
    pub position: Position,
    /// It was there already, under the same id: it was not appended again.
    pub repeat: bool,
}

/// Of each record: where it is, or why it is not in the log.
pub type Results = Vec<Result<Stored, AppendError>>;

impl From<Result<Stored, AppendError>> for Appended {
    fn from(result: Result<Stored, AppendError>) -> Self {
        match result {
            Ok(Stored {
                position,
                repeat: false,
            }) => Self::At(position),
            Ok(Stored { position, .. }) => Self::Duplicate(position),
            Err(AppendError::Unavailable) => Self::Unavailable,
            Err(AppendError::TooLarge) => Self::TooLarge,
            Err(AppendError::NotAuthorized) => Self::Denied,
            Err(AppendError::AfterFailed) => Self::AfterFailed,
            Err(AppendError::Refused) => Self::Unfit,
        }
    }
}

/// Why records were not taken: none of them was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// As much waits as may.
    Full,
    /// The cluster does not answer: its breaker lets nobody out for so long.
    Shed(Duration),
}

/// A caller's batch.
struct Job {
    records: Vec<NewKafkaRecord>,
    deadline: Instant,
    lost: Arc<Lost>,
    reply: oneshot::Sender<Results>,
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
pub struct KafkaAppender {
    jobs: mpsc::Sender<Job>,
    waiting: Arc<AtomicUsize>,
    settings: AppenderSettings,
    /// The task's: a breaker is gone once nobody appends or reads any more, whoever still knows the stream.
    cluster: Weak<KafkaCluster>,
}

impl fmt::Debug for KafkaAppender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaAppender")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl KafkaAppender {
    /// An appender, and its task, which ends when every clone of the appender is gone and what waited has been answered.
    pub fn new(
        cluster: Arc<KafkaCluster>,
        topic: &str,
        partition: u32,
        settings: AppenderSettings,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let place = Place {
            cluster,
            topic: topic.into(),
            partition,
            shape: None,
            recent: Arc::default(),
        };
        Self::of(place, settings, CancellationToken::new())
    }

    /// The same, whose bytes are counted there.
    #[must_use]
    pub(super) fn weighed(self, scales: Arc<AtomicUsize>) -> Self {
        Self {
            waiting: scales,
            ..self
        }
    }

    /// The same beside a reader of the partition, with which it shares what was read of late. While the topic has another shape
    /// than it should, nothing is appended, since nobody would find it. Its task also ends when it is told to stop: what was
    /// taken by then is still appended.
    pub fn beside(
        shape: &Arc<Shape>,
        partition: u32,
        recent: Arc<Recent>,
        settings: AppenderSettings,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let place = Place {
            cluster: shape.cluster.clone(),
            topic: shape.topic.clone(),
            partition,
            shape: Some(shape.clone()),
            recent,
        };
        Self::of(place, settings, stop)
    }

    fn of(
        place: Place,
        settings: AppenderSettings,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (jobs, queue) = mpsc::channel(settings.queue);
        let appender = Self {
            jobs,
            waiting: Arc::default(),
            settings,
            cluster: Arc::downgrade(&place.cluster),
        };
        (appender, Lane::new(place).run(queue, stop))
    }

    /// Bytes that wait here for the log to take them, those of the batch that is under way included.
    #[must_use]
    pub fn held(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes records, which are appended in order. Waits while the queue is full, not for the answer: of each record, where it
    /// is, or why it is not in the log. When nobody is left to tell, the appender has ended, and they are not in the log.
    ///
    /// `lost` is the publisher's own: once one of its records has failed in a way that passes, what it submits of that channel
    /// is not taken either.
    pub async fn submit(
        &self,
        records: Vec<NewKafkaRecord>,
        lost: &Arc<Lost>,
    ) -> oneshot::Receiver<Results> {
        let (job, answer) = self.job(records, lost);
        // Where nobody takes it, its end of the answer is dropped, which says so.
        drop(self.jobs.send(job).await);
        answer
    }

    /// The same, at once.
    ///
    /// # Errors
    /// [`NotTaken`]; the channels of the records are among the lost ones then.
    pub fn try_submit(
        &self,
        records: Vec<NewKafkaRecord>,
        lost: &Arc<Lost>,
    ) -> Result<oneshot::Receiver<Results>, NotTaken> {
        let (job, answer) = self.job(records, lost);
        let not_taken = |records: Vec<NewKafkaRecord>, why| {
            for record in records {
                lost.add(record.channel);
            }
            Err(why)
        };
        if let Some(left) = self.cluster.upgrade().and_then(|cluster| cluster.shed()) {
            return not_taken(job.records, NotTaken::Shed(left));
        }
        let others = self.waiting.load(Ordering::Relaxed) - job.weight.1;
        let full = if others > 0 && others + job.weight.1 > self.settings.queue_bytes {
            job
        } else {
            match self.jobs.try_send(job) {
                Err(mpsc::error::TrySendError::Full(job)) => job,
                // Of one that has ended the answer says so.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return Ok(answer),
            }
        };
        not_taken(full.records, NotTaken::Full)
    }

    fn job(
        &self,
        records: Vec<NewKafkaRecord>,
        lost: &Arc<Lost>,
    ) -> (Job, oneshot::Receiver<Results>) {
        let (reply, answer) = oneshot::channel();
        let bytes = records.iter().map(NewKafkaRecord::size).sum();
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let job = Job {
            records,
            deadline: Instant::now() + self.settings.delivery_timeout,
            lost: lost.clone(),
            reply,
            weight: Weight(self.waiting.clone(), bytes),
        };
        (job, answer)
    }
}
