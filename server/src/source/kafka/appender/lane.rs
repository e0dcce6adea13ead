//! The owner of a partition's order: what waits, one batch at a time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kafka_protocol::{
    ResponseError,
    messages::{
        InitProducerIdRequest, ProduceRequest,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    super::{
        KafkaCluster, KafkaError, batch,
        cluster::{Leader, name},
        error::check,
        offset_of,
        wire::Versions,
    },
    AppendError, Job, NewKafkaRecord, Results,
};
use crate::clock::Clock;

/// By name up to 12, by the topic's id from 13 on.
const PRODUCE: Versions = 9..=13;
/// Acknowledged by all replicas in sync.
const ALL: i16 = -1;
/// Of a batch, about: what brokers and topics take by default, with room for heads.
const BATCH_BYTES: usize = 900_000;
/// Of a batch.
const BATCH_RECORDS: usize = 10_000;
/// Between two tries of a batch.
const AGAIN: Duration = Duration::from_millis(100);

/// By whom a batch is, and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Producer {
    pub(in super::super) id: i64,
    pub(in super::super) epoch: i16,
    pub(in super::super) sequence: i32,
}

impl Producer {
    /// The number behind `count` more records.
    fn pass(&mut self, count: usize) {
        let count = i64::try_from(count).unwrap_or(0);
        let next = (i64::from(self.sequence) + count) % (i64::from(i32::MAX) + 1);
        self.sequence = i32::try_from(next).unwrap_or(0);
    }
    /// Itself, begun anew: what it had under way is refused from its next batch on. None when epochs are used up.
    fn renewed(self) -> Option<Self> {
        let epoch = self
            .epoch
            .checked_add(1)
            .filter(|epoch| *epoch < i16::MAX)?;
        Some(Self {
            epoch,
            sequence: 0,
            ..self
        })
    }
}

/// What one try came to.
enum Tried {
    /// The batch's first offset.
    Taken(i64),
    /// Not, and not later either.
    Never(AppendError),
    /// Perhaps later.
    Again,
    /// The broker does not know this producer, or not at this number.
    Unknown,
}

/// The owner of a partition's order.
pub(super) struct Lane {
    cluster: Arc<KafkaCluster>,
    topic: Arc<str>,
    partition: u32,
    leader: Option<Leader>,
    producer: Option<Producer>,
    clock: Clock,
}

impl Lane {
    pub(super) fn new(cluster: Arc<KafkaCluster>, topic: &str, partition: u32) -> Self {
        Self {
            cluster,
            topic: topic.into(),
            partition,
            leader: None,
            producer: None,
            clock: Clock::start(),
        }
    }

