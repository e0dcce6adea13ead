//! The publish API: records in, positions out, once the log has them.
//!
//! Does: reads records, checks what the publisher may do, appends batch by batch, answers per record and in order. Owns:
//! the publishers' rates. Never knows: who follows the channels; the answer does not wait for the fan-out. Keeps: I1 (a
//! connection has one unfinished line and a bounded number of lines that are being stored; who does not read its answers is
//! not read from either).

pub mod http;
pub mod record;

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    sync::Arc,
};

use arc_swap::ArcSwapOption;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::{
    auth::{Claims, Permission},
    clock::Clock,
    decode::Said,
    model::{Channel, Mode, Position},
    protocol::{ErrorCode, Refusal},
    source::{
        embedded::{Appended, Lost, NewRecord},
        log::{Submitted, Waiting},
    },
    streams::{Stream, Streams},
    telemetry::NodeCounts,
};

/// Keys whose rates are remembered; beyond it those at rest are forgotten.
const RATES_MAX: usize = 10_000;

/// Channels of which a publisher's connection remembers that a record failed; beyond it all count as such.
const FAILED_MAX: usize = 10_000;

/// What became of a record.
pub type Answer = Result<(Position, bool), Refusal>;

/// Makes a stream that nobody configured, where that is allowed.
pub type Creator = Box<dyn Fn(&str) -> Option<Arc<Stream>> + Send + Sync>;

/// Takes records for the node's streams.
pub struct Publisher {
    streams: Arc<Streams>,
    clock: Clock,
    record_bytes: usize,
    rates: ArcSwapOption<DefaultKeyedRateLimiter<Arc<str>>>,
    creator: Creator,
    counts: Arc<NodeCounts>,
}

/// One publisher's connection: what it has been refused so far decides what later records of the channel are told.
#[derive(Debug, Default)]
pub struct Flow {
    failed: HashSet<Channel>,
    lost: Arc<Lost>,
}

impl Flow {
    /// A flow of the same publisher, which shares what became of records that were still on their way.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self {
            failed: HashSet::new(),
            lost: self.lost.clone(),
        }
    }
}

/// Records that were submitted: what is known of them, and what is waited for.
#[derive(Debug)]
pub struct Pending {
    told: Vec<Option<Result<Appended, Refusal>>>,
    waits: Vec<(Vec<usize>, Waiting)>,
}

impl Pending {
    /// One record that never came so far.
    fn refused(refusal: Refusal) -> Self {
        Self {
            told: vec![Some(Err(refusal))],
            waits: Vec::new(),
        }
    }

    /// The stream was taken out of the configuration while its publisher was at it.
    fn gone(stream: &Stream, count: usize) -> Self {
        let message = format!("there is no stream {:?} any more", stream.name);
        let refusal = Refusal::new(ErrorCode::UnknownStream, message);
        let told = |_| Some(Err(refusal.clone()));
        Self {
            told: (0..count).map(told).collect(),
            waits: Vec::new(),
        }
    }

    /// Returns once all is known that will be. Cancel safe.
    pub async fn known(&mut self) {
        while let Some((_, answer)) = self.waits.last_mut() {
            let appended = answer.known().await.unwrap_or_default();
            if let Some((places, _)) = self.waits.pop() {
                self.tell(&places, appended);
            }
        }
    }

    fn refuse(&mut self, places: &[usize], refusal: &Refusal) {
        for &place in places {
            self.told[place] = Some(Err(refusal.clone()));
        }
    }

    fn tell(&mut self, places: &[usize], appended: Vec<Appended>) {
        for (&place, appended) in places.iter().zip(appended) {
            self.told[place] = Some(Ok(appended));
        }
    }
}

fn written_elsewhere(stream: &Stream, why: &str) -> Refusal {
    let message = format!("{:?} can't be published to here: {why}", stream.name);
    Refusal::new(ErrorCode::BadRequest, message)
}

fn rates(per_second: Option<NonZeroU32>) -> Option<Arc<DefaultKeyedRateLimiter<Arc<str>>>> {
    per_second.map(|per_second| Arc::new(RateLimiter::keyed(Quota::per_second(per_second))))
}

impl Publisher {
    /// A publisher for these streams. Records beyond `record_bytes` are refused; each key may publish `per_second`.
    #[must_use]
    pub fn new(
        streams: Arc<Streams>,
        clock: Clock,
        record_bytes: usize,
        per_second: Option<NonZeroU32>,
        creator: Creator,
        counts: Arc<NodeCounts>,
    ) -> Self {
        Self {
            streams,
            clock,
            record_bytes,
            rates: ArcSwapOption::new(rates(per_second)),
            creator,
            counts,
        }
    }

