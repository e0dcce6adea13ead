//! A node's reader of one partition.
//!
//! A fetch is one request to the partition's leader, sent when it is asked for. Waiting for more is another request on a
//! connection of its own, which the broker answers when there is something: it only wakes, and what it brought is fetched
//! again, so that a fetch never waits behind it. A leader is read from once it knows how much of its log is decided. Who fails waits
//! before the next try, a little longer each time.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use kafka_protocol::{
    ResponseError,
    messages::{
        FetchRequest, FetchResponse,
        fetch_request::{FetchPartition, FetchTopic},
        fetch_response::PartitionData,
    },
};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    KafkaCluster, KafkaError,
    backoff::Backoff,
    batch,
    cluster::{Leader, READ_COMMITTED},
    error::check,
    next_after, next_to,
    recent::Recent,
    wire::{Connection, Versions},
};
use crate::{
    clock::Clock,
    model::{Epoch, Offset},
    source::{Fetch, Lineage, ReadAt, Source, SourceError, Wanted},
    upstream::State,
};

/// Fetches that name their topic by id.
const FETCH: Versions = 13..=17;
/// How long a broker holds a request that waits for records.
const WAIT: Duration = Duration::from_millis(500);

/// Characters of a topic's id in an epoch's name.
const ID_TEXT: usize = 22;

/// A reader of one partition of a topic.
pub struct KafkaSource {
    cluster: Arc<KafkaCluster>,
    topic: Arc<str>,
    partition: u32,
    clock: Clock,
    leader: Option<Leader>,
    ear: Ear,
    /// The log as the caller knows it.
    log: Option<Log>,
    backoff: Backoff,
    /// Why the last fetch failed, if it did.
    failed: Option<String>,
    recent: Arc<Recent>,
    /// What the last fetch brought, as it came, where somebody may look at it again.
    raw: Option<Bytes>,
}

/// A log, and how far it has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Log {
    topic: Uuid,
    /// The leader epoch in which it was noticed that the log had gone back.
    went_back: Option<i32>,
    next: i64,
    /// The leader epoch of the last batch before `next`, where it was read here.
    leader_epoch: Option<i32>,
}

impl Log {
    /// The log of this epoch; of one that is no epoch of Kafka's, none that any topic has.
    fn named(epoch: &Epoch, at: Offset, lineage: Option<&str>) -> Self {
        let (topic, went_back) = epoch.as_str().split_at_checked(ID_TEXT).unwrap_or_default();
        let id = BASE64_URL_SAFE_NO_PAD.decode(topic).unwrap_or_default();
        let went_back = went_back
            .strip_prefix("-l")
            .and_then(|word| word.parse().ok());
        let named = Self {
            topic: Uuid::from_slice(&id).unwrap_or_default(),
            went_back,
            next: next_after(at),
            leader_epoch: lineage.and_then(|word| word.parse().ok()),
        };
        let is_it = named.epoch().is_ok_and(|again| again == *epoch);
        let topic = if is_it { named.topic } else { Uuid::nil() };
        Self { topic, ..named }
    }

    /// What a later reader needs to prove that the log still holds what was read up to `next`.
    fn lineage(&self) -> Option<Lineage> {
        Some(self.leader_epoch?.to_string().into())
    }

    fn epoch(&self) -> Result<Epoch, KafkaError> {
        let mut name = BASE64_URL_SAFE_NO_PAD.encode(self.topic.as_bytes());
        if let Some(leader_epoch) = self.went_back {
            name.push_str(&format!("-l{leader_epoch}"));
        }
        Epoch::new(&name).map_err(|_| KafkaError::Malformed("a topic's id"))
    }
}

/// A connection on which a request waits for records.
#[derive(Default)]
struct Ear {
    connection: Option<Connection>,
    /// Of which log the request asks, from where.
    asked: Option<(Uuid, i64)>,
    backoff: Backoff,
}

impl Ear {
    fn disconnect(&mut self) {
        (self.connection, self.asked) = (None, None);
    }
}

/// What a fetch came to.
enum Outcome {
    Read(Fetch),
    /// The log does not reach to where the fetch began, or no longer does.
    OutOfRange,
    /// What was read before is no longer in the log.
    WentBack,
}