    /// Serves until nobody is left who could ask.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut waiting = None;
        loop {
            let first = match waiting.take() {
                Some(job) => job,
                None => match queue.recv().await {
                    Some(job) => job,
                    None => return,
                },
            };
            let mut jobs = vec![first];
            let (mut bytes, mut count) = weight(&jobs[0]);
            while let Ok(job) = queue.try_recv() {
                let (more_bytes, more) = weight(&job);
                if bytes + more_bytes > BATCH_BYTES || count + more > BATCH_RECORDS {
                    waiting = Some(job);
                    break;
                }
                (bytes, count) = (bytes + more_bytes, count + more);
                jobs.push(job);
            }
            self.serve(jobs).await;
        }
    }

    /// Appends what several callers gave, and answers each.
    async fn serve(&mut self, mut jobs: Vec<Job>) {
        let deadlines = jobs.iter().map(|job| job.deadline);
        let deadline = deadlines.max().unwrap_or_else(Instant::now);
        let (mut records, mut plans) = (Vec::new(), Vec::new());
        for job in &mut jobs {
            let mut plan = Vec::with_capacity(job.records.len());
            for record in std::mem::take(&mut job.records) {
                let sent = !job.lost.has(&record.channel);
                plan.push(sent.then(|| record.channel.clone()));
                records.extend(sent.then_some(record));
            }
            plans.push(plan);
        }
        let mut results = self.append(records, deadline).await.into_iter();
        for (job, plan) in jobs.into_iter().zip(plans) {
            let its = plan.into_iter().map(|channel| {
                let Some(channel) = channel else {
                    return Err(AppendError::AfterFailed);
                };
                let result = results.next().unwrap_or(Err(AppendError::Unavailable));
                if result == Err(AppendError::Unavailable) {
                    job.lost.add(channel);
                }
                result
            });
            // Who asked may have gone.
            drop(job.reply.send(its.collect()));
        }
    }

    /// Appends records in order, in batches that are not too large, halved where the topic takes less.
    async fn append(&mut self, records: Vec<NewKafkaRecord>, deadline: Instant) -> Results {
        let mut results = Results::with_capacity(records.len());
        let mut parts = vec![records.as_slice()];
        while let Some(part) = parts.pop() {
            let fitting = fitting(part);
            if fitting < part.len() {
                parts.push(&part[fitting..]);
                parts.push(&part[..fitting]);
                continue;
            }
            if part.is_empty() {
                continue;
            }
            match self.deliver(part, deadline).await {
                Ok(first) => {
                    results.extend((0..).zip(part).map(|(at, _)| Ok(offset_of(first + at))))
                }
                Err(AppendError::TooLarge | AppendError::Refused) if part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
                // What follows must not get in before it.
                Err(AppendError::Unavailable) => break,
                Err(error) => results.extend(part.iter().map(|_| Err(error))),
            }
        }
        results.resize(records.len(), Err(AppendError::Unavailable));
        results
    }

    /// Has the broker take one batch, whatever it takes until the deadline. Its first offset.
    async fn deliver(
        &mut self,
        records: &[NewKafkaRecord],
        deadline: Instant,
    ) -> Result<i64, AppendError> {
        let mut perhaps_taken = false;
        while Instant::now() < deadline {
            match self.attempt(records).await {
                Ok(Tried::Taken(first)) => {
                    if let Some(producer) = &mut self.producer {
                        producer.pass(records.len());
                    }
                    return Ok(first);
                }
                Ok(Tried::Never(error)) => return Err(error),
                // The broker forgot this producer. Under another name a repeat would not be noticed.
                Ok(Tried::Unknown) if perhaps_taken => {
                    self.producer = None;
                    return Err(AppendError::Unavailable);
                }
                Ok(Tried::Unknown) => self.producer = None,
                Ok(Tried::Again) => {
                    self.leader = None;
                    perhaps_taken = true;
                }
                Err(error) if error.is_denied() => return Err(AppendError::NotAuthorized),
                Err(error) => {
                    tracing::debug!(%error, topic = %self.topic, partition = self.partition, "appending fails");
                    self.leader = None;
                    perhaps_taken = true;
                }
            }
            sleep(AGAIN).await;
        }
        if perhaps_taken {
            self.producer = self.producer.and_then(Producer::renewed);
        }
        tracing::warn!(topic = %self.topic, partition = self.partition, records = records.len(), "records are given up: the log did not take them in time");
        Err(AppendError::Unavailable)
    }

    /// Sends a batch once. An error says nothing of whether the broker has it.
    async fn attempt(&mut self, records: &[NewKafkaRecord]) -> Result<Tried, KafkaError> {
        let cluster = self.cluster.clone();
        let producer = match self.producer {
            Some(producer) => producer,
            None => *self
                .producer
                .insert(cluster.in_time(producer(&cluster)).await?),
        };
        if self
            .leader
            .as_ref()
            .is_none_or(|leader| leader.connection.is_busy())
        {
            let found = cluster.in_time(cluster.leader(&self.topic, self.partition));
            self.leader = Some(found.await?);
        }
        let Some(leader) = &mut self.leader else {
            return Ok(Tried::Again);
        };
        let encoded = batch::encode(records, &producer, self.clock.wall_ms());
        let request = self::request(
            &self.topic,
            self.partition,
            leader,
            encoded,
            cluster.settings.timeout,
        );
        let answer = cluster
            .in_time(leader.connection.call(&request, PRODUCE))
            .await?;
        let mut topics = answer.responses.into_iter();
        let found = topics
            .next()
            .and_then(|topic| topic.partition_responses.into_iter().next());
        let found = found.ok_or(KafkaError::Malformed("an append without its partition"))?;
        Ok(verdict(found.error_code, found.base_offset))
    }
}

/// A name for batches, from the cluster.
async fn producer(cluster: &KafkaCluster) -> Result<Producer, KafkaError> {
    let mut broker = cluster.any().await?;
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(i32::MAX);
    let answer = broker.call(&request, 2..=4).await?;
    check(answer.error_code)?;
    Ok(Producer {
        id: answer.producer_id.0,
        epoch: answer.producer_epoch,
        sequence: 0,
    })
}

fn request(
    topic: &str,
    partition: u32,
    leader: &Leader,
    batch: Bytes,
    timeout: Duration,
) -> ProduceRequest {
    let data = PartitionProduceData::default()
        .with_index(i32::try_from(partition).unwrap_or(i32::MAX))
        .with_records(Some(batch));
    let data = TopicProduceData::default()
        .with_name(name(topic))
        .with_topic_id(leader.topic)
        .with_partition_data(vec![data]);
    ProduceRequest::default()
        .with_acks(ALL)
        .with_timeout_ms(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX))
        .with_topic_data(vec![data])
}

fn verdict(code: i16, first: i64) -> Tried {
    use ResponseError as E;
    match E::try_from_code(code) {
        None if first >= 0 => Tried::Taken(first),
        Some(E::MessageTooLarge | E::RecordListTooLarge) => Tried::Never(AppendError::TooLarge),
        Some(E::TopicAuthorizationFailed | E::ClusterAuthorizationFailed) => {
            Tried::Never(AppendError::NotAuthorized)
        }
        Some(E::InvalidRecord | E::InvalidTimestamp | E::CorruptMessage | E::PolicyViolation) => {
            Tried::Never(AppendError::Refused)
        }
        Some(
            E::OutOfOrderSequenceNumber
            | E::UnknownProducerId
            | E::InvalidProducerEpoch
            | E::DuplicateSequenceNumber,
        ) => Tried::Unknown,
        _ => Tried::Again,
    }
}

fn weight(job: &Job) -> (usize, usize) {
    let bytes = job.records.iter().map(NewKafkaRecord::size).sum();
    (bytes, job.records.len())
}

/// How many of the records fit into a batch, at least one.
fn fitting(records: &[NewKafkaRecord]) -> usize {
    let mut bytes = 0;
    let mut fitting = records.iter().take(BATCH_RECORDS).take_while(|record| {
        bytes += record.size();
        bytes <= BATCH_BYTES
    });
    fitting.by_ref().count().max(1).min(records.len())
}
