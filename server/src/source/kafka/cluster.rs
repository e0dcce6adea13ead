//! A cluster: whom to ask first, who leads a partition, how many partitions a topic has.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kafka_protocol::{
    ResponseError,
    messages::{
        ListOffsetsRequest, MetadataRequest, MetadataResponse, TopicName,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
        metadata_response::MetadataResponseTopic,
    },
    protocol::StrBytes,
};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{KafkaError, error::check, next_to, secure::Security, wire::Connection};
use crate::{
    clock::Clock,
    model::Offset,
    upstream::{Limits, Upstream, Upstreams, Verdict},
};

/// Of these times Kafka knows the offsets without looking at records.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;
/// Only what is decided: nothing of a transaction that is open or was aborted.
pub(super) const READ_COMMITTED: i8 = 1;
/// Brokers remembered beside the ones that were configured.
const KNOWN_MAX: usize = 64;

/// Where a cluster is, and how it is spoken to.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Brokers to ask first, as `host:port`.
    pub brokers: Vec<String>,
    /// Encryption and credentials.
    pub security: Security,
    /// The longest that anything a broker is asked may take, connecting included. One second is a good value within a region.
    pub timeout: Duration,
}

/// A cluster of brokers, shared by all that read from it or append to it.
#[derive(Debug)]
pub struct KafkaCluster {
    pub(super) settings: ClusterSettings,
    /// The brokers that the cluster named last, in case those that were configured are gone.
    known: Mutex<Vec<String>>,
    newest: Mutex<Newest>,
    next: AtomicUsize,
    /// When any of its brokers answered last.
    answered: Mutex<Option<Instant>>,
    pub(super) upstream: Arc<Upstream>,
}

/// The newest leader epoch of each partition that any broker named, of each topic: a leader that was cut off, or did nothing for a
/// while, takes itself for the leader until it hears of the next one, and knows nothing of what that one took.
#[derive(Debug, Default)]
struct Newest(BTreeMap<String, (Uuid, BTreeMap<i32, i32>)>);

impl Newest {
    /// Takes in what a broker said. A topic that was made anew begins anew.
    fn learn(&mut self, topic: &MetadataResponseTopic) {
        let Some(name) = &topic.name else { return };
        let known = self.0.entry(name.as_str().to_owned()).or_default();
        if known.0 != topic.topic_id {
            *known = (topic.topic_id, BTreeMap::new());
        }
        for partition in &topic.partitions {
            let newest = known.1.entry(partition.partition_index).or_insert(-1);
            *newest = partition.leader_epoch.max(*newest);
        }
    }

    /// Whether another leader has followed the one of this epoch.
    fn is_over(&self, topic: &str, id: Uuid, partition: i32, leader_epoch: i32) -> bool {
        let known = self.0.get(topic).filter(|(known, _)| *known == id);
        let newest = known.and_then(|(_, partitions)| partitions.get(&partition));
        newest.is_some_and(|newest| *newest > leader_epoch)
    }
}

/// A connection to the leader of a partition, and what the cluster said of it.
pub(super) struct Leader {
    pub(super) connection: Connection,
    pub(super) topic: Uuid,
    pub(super) leader_epoch: i32,
    pub(super) address: String,
}

impl KafkaCluster {
    /// A cluster, behind a breaker of its own; nothing is asked yet.
    #[must_use]
    pub fn new(settings: ClusterSettings) -> Self {
        Self::among(&Upstreams::new(Clock::start()), "kafka", settings)
    }

    /// A cluster whose breaker is listed among these, under this name.
    #[must_use]
    pub fn among(upstreams: &Upstreams, name: &str, settings: ClusterSettings) -> Self {
        let limits = Limits {
            time_out: settings.timeout,
            ..Limits::default()
        };
        Self {
            known: Mutex::default(),
            newest: Mutex::default(),
            next: AtomicUsize::new(0),
            answered: Mutex::default(),
            upstream: upstreams.open(name, limits),
            settings,
        }
    }

    /// Until when nobody is asked, where its breaker lets nobody out now.
    #[must_use]
    pub fn shed(&self) -> Option<Duration> {
        self.upstream.shed_for()
    }