impl KafkaSource {
    /// A reader; nothing is asked yet.
    #[must_use]
    pub fn new(cluster: Arc<KafkaCluster>, topic: &str, partition: u32) -> Self {
        Self {
            cluster,
            topic: topic.into(),
            partition,
            clock: Clock::start(),
            leader: None,
            ear: Ear::default(),
            log: None,
            backoff: Backoff::default(),
            failed: None,
            recent: Arc::default(),
            raw: None,
        }
    }

    /// Keeps what the next fetch brings as it came, for [`KafkaSource::take_raw`]; or no longer.
    pub(super) fn keep_raw(&mut self, keep: bool) {
        self.raw = keep.then(Bytes::new);
    }

    /// What the last fetch brought, as it came.
    pub(super) fn take_raw(&mut self) -> Bytes {
        self.raw.take().unwrap_or_default()
    }

    /// The same, which tells an appender what it reads.
    #[must_use]
    pub fn beside(self, recent: Arc<Recent>) -> Self {
        Self { recent, ..self }
    }

    /// Reads; a connection that had been idle may have been closed by then, and a leader may have moved: once more.
    async fn read(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, KafkaError> {
        let reused = self.leader.is_some();
        match self.read_once(after, bytes).await {
            Err(error) if reused => {
                tracing::debug!(%error, topic = %self.topic, partition = self.partition, "asking for the leader again");
                self.disconnect();
                self.read_once(after, bytes).await
            }
            result => result,
        }
    }

    async fn read_once(
        &mut self,
        after: Option<Offset>,
        bytes: usize,
    ) -> Result<Fetch, KafkaError> {
        let leader = self.lead().await?;
        let (topic, leader_epoch) = (leader.topic, leader.leader_epoch);
        let known = self.log.filter(|log| log.topic == topic);
        if after.is_some() && known.is_none() && self.log.is_some() {
            return self.begin_anew(None).await;
        }
        let from = match after {
            Some(after) => next_after(after),
            None => self.extent().await?.0,
        };
        let log = Log {
            topic,
            went_back: known.and_then(|log| log.went_back),
            next: from,
            leader_epoch: known
                .filter(|log| log.next == from)
                .and_then(|log| log.leader_epoch),
        };
        self.fetch_log(log, leader_epoch, bytes).await
    }

    async fn fetch_log(
        &mut self,
        log: Log,
        leader_epoch: i32,
        bytes: usize,
    ) -> Result<Fetch, KafkaError> {
        match self.fetch_from(log, bytes).await? {
            Outcome::Read(fetch) => Ok(fetch),
            Outcome::WentBack => self.begin_anew(Some(leader_epoch)).await,
            Outcome::OutOfRange => {
                let (start, end) = self.extent().await?;
                if log.next >= start {
                    return self.begin_anew(Some(leader_epoch)).await;
                }
                let log = Log {
                    next: start,
                    leader_epoch: None,
                    ..log
                };
                self.empty(log, start, end)
            }
        }
    }

    /// Where what is wanted begins. What was read before is looked for first: where it is gone, the log gets another name.
    async fn find(&mut self, wanted: Wanted) -> Result<Offset, KafkaError> {
        let leader = self.lead().await?;
        let (topic, leader_epoch) = (leader.topic, leader.leader_epoch);
        match self.log.filter(|log| log.topic == topic) {
            Some(log) => drop(self.fetch_log(log, leader_epoch, 1).await?),
            None => self.log = None,
        }
        let age_ms = i64::try_from(wanted.age.as_millis()).unwrap_or(i64::MAX);
        let since_ms = self.clock.wall_ms().saturating_sub(age_ms).max(0);
        let (start, end) = self.extent().await?;
        let (topic, partition) = (self.topic.clone(), self.partition);
        let leader = self.lead().await?;
        let by_time = match leader.offset(&topic, partition, since_ms).await? {
            none if none < 0 => end,
            found => found.min(end),
        };
        let newest = end.saturating_sub(i64::try_from(wanted.newest).unwrap_or(i64::MAX));
        let asked = wanted.behind.map(|at| next_after(at).max(newest));
        Ok(next_to(by_time.min(asked.unwrap_or(by_time)).max(start)))
    }

    /// The log is another one: what the caller knows of the old one means nothing in it.
    async fn begin_anew(&mut self, went_back: Option<i32>) -> Result<Fetch, KafkaError> {
        let (start, end) = self.extent().await?;
        let log = Log {
            topic: self.lead().await?.topic,
            went_back,
            next: end,
            leader_epoch: None,
        };
        tracing::warn!(
            topic = %self.topic,
            partition = self.partition,
            epoch = %log.epoch()?,
            "the log is another one, or went back"
        );
        self.empty(log, start, end)
    }

    /// An answer without records, at `log.next`.
    fn empty(&mut self, log: Log, start: i64, end: i64) -> Result<Fetch, KafkaError> {
        self.log = Some(log);
        Ok(Fetch {
            epoch: log.epoch()?,
            start: next_to(start),
            records: Vec::new(),
            upto: next_to(log.next),
            head: next_to(end),
            when: None,
            lineage: log.lineage(),
        })
    }

    async fn fetch_from(&mut self, mut log: Log, bytes: usize) -> Result<Outcome, KafkaError> {
        let (from, epoch) = (log.next, log.epoch()?);
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        let index = index(self.partition);
        let leader = self.lead().await?;
        let request = request(&log, index, leader.leader_epoch, bytes, Duration::ZERO);
        let answer = leader.connection.call(&request, FETCH).await?;
        let answer = partition_of(answer)?;
        match answer.error_code {
            0 if answer.diverging_epoch.end_offset >= 0 => return Ok(Outcome::WentBack),
            code if code == ResponseError::OffsetOutOfRange.code() => {
                return Ok(Outcome::OutOfRange);
            }
            code => check(code)?,
        }
        let mut read = batch::Read::default();
        let aborted = answer.aborted_transactions.unwrap_or_default();
        let bytes = answer.records.unwrap_or_else(Bytes::new);
        let nothing = bytes.is_empty();
        if let Some(raw) = &mut self.raw {
            *raw = bytes.clone();
        }
        let end = answer.last_stable_offset;
        match batch::read(bytes, from, &aborted, &mut read)? {
            Some(reached) => {
                log.next = reached.next.max(from);
                log.leader_epoch = Some(reached.leader_epoch);
            }
            // A broker gives one whole batch, if there is one: so from here to the end there is none.
            None if nothing => log.next = from.max(end),
            None => return Err(KafkaError::Malformed("a batch that is not whole")),
        }
        self.log = Some(log);
        self.recent.read(&epoch, read.ids, &mut read.records);
        Ok(Outcome::Read(Fetch {
            epoch,
            start: next_to(answer.log_start_offset),
            records: read.records,
            upto: next_to(log.next),
            head: next_to(end.max(log.next)),
            when: None,
            lineage: log.lineage(),
        }))
    }

    /// The leader, connected.
    async fn lead(&mut self) -> Result<&mut Leader, KafkaError> {
        // Who has been followed by another may answer all the same, and know nothing of what that one took.
        let is_of_use = |leader: &Leader| {
            let (topic, epoch) = (leader.topic, leader.leader_epoch);
            let cluster = &self.cluster;
            !leader.connection.is_busy()
                && !cluster.is_over(&self.topic, topic, self.partition, epoch)
        };
        if !self.leader.as_ref().is_some_and(is_of_use) {
            let finding = self
                .cluster
                .leader_that_knows_its_end(&self.topic, self.partition);
            self.leader = Some(finding.await?);
        }
        let leader = self.leader.as_mut();
        leader.ok_or_else(|| KafkaError::Leaderless(self.topic.to_string(), self.partition))
    }

    async fn extent(&mut self) -> Result<(i64, i64), KafkaError> {
        let (topic, partition) = (self.topic.clone(), self.partition);
        self.lead().await?.extent(&topic, partition).await
    }

    /// A fetch has failed. One back-off holds at a time: the breaker's where it is open, else that of this partition.
    fn fail(&mut self, error: &KafkaError) {
        self.disconnect();
        if self.cluster.upstream.state() == State::Closed {
            if self.backoff.is_clear() {
                tracing::warn!(%error, topic = %self.topic, partition = self.partition, "the partition can't be read");
            }
            self.backoff.fail();
        } else {
            self.backoff = Backoff::default();
        }
        // That nobody was asked says less than why.
        let shed = matches!(error, KafkaError::Shed(_));
        if !shed || self.failed.is_none() {
            self.failed = Some(error.to_string());
        }
    }

    fn disconnect(&mut self) {
        self.leader = None;
        self.ear.disconnect();
    }

    /// Whether there may be something new; no, when the broker's patience ended without. Cancel safe: what was asked stays
    /// asked.
    async fn listen(&mut self) -> Result<bool, KafkaError> {
        let (Some(log), Some(leader)) = (self.log, &self.leader) else {
            return std::future::pending().await;
        };
        let ear = &mut self.ear;
        let connection = match &mut ear.connection {
            Some(connection) => connection,
            none => {
                let opening = Connection::open(&leader.address, &self.cluster.settings.security);
                ear.asked = None;
                none.insert(self.cluster.in_time(opening).await?)
            }
        };
        if !connection.is_busy() {
            let request = request(&log, index(self.partition), leader.leader_epoch, 1, WAIT);
            connection.ask(&request, FETCH)?;
            ear.asked = Some((log.topic, log.next));
        }
        let limit = WAIT + self.cluster.settings.timeout;
        let late = |_| KafkaError::Late(limit);
        let answer = timeout(limit, connection.answer::<FetchRequest>()).await;
        let answer = partition_of(answer.map_err(late)??)?;
        check(answer.error_code)?;
        ear.backoff = Backoff::default();
        let is_news = answer.records.is_some_and(|records| !records.is_empty())
            || answer.diverging_epoch.end_offset >= 0;
        // What was asked for an earlier place has been fetched meanwhile.
        Ok(is_news && ear.asked == Some((log.topic, log.next)))
    }
}

impl Source for KafkaSource {
    async fn fetch(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        if self.backoff.waits() {
            return Err(SourceError::Unavailable);
        }
        let cluster = self.cluster.clone();
        let sent_ms = self.clock.wall_ms();
        match cluster.in_time(self.read(after, bytes)).await {
            Ok(mut fetch) => {
                (self.backoff, self.failed) = (Backoff::default(), None);
                fetch.when = Some(ReadAt {
                    sent_ms,
                    answered_ms: self.clock.wall_ms(),
                });
                Ok(fetch)
            }
            Err(error) => {
                self.fail(&error);
                Err(SourceError::Unavailable)
            }
        }
    }

