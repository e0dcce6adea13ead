//! The owner of a partition's order: what waits, one batch at a time.

use std::{collections::HashMap, sync::Arc, time::Duration};

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
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        KafkaCluster, KafkaError, Recent, Shape, batch,
        cluster::{Leader, name},
        error::check,
        offset_of, topic_name,
        wire::Versions,
    },
    AppendError, Job, NewKafkaRecord, Stored,
};
use crate::{
    clock::Clock,
    model::{Channel, Epoch, Offset, Position},
    source::embedded::Lost,
};

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
    /// It was not sent: the topic has not the partitions that it should have.
    Misshapen,
    /// The broker does not know this producer, or not at this number.
    Unknown,
}

/// Which partition is appended to, and what is known of it.
pub(super) struct Place {
    pub(super) cluster: Arc<KafkaCluster>,
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    /// Which the topic must have.
    pub(super) shape: Option<Arc<Shape>>,
    pub(super) recent: Arc<Recent>,
}

/// What is to become of a record.
enum Plan {
    /// It goes with the batch, at this place of it.
    Send(usize, Channel),
    /// It is a repeat of one that is in the log.
    Repeat(Position),
    /// It is a repeat of one in the batch.
    RepeatOf(usize, Channel),
    /// An earlier one of its channel was not taken.
    AfterFailed,
}

/// The owner of a partition's order.
pub(super) struct Lane {
    place: Place,
    leader: Option<Leader>,
    producer: Option<Producer>,
    clock: Clock,
}

