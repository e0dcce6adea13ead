//! Where publishing appends the records of a partition: one of this process's own logs, a topic of Kafka, Redis, or nowhere.
//!
//! Does: takes records in order, and says of each what became of it, whatever keeps them. Owns: nothing but the way there.
//! Never knows: publishers, permissions, the wire.

use std::sync::Arc;

use tokio::sync::oneshot;

#[cfg(feature = "kafka")]
use super::kafka::{KafkaAppender, Results};
use super::{
    embedded::{self, Appended, EmbeddedLog, Lost, NewRecord},
    redis::RedisAppender,
};

/// Where the records of a partition are appended.
#[derive(Clone, Debug)]
pub enum Log {
    /// A log of this process.
    Embedded(Arc<EmbeddedLog>),
    /// A partition of a topic, which others may write as well.
    #[cfg(feature = "kafka")]
    Kafka(KafkaAppender),
    /// A stream of Redis, which others may write as well.
    Redis(RedisAppender),
    /// Others write it, in a way of their own: why it can't be published to from here.
    Foreign(&'static str),
}

/// What becomes of a batch.
#[derive(Debug)]
pub enum Submitted {
    /// This, of each record in order.
    Done(Vec<Appended>),
    /// It will be told.
    Waiting(Waiting),
    /// It can't be published to from here, and why.
    Foreign(&'static str),
}

/// What will be told of a batch.
#[derive(Debug)]
pub struct Waiting(Told);

#[derive(Debug)]
enum Told {
    /// Of a disk, or of Redis.
    Appended(oneshot::Receiver<Vec<Appended>>),
    #[cfg(feature = "kafka")]
    Kafka(oneshot::Receiver<Results>),
}

impl Waiting {
    /// Of each record in order, what became of it; none when the log was closed before it had them. Cancel safe.
    pub async fn known(&mut self) -> Option<Vec<Appended>> {
        match &mut self.0 {
            Told::Appended(answer) => answer.await.ok(),
            #[cfg(feature = "kafka")]
            Told::Kafka(answer) => {
                let results = answer.await.ok()?;
                Some(results.into_iter().map(Appended::from).collect())
            }
        }
    }
}

impl Log {
    /// The log of this process, where it is one.
    #[must_use]
    pub const fn embedded(&self) -> Option<&Arc<EmbeddedLog>> {
        match self {
            Self::Embedded(log) => Some(log),
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => None,
            Self::Redis(_) | Self::Foreign(_) => None,
        }
    }

    /// Bytes that wait for a log elsewhere to take them.
    #[must_use]
    pub fn waiting(&self) -> usize {
        match self {
            Self::Embedded(_) | Self::Foreign(_) => 0,
            #[cfg(feature = "kafka")]
            Self::Kafka(appender) => appender.held(),
            Self::Redis(appender) => appender.held(),
        }
    }

    /// Takes records in order. Waits for room in the queue of a disk at most. `lost` is the publisher's own: of a channel that is
    /// in it nothing more is taken.
    pub async fn submit(
        &self,
        records: Vec<NewRecord>,
        now_ms: i64,
        lost: &Arc<Lost>,
    ) -> Submitted {
        match self {
            Self::Embedded(log) => match log.submit(records, now_ms, lost).await {
                embedded::Submitted::Done(appended) => Submitted::Done(appended),
                embedded::Submitted::Waiting(answer) => {
                    Submitted::Waiting(Waiting(Told::Appended(answer)))
                }
            },
            #[cfg(feature = "kafka")]
            Self::Kafka(appender) => {
                let count = records.len();
                let records = records.into_iter().map(Into::into).collect();
                match appender.try_submit(records, lost) {
                    Ok(answer) => Submitted::Waiting(Waiting(Told::Kafka(answer))),
                    Err(why) => Submitted::Done(vec![why.into(); count]),
                }
            }
            Self::Redis(appender) => {
                let count = records.len();
                match appender.try_submit(records, lost) {
                    Ok(answer) => Submitted::Waiting(Waiting(Told::Appended(answer))),
                    Err(why) => Submitted::Done(vec![why; count]),
                }
            }
            Self::Foreign(why) => Submitted::Foreign(why),
        }
    }
}