    /// How many partitions a topic has now. They may become more, never less.
    ///
    /// # Errors
    /// [`KafkaError`]; [`KafkaError::NoTopic`] when there is no such topic.
    pub async fn partitions(&self, topic: &str) -> Result<u32, KafkaError> {
        let metadata = self.in_time(self.metadata(topic)).await?;
        let topic = metadata.topics.first();
        Ok(topic.map_or(0, |topic| {
            u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX)
        }))
    }

    /// Just before the first record of a partition whose time is this or later, in milliseconds since 1970; the log's head
    /// when there is none.
    ///
    /// # Errors
    /// [`KafkaError`].
    pub async fn offset_at(
        &self,
        topic: &str,
        partition: u32,
        time_ms: i64,
    ) -> Result<Offset, KafkaError> {
        self.in_time(async {
            let mut leader = self.leader(topic, partition).await?;
            let found = leader.offset(topic, partition, time_ms.max(0)).await?;
            Ok(next_to(match found {
                -1 => leader.offset(topic, partition, LATEST).await?,
                found => found,
            }))
        })
        .await
    }

    /// Asks brokers, where the cluster's breaker lets somebody out now; bounded. Never waits for the breaker: whoever knows the
    /// moment before knows when the question was sent.
    pub(super) async fn in_time<T>(
        &self,
        asking: impl Future<Output = Result<T, KafkaError>>,
    ) -> Result<T, KafkaError> {
        let permit = self.upstream.try_acquire()?;
        let Ok(result) = timeout(self.settings.timeout, asking).await else {
            if self.answers_others() {
                permit.declined();
            } else {
                permit.timed_out();
            }
            return Err(KafkaError::Late(self.settings.timeout));
        };
        permit.settle(match &result {
            Ok(_) => {
                *self.answered() = Some(Instant::now());
                Verdict::Answered
            }
            Err(error) => match error.verdict() {
                Verdict::Failed(_) if self.answers_others() => Verdict::Declined,
                verdict => verdict,
            },
        });
        result
    }

    /// Whether somebody was answered while a call of now may have waited. Then one broker does not answer, and the cluster is there:
    /// its breaker would hold up the partitions that others lead.
    fn answers_others(&self) -> bool {
        self.answered()
            .is_some_and(|at| at.elapsed() < self.settings.timeout)
    }

    fn answered(&self) -> MutexGuard<'_, Option<Instant>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to a partition's leader.
    pub(super) async fn leader(&self, topic: &str, partition: u32) -> Result<Leader, KafkaError> {
        let metadata = self.metadata(topic).await?;
        let missing = || KafkaError::Missing(topic.to_owned(), partition);
        let index = i32::try_from(partition).map_err(|_| missing())?;
        let described = metadata.topics.first().ok_or_else(missing)?;
        let mut partitions = described.partitions.iter();
        let found = partitions
            .find(|found| found.partition_index == index)
            .ok_or_else(missing)?;
        if self.is_over(topic, described.topic_id, partition, found.leader_epoch) {
            return Err(KafkaError::Outdated(topic.to_owned(), partition));
        }
        let mut brokers = metadata.brokers.iter();
        let leader = brokers
            .find(|broker| broker.node_id == found.leader_id)
            .ok_or_else(|| KafkaError::Leaderless(topic.to_owned(), partition))?;
        let address = format!("{}:{}", leader.host.as_str(), leader.port);
        Ok(Leader {
            connection: Connection::open(&address, &self.settings.security).await?,
            topic: described.topic_id,
            leader_epoch: found.leader_epoch,
            address,
        })
    }

    /// Whether somebody has named a newer leader of a partition than the one of this epoch.
    pub(super) fn is_over(&self, topic: &str, id: Uuid, partition: u32, leader_epoch: i32) -> bool {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        i32::try_from(partition)
            .is_ok_and(|partition| newest.is_over(topic, id, partition, leader_epoch))
    }

    /// The same, once that one knows how much of its log is decided. Who has just become the leader may know of less than was
    /// read from the one before it. Asked for the log's end it says so, and refuses; a fetch it answers as if there were no more,
    /// which would prove a head that is too low.
    pub(super) async fn leader_that_knows_its_end(
        &self,
        topic: &str,
        partition: u32,
    ) -> Result<Leader, KafkaError> {
        let mut leader = self.leader(topic, partition).await?;
        leader.offset(topic, partition, LATEST).await?;
        Ok(leader)
    }

    /// Connects to any broker, in turn, so that one that is gone is not asked again and again.
    pub(super) async fn any(&self) -> Result<Connection, KafkaError> {
        let mut all = self.settings.brokers.clone();
        all.extend_from_slice(&self.known.lock().unwrap_or_else(PoisonError::into_inner));
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mut failed = KafkaError::Malformed("no broker is configured");
        for at in 0..all.len() {
            let address = &all[(turn + at) % all.len()];
            match Connection::open(address, &self.settings.security).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn metadata(&self, topic: &str) -> Result<MetadataResponse, KafkaError> {
        let mut connection = self.any().await?;
        let asked = MetadataRequestTopic::default().with_name(Some(name(topic)));
        let request = MetadataRequest::default()
            .with_topics(Some(vec![asked]))
            .with_allow_auto_topic_creation(false);
        let metadata = connection.call(&request, 10..=12).await?;
        self.learn(&metadata);
        let code = metadata.topics.first().map_or(0, |topic| topic.error_code);
        match check(code) {
            Err(KafkaError::Refused(ResponseError::UnknownTopicOrPartition)) => {
                Err(KafkaError::NoTopic(topic.to_owned()))
            }
            Err(error) => Err(error),
            Ok(()) => Ok(metadata),
        }
    }

    fn learn(&self, metadata: &MetadataResponse) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let topics = metadata.topics.iter();
        topics
            .filter(|topic| topic.error_code == 0)
            .for_each(|topic| newest.learn(topic));
        drop(newest);
        let named = metadata.brokers.iter().take(KNOWN_MAX);
        let known = named
            .map(|broker| format!("{}:{}", broker.host.as_str(), broker.port))
            .filter(|address| !self.settings.brokers.contains(address))
            .collect();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}

impl Leader {
    /// Where a partition's log begins, and where what is decided ends.
    pub(super) async fn extent(
        &mut self,
        topic: &str,
        partition: u32,
    ) -> Result<(i64, i64), KafkaError> {
        let start = self.offset(topic, partition, EARLIEST).await?;
        Ok((start, self.offset(topic, partition, LATEST).await?))
    }

    /// The offset of a time; -1 when there is none.
    pub(super) async fn offset(
        &mut self,
        topic: &str,
        partition: u32,
        time_ms: i64,
    ) -> Result<i64, KafkaError> {
        let asked = ListOffsetsPartition::default()
            .with_partition_index(i32::try_from(partition).unwrap_or(i32::MAX))
            .with_current_leader_epoch(self.leader_epoch)
            .with_timestamp(time_ms);
        let asked = ListOffsetsTopic::default()
            .with_name(name(topic))
            .with_partitions(vec![asked]);
        let request = ListOffsetsRequest::default()
            .with_replica_id((-1).into())
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![asked]);
        let answer = self.connection.call(&request, 4..=7).await?;
        let mut topics = answer.topics.iter();
        let found = topics.next().and_then(|topic| topic.partitions.first());
        let found = found.ok_or(KafkaError::Malformed("no offset"))?;
        check(found.error_code)?;
        Ok(found.offset)
    }
}

