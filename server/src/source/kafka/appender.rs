//! Appending to one partition: in order, acknowledged by all replicas in sync, each record once.
//!
//! A task takes what waits, as one batch, and has one request under way at a time, so that order is kept whatever happens. What
//! is not acknowledged is sent again under the same number until it is, or its time is over: the broker drops repeats. Whoever
//! is given up leaves the producer's epoch behind, so that a request of it which is still on its way is refused from then on.

mod lane;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

pub(super) use lane::Producer;

use super::KafkaCluster;
use crate::{
    model::{Channel, Offset},
    source::embedded::Lost,
};
use lane::Lane;

/// What a record weighs beside its key and value, at most.
const RECORD_HEAD: usize = 40;

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKafkaRecord {
    /// Whose order it belongs to; it is not written.
    pub channel: Channel,
    /// What the log compacts by: `["channel","row"]`.
    pub key: Bytes,
    /// The value; none in a tombstone.
    pub value: Option<Bytes>,
    /// When it happened, in milliseconds since 1970; none: now.
    pub time_ms: Option<i64>,
    /// The publisher's name for it, which travels in the header `id`.
    pub id: Option<Arc<str>>,
}

impl NewKafkaRecord {
    /// Bytes that it takes in a batch, at most.
    pub(super) fn size(&self) -> usize {
        let value = self.value.as_ref().map_or(0, Bytes::len);
        let id = self.id.as_ref().map_or(0, |id| id.len());
        self.key.len() + value + id + RECORD_HEAD
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

/// What an appender keeps to.
#[derive(Clone, Copy, Debug)]
pub struct AppenderSettings {
    /// Callers' batches that wait; beyond it callers wait.
    pub queue: usize,
    /// How long a record is tried.
    pub delivery_timeout: Duration,
}

impl Default for AppenderSettings {
    fn default() -> Self {
        Self {
            queue: 1024,
            delivery_timeout: Duration::from_secs(10),
        }
    }
}

/// Of each record: where it is, or why it is not in the log.
pub type Results = Vec<Result<Offset, AppendError>>;

/// A caller's batch.
struct Job {
    records: Vec<NewKafkaRecord>,
    deadline: Instant,
    lost: Arc<Lost>,
    reply: oneshot::Sender<Results>,
}

/// Where records of one partition are appended. Cheap to clone.
#[derive(Clone)]
pub struct KafkaAppender {
    jobs: mpsc::Sender<Job>,
    delivery_timeout: Duration,
}

impl KafkaAppender {
    /// An appender, and its task, which ends when every clone of the appender is gone and what waited has been answered.
    pub fn new(
        cluster: Arc<KafkaCluster>,
        topic: &str,
        partition: u32,
        settings: AppenderSettings,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (jobs, queue) = mpsc::channel(settings.queue);
        let lane = Lane::new(cluster, topic, partition);
        let appender = Self {
            jobs,
            delivery_timeout: settings.delivery_timeout,
        };
        (appender, lane.run(queue))
    }

    /// Takes records, which are appended in order. Waits while the queue is full, not for the answer: of each record, where it
    /// is, or why it is not in the log. When nobody is left to tell, the appender has ended, and they are not in the log.
    ///
    /// `lost` is the publisher's own: once one of its records is [`AppendError::Unavailable`], what it submits of that channel
    /// is not taken either.
    pub async fn submit(
        &self,
        records: Vec<NewKafkaRecord>,
        lost: &Arc<Lost>,
    ) -> oneshot::Receiver<Results> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            records,
            deadline: Instant::now() + self.delivery_timeout,
            lost: lost.clone(),
            reply,
        };
        // Where nobody takes it, its end of the answer is dropped, which says so.
        drop(self.jobs.send(job).await);
        answer
    }
}