    /// From now on each key may publish so many records a second; what it has published so far does not count.
    pub fn set_rate(&self, per_second: Option<NonZeroU32>) {
        self.rates.store(rates(per_second));
    }

    /// Largest record, in bytes of its line.
    #[must_use]
    pub const fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    /// The stream of this name, if these claims may publish to it; made, where that is allowed.
    ///
    /// # Errors
    /// `forbidden` or `unknown_stream`.
    pub fn stream(&self, name: &str, claims: &Claims) -> Result<Arc<Stream>, Refusal> {
        if !claims.may_publish_stream(name) {
            return Err(Refusal::new(
                ErrorCode::Forbidden,
                format!("the token does not permit publishing to {name:?}"),
            ));
        }
        let found = self.streams.get(name).or_else(|| (self.creator)(name));
        found.ok_or_else(|| {
            Refusal::new(
                ErrorCode::UnknownStream,
                format!("there is no stream {name:?}; streams are named in the configuration"),
            )
        })
    }

    /// Reads one line. Its place in the request is told by the caller.
    ///
    /// # Errors
    /// `record_too_large` or `bad_record`.
    pub fn read(&self, stream: &Stream, line: &[u8]) -> Result<NewRecord, Refusal> {
        if line.len() > self.record_bytes {
            return Err(self.too_large(line.len()));
        }
        let bad = |message| Refusal::new(ErrorCode::BadRecord, message);
        let mut new = record::parse(&stream.name, line).map_err(bad)?;
        if let Some(Said::At(ms)) = stream.own_time(&new.key, new.change.data.as_deref()) {
            new.event_time_ms = Some(ms);
        }
        Ok(new)
    }

    /// Counts a record that was refused before it came to [`Publisher::append`].
    pub fn note_refused(&self) {
        self.counts.publish_refused.add(1);
    }

    /// The refusal of a line of so many bytes.
    #[must_use]
    pub fn too_large(&self, bytes: usize) -> Refusal {
        Refusal::new(
            ErrorCode::RecordTooLarge,
            format!(
                "the record has {bytes} bytes; limits.record_bytes allows {}",
                self.record_bytes
            ),
        )
    }

    /// Appends records in order and answers each, once the log has it.
    pub async fn append(
        &self,
        stream: &Stream,
        claims: &Claims,
        flow: &mut Flow,
        records: Vec<Result<NewRecord, Refusal>>,
    ) -> Vec<Answer> {
        let mut pending = self.submit(stream, claims, flow, records).await;
        pending.known().await;
        self.answers(pending)
    }

    /// Hands records to the log in order, those of one partition together. Of one flow, what is submitted later is also
    /// appended later, so more may be submitted before the answers are known.
    pub async fn submit(
        &self,
        stream: &Stream,
        claims: &Claims,
        flow: &mut Flow,
        records: Vec<Result<NewRecord, Refusal>>,
    ) -> Pending {
        let now_ms = self.clock.wall_ms();
        let Some(stream) = &self.streams.current(stream) else {
            return Pending::gone(stream, records.len());
        };
        let mut pending = Pending {
            told: Vec::with_capacity(records.len()),
            waits: Vec::new(),
        };
        let mut batches: HashMap<u32, (Vec<usize>, Vec<NewRecord>)> = HashMap::new();
        for (at, record) in records.into_iter().enumerate() {
            match record.and_then(|record| self.admit(stream, record, claims, flow)) {
                Ok(record) => {
                    let partition =
                        stream.partition_for(&record.change.channel, record.change.row.as_str());
                    let (places, batch) = batches.entry(partition).or_default();
                    places.push(at);
                    batch.push(record);
                    pending.told.push(None);
                }
                Err(refusal) => pending.told.push(Some(Err(refusal))),
            }
        }
        for (partition, (places, batch)) in batches {
            let log = &stream.partitions[partition as usize].log;
            match log.submit(batch, now_ms, &flow.lost).await {
                Submitted::Foreign(why) => pending.refuse(&places, &written_elsewhere(stream, why)),
                Submitted::Done(appended) => pending.tell(&places, appended),
                Submitted::Waiting(answer) => pending.waits.push((places, answer)),
            }
        }
        pending
    }