/// A topic's name as messages have it.
pub(super) fn name(topic: &str) -> TopicName {
    StrBytes::from_string(topic.to_owned()).into()
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::metadata_response::MetadataResponsePartition;

    use super::*;

    fn said(id: u128, leader_epoch: i32) -> MetadataResponseTopic {
        let partition = MetadataResponsePartition::default()
            .with_partition_index(3)
            .with_leader_epoch(leader_epoch);
        MetadataResponseTopic::default()
            .with_name(Some(name("board")))
            .with_topic_id(Uuid::from_u128(id))
            .with_partitions(vec![partition])
    }

    #[test]
    fn a_leader_is_over_once_anybody_has_named_the_next_one() {
        let mut newest = Newest::default();
        let id = Uuid::from_u128(1);
        assert!(!newest.is_over("board", id, 3, 0), "nothing is known");
        newest.learn(&said(1, 5));
        newest.learn(&said(1, 4));
        assert!(newest.is_over("board", id, 3, 4));
        assert!(!newest.is_over("board", id, 3, 5));
        assert!(!newest.is_over("board", id, 2, 4), "of another partition");
        newest.learn(&said(2, 0));
        assert!(
            !newest.is_over("board", Uuid::from_u128(2), 3, 0),
            "made anew"
        );
    }
}