impl Lane {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            leader: None,
            producer: None,
            clock: Clock::start(),
        }
    }

    /// Serves until nobody is left who could ask, or until it is told to stop and has served what was taken by then.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job>, stop: CancellationToken) {
        let mut waiting = None;
        loop {
            let first = match waiting.take() {
                Some(job) => job,
                None => tokio::select! {
                    biased;
                    () = stop.cancelled(), if !queue.is_closed() => {
                        queue.close();
                        continue;
                    }
                    job = queue.recv() => match job {
                        Some(job) => job,
                        None => return,
                    },
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
        let (mut records, mut ids, mut plans) = (Vec::new(), HashMap::new(), Vec::new());
        for job in &mut jobs {
            let mut plan = Vec::with_capacity(job.records.len());
            for record in std::mem::take(&mut job.records) {
                if job.lost.has(&record.channel) {
                    plan.push(Plan::AfterFailed);
                } else {
                    plan.push(self.plan(record, &mut records, &mut ids));
                }
            }
            plans.push(plan);
        }
        let results = self.append(&records, deadline).await;
        for (job, plans) in jobs.into_iter().zip(plans) {
            let its = plans.into_iter();
            let its = its.map(|plan| plan.result(&results, &job.lost)).collect();
            // Who asked may have gone.
            drop(job.reply.send(its));
        }
    }

    /// What is to become of a record, which is put into the batch where it is no repeat.
    fn plan(
        &self,
        record: NewKafkaRecord,
        records: &mut Vec<NewKafkaRecord>,
        ids: &mut HashMap<Arc<str>, usize>,
    ) -> Plan {
        if let Some(id) = &record.id {
            if let Some((epoch, offset)) = self.place.recent.known(id, self.clock.wall_ms()) {
                return Plan::Repeat(self.position(epoch, offset));
            }
            if let Some(at) = ids.get(id) {
                return Plan::RepeatOf(*at, record.channel);
            }
            ids.insert(id.clone(), records.len());
        }
        let plan = Plan::Send(records.len(), record.channel.clone());
        records.push(record);
        plan
    }

    fn position(&self, epoch: Epoch, offset: Offset) -> Position {
        Position {
            partition: self.place.partition,
            epoch,
            offset,
        }
    }

    /// Appends records in order, in batches that are not too large, halved where the topic takes less.
    async fn append(
        &mut self,
        records: &[NewKafkaRecord],
        deadline: Instant,
    ) -> Vec<Result<Position, AppendError>> {
        let mut results = Vec::with_capacity(records.len());
        let mut parts = vec![records];
        // What follows one that failed in a way that passes must not get in before it.
        let mut failed = AppendError::Unavailable;
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
                Ok((epoch, first)) => results.extend(self.taken(part, &epoch, first)),
                Err(AppendError::TooLarge | AppendError::Refused) if part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
                Err(error) if error.passes() => {
                    failed = error;
                    break;
                }
                Err(error) => results.extend(part.iter().map(|_| Err(error))),
            }
        }
        results.resize(records.len(), Err(failed));
        results
    }

    /// Where the records of a batch are, whose ids are known from now on.
    fn taken(
        &self,
        records: &[NewKafkaRecord],
        epoch: &Epoch,
        first: i64,
    ) -> Vec<Result<Position, AppendError>> {
        let now_ms = self.clock.wall_ms();
        let places = (0..).zip(records).map(|(at, record)| {
            let offset = offset_of(first + at);
            if let Some(id) = &record.id {
                self.place.recent.appended(epoch, id, offset, now_ms);
            }
            Ok(self.position(epoch.clone(), offset))
        });
        places.collect()
    }

    /// Has the broker take one batch, whatever it takes until the deadline. The log's name and the batch's first offset in it.
    async fn deliver(
        &mut self,
        records: &[NewKafkaRecord],
        deadline: Instant,
    ) -> Result<(Epoch, i64), AppendError> {
        let mut perhaps_taken = false;
        while Instant::now() < deadline {
            match self.attempt(records).await {
                Ok(Tried::Taken(first)) => {
                    if let Some(producer) = &mut self.producer {
                        producer.pass(records.len());
                    }
                    return Ok((self.epoch(), first));
                }
                Ok(Tried::Never(error)) => return Err(error),
                // The broker forgot this producer. Under another name a repeat would not be noticed.
                Ok(Tried::Unknown) if perhaps_taken => {
                    self.producer = None;
                    return Err(AppendError::Unavailable);
                }
                Ok(Tried::Unknown) => self.producer = None,
                Ok(Tried::Misshapen) => {}
                Ok(Tried::Again) => {
                    self.leader = None;
                    perhaps_taken = true;
                }
                Err(error) if error.is_denied() => return Err(AppendError::NotAuthorized),
                Err(error) => {
                    tracing::debug!(%error, topic = %self.place.topic, partition = self.place.partition, "appending fails");
                    self.leader = None;
                    perhaps_taken = true;
                }
            }
            sleep(AGAIN).await;
        }
        if perhaps_taken {
            self.producer = self.producer.and_then(Producer::renewed);
        }
        tracing::warn!(topic = %self.place.topic, partition = self.place.partition, records = records.len(), "records are given up: the log did not take them in time");
        Err(AppendError::Unavailable)
    }

    /// The name of the log that was appended to: as it was read here, where it was read.
    fn epoch(&self) -> Epoch {
        let topic = self.leader.as_ref().map(|leader| leader.topic);
        let topic = topic_name(topic.unwrap_or_default());
        let read = self.place.recent.epoch(&topic);
        read.unwrap_or_else(|| {
            // Letters, digits, - and _, fewer than 64.
            Epoch::new(&topic).unwrap_or_else(|_| unreachable!("{topic} is an epoch"))
        })
    }

    /// Sends a batch once. An error says nothing of whether the broker has it.
    async fn attempt(&mut self, records: &[NewKafkaRecord]) -> Result<Tried, KafkaError> {
        if let Some(shape) = &self.place.shape
            && !shape.is_right().await
        {
            return Ok(Tried::Misshapen);
        }
        let cluster = self.place.cluster.clone();
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
            let found = cluster.in_time(cluster.leader(&self.place.topic, self.place.partition));
            self.leader = Some(found.await?);
        }
        let Some(leader) = &mut self.leader else {
            return Ok(Tried::Again);
        };
        let encoded = batch::encode(records, &producer, self.clock.wall_ms());
        let request = self::request(
            &self.place.topic,
            self.place.partition,
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

impl Plan {
    /// What became of its record. Of what failed in a way that passes, its publisher remembers the channel.
    fn result(
        self,
        results: &[Result<Position, AppendError>],
        lost: &Lost,
    ) -> Result<Stored, AppendError> {
        let (at, channel, repeat) = match self {
            Self::AfterFailed => return Err(AppendError::AfterFailed),
            Self::Repeat(position) => return Ok(stored(position, true)),
            Self::Send(at, channel) => (at, channel, false),
            Self::RepeatOf(at, channel) => (at, channel, true),
        };
        let result = results.get(at).cloned();
        let result = result.unwrap_or(Err(AppendError::Unavailable));
        if result.as_ref().is_err_and(|error| error.passes()) {
            lost.add(channel);
        }
        result.map(|position| stored(position, repeat))
    }
}

const fn stored(position: Position, repeat: bool) -> Stored {
    Stored { position, repeat }
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