    /// The answers to what was submitted, in order, once they are [known](Pending::known).
    pub fn answers(&self, pending: Pending) -> Vec<Answer> {
        let unanswered = || {
            let message = "the log was closed before it had the record: publish it to another node";
            Err(Refusal::retry(ErrorCode::Draining, message, 1000))
        };
        let answer = |told: Option<Result<Appended, Refusal>>| match told {
            Some(Ok(appended)) => self.answer(appended),
            Some(Err(refusal)) => Err(refusal),
            None => unanswered(),
        };
        let answers: Vec<Answer> = pending.told.into_iter().map(answer).collect();
        let refused = answers.iter().filter_map(|answer| answer.as_ref().err());
        let refused = refused.filter(|refusal| refusal.code != ErrorCode::ViewFull);
        self.counts.publish_refused.add(refused.count() as u64);
        answers
    }

    fn admit(
        &self,
        stream: &Stream,
        record: NewRecord,
        claims: &Claims,
        flow: &mut Flow,
    ) -> Result<NewRecord, Refusal> {
        let channel = &record.change.channel;
        if !claims.may(Permission::Publish, channel) {
            return Err(Refusal::new(
                ErrorCode::Forbidden,
                format!("the token does not permit publishing to {channel}"),
            ));
        }
        if flow.failed.contains(channel) || flow.failed.len() >= FAILED_MAX {
            return Err(after_failed(channel));
        }
        // Who deletes rows gives memory back.
        let deletes = stream.mode == Mode::View && record.change.data.is_none();
        if self.counts.memory.full.get() > 0 && !deletes {
            self.counts.memory.refused_publishes.add(1);
            flow.failed.insert(channel.clone());
            return Err(Refusal::retry(
                ErrorCode::Overloaded,
                "limits.memory is reached: this node's logs and views take only deletes now",
                2000,
            ));
        }
        let rates = self.rates.load();
        let Some(rates) = &*rates else {
            return Ok(record);
        };
        if rates.len() > RATES_MAX {
            rates.retain_recent();
        }
        if rates.check_key(claims.key_id()).is_err() {
            flow.failed.insert(channel.clone());
            return Err(Refusal::retry(
                ErrorCode::RateLimited,
                "limits.publishes_per_second is reached for this key",
                1000,
            ));
        }
        Ok(record)
    }

    fn answer(&self, appended: Appended) -> Answer {
        match appended {
            Appended::At(position) => {
                self.counts.published.add(1);
                Ok((position, false))
            }
            Appended::Duplicate(position) => {
                self.counts.duplicates.add(1);
                Ok((position, true))
            }
            Appended::ViewFull => {
                self.counts.view_full.add(1);
                Err(Refusal::new(
                    ErrorCode::ViewFull,
                    "the view has as many rows or bytes as the stream's view_max allows; delete rows first",
                ))
            }
            Appended::NotStored => Err(Refusal::retry(
                ErrorCode::NotStored,
                "the log's disk is full or failing, and did not take the record",
                1000,
            )),
            Appended::AfterFailed => Err(after_failed("the channel")),
            Appended::Unavailable => Err(Refusal::retry(
                ErrorCode::Unavailable,
                "the stream's log did not take the record in time, though it may have it: send it again, with the same id",
                1000,
            )),
            Appended::NotTried(left) => Err(Refusal::retry(
                ErrorCode::Unavailable,
                "the stream's log does not answer: the record was not tried",
                u64::try_from(left.as_millis()).map_or(1000, |left| left.max(100)),
            )),
            Appended::Denied => Err(Refusal::retry(
                ErrorCode::Unavailable,
                "the stream's log does not let this node write: an operator must permit it",
                5000,
            )),
            Appended::TooLarge => Err(Refusal::new(
                ErrorCode::RecordTooLarge,
                "the record is larger than the stream's log takes",
            )),
            Appended::Unfit => Err(Refusal::new(
                ErrorCode::BadRecord,
                "the stream's log does not take such a record",
            )),
            Appended::Overloaded => Err(Refusal::retry(
                ErrorCode::Overloaded,
                "too many records wait for the stream's log: the record was not tried",
                1000,
            )),
        }
    }

    /// One record that came over a WebSocket, in a flow beside those of the connection's records which have no answer yet.
    ///
    /// # Errors
    /// What [`Self::stream`], [`Self::read`] and [`Self::append`] refuse.
    pub async fn publish_one(
        &self,
        stream: &str,
        claims: &Claims,
        line: &[u8],
        mut flow: Flow,
    ) -> Answer {
        let stream = self.stream(stream, claims)?;
        let record = self.read(&stream, line);
        let mut answers = self.append(&stream, claims, &mut flow, vec![record]).await;
        answers
            .pop()
            .unwrap_or_else(|| Err(Refusal::new(ErrorCode::Internal, "the log gave no answer")))
    }
}

fn after_failed(channel: &str) -> Refusal {
    let message = format!("an earlier record of {channel} failed: send both again, in order");
    Refusal::retry(ErrorCode::AfterFailed, message, 1000)
}