    async fn begin(&mut self, wanted: Wanted) -> Result<Option<Offset>, SourceError> {
        if self.backoff.waits() {
            return Err(SourceError::Unavailable);
        }
        let cluster = self.cluster.clone();
        let found = cluster.in_time(self.find(wanted)).await;
        found.map(Some).map_err(|error| {
            self.fail(&error);
            SourceError::Unavailable
        })
    }

    /// A fetch tells; what the topic is as a whole is not this partition's to know.
    async fn look(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn rest(&mut self) {
        self.disconnect();
    }

    fn resume(&mut self, epoch: &Epoch, at: Offset, lineage: Option<&str>) {
        self.log = Some(Log::named(epoch, at, lineage));
    }

    fn failure(&self) -> Option<String> {
        self.failed.clone()
    }

    fn another(&self) -> Option<Self> {
        Some(Self::new(self.cluster.clone(), &self.topic, self.partition))
    }

    async fn changed(&mut self) {
        if self.failed.is_some() {
            self.backoff.over().await;
            return self.cluster.upstream.passable().await;
        }
        loop {
            match self.listen().await {
                Ok(false) => {}
                Ok(true) => return,
                Err(error) => {
                    tracing::debug!(%error, topic = %self.topic, partition = self.partition, "can't wait for records");
                    self.ear.disconnect();
                    self.ear.backoff.fail();
                    // A fetch will tell what is wrong; and where nothing is, this is no reason to hurry.
                    return self.ear.backoff.over().await;
                }
            }
        }
    }
}

fn index(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

fn request(
    log: &Log,
    partition: i32,
    leader_epoch: i32,
    bytes: i32,
    wait: Duration,
) -> FetchRequest {
    let asked = FetchPartition::default()
        .with_partition(partition)
        .with_current_leader_epoch(leader_epoch)
        .with_last_fetched_epoch(log.leader_epoch.unwrap_or(-1))
        .with_fetch_offset(log.next)
        .with_partition_max_bytes(bytes);
    let topic = FetchTopic::default()
        .with_topic_id(log.topic)
        .with_partitions(vec![asked]);
    FetchRequest::default()
        .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(1)
        .with_max_bytes(bytes)
        .with_isolation_level(READ_COMMITTED)
        .with_topics(vec![topic])
}

/// The one partition of an answer. A broker that throttles this client answers without one.
fn partition_of(answer: FetchResponse) -> Result<PartitionData, KafkaError> {
    check(answer.error_code)?;
    let mut topics = answer.responses.into_iter();
    let found = topics
        .next()
        .and_then(|topic| topic.partitions.into_iter().next());
    found.ok_or(KafkaError::Malformed(
        "a fetch without its partition: the broker throttles this client",
    ))
}
