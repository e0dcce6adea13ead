//! The owner of a partition's order: what waits, one batch at a time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use redis::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        LogError, RedisServer, SEQ_BITS,
        keys::Keys,
        script::{Answer, Claim},
    },
    Job, Retention, size,
};
use crate::{
    cache::redis::RedisFault,
    clock::Clock,
    model::{Channel, Epoch, Offset, Position},
    source::{
        Recent,
        embedded::{Appended, Lost, NewRecord},
    },
};

/// Of a batch, about.
const BATCH_BYTES: usize = 1 << 20;
/// Of a batch: so long a server is busy with it, and no longer.
const BATCH_RECORDS: usize = 1000;
/// Between two tries of a batch.
const AGAIN: Duration = Duration::from_millis(100);
/// So long Redis remembers what a writer wrote last: longer than anything is tried.
const REMEMBERED: Duration = Duration::from_secs(3600);

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

/// What one try came to.
enum Tried {
    /// The log's name and the batch's first offset in it.
    Taken(Epoch, Offset),
    /// The log does not take such a batch.
    Unfit,
    /// A later one was taken before it.
    Late,
}

/// The owner of a partition's order.
pub(super) struct Lane {
    server: Arc<RedisServer>,
    keys: Keys,
    writer: String,
    partition: u32,
    recent: Arc<Recent>,
    retention: Retention,
    clock: Clock,
    /// The number of the last batch.
    number: u64,
}

impl Lane {
    pub(super) fn new(
        server: Arc<RedisServer>,
        keys: Keys,
        partition: u32,
        recent: Arc<Recent>,
        retention: Retention,
    ) -> Self {
        // Without random numbers the start has failed long before.
        let name = format!("{:016x}", getrandom::u64().unwrap_or(0));
        Self {
            writer: keys.writer(&name),
            server,
            keys,
            partition,
            recent,
            retention,
            clock: Clock::start(),
            number: 0,
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
            let (mut bytes, mut count) = (first.weight.1, first.records.len());
            let mut jobs = vec![first];
            while let Ok(job) = queue.try_recv() {
                let (more_bytes, more) = (job.weight.1, job.records.len());
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
            let its = std::mem::take(&mut job.records).into_iter();
            let plan: Vec<_> = its
                .map(|record| {
                    if job.lost.has(&record.change.channel) {
                        Plan::AfterFailed
                    } else {
                        self.plan(record, &mut records, &mut ids)
                    }
                })
                .collect();
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
        record: NewRecord,
        records: &mut Vec<NewRecord>,
        ids: &mut HashMap<Arc<str>, usize>,
    ) -> Plan {
        if let Some(id) = &record.id {
            if let Some((epoch, offset)) = self.recent.known(id, self.clock.wall_ms()) {
                return Plan::Repeat(self.position(epoch, offset));
            }
            if let Some(at) = ids.get(id) {
                return Plan::RepeatOf(*at, record.change.channel);
            }
            ids.insert(id.clone(), records.len());
        }
        let plan = Plan::Send(records.len(), record.change.channel.clone());
        records.push(record);
        plan
    }

    const fn position(&self, epoch: Epoch, offset: Offset) -> Position {
        Position {
            partition: self.partition,
            epoch,
            offset,
        }
    }

    /// Appends records in order, in batches that are not too large.
    async fn append(&mut self, records: &[NewRecord], deadline: Instant) -> Vec<Appended> {
        let mut results = Vec::with_capacity(records.len());
        while results.len() < records.len() {
            let rest = &records[results.len()..];
            let part = &rest[..fitting(rest)];
            match self.deliver(part, deadline).await {
                Ok((epoch, first)) => results.extend(self.taken(part, &epoch, first)),
                // What follows one that failed in a way that passes must not get in before it.
                Err(failed) if passes(&failed) => results.resize(records.len(), failed),
                Err(failed) => results.resize(results.len() + part.len(), failed),
            }
        }
        results
    }

    /// Where the records of a batch are, whose ids are known from now on.
    fn taken(&self, records: &[NewRecord], epoch: &Epoch, first: Offset) -> Vec<Appended> {
        let now_ms = self.clock.wall_ms();
        let places = (0..).zip(records).map(|(at, record)| {
            let offset = Offset::new(first.number() + at);
            if let Some(id) = &record.id {
                self.recent.appended(epoch, id, offset, now_ms);
            }
            Appended::At(self.position(epoch.clone(), offset))
        });
        places.collect()
    }

    /// Has the log take one batch, whatever it takes until the deadline.
    async fn deliver(
        &mut self,
        records: &[NewRecord],
        deadline: Instant,
    ) -> Result<(Epoch, Offset), Appended> {
        self.number += 1;
        while Instant::now() < deadline {
            match self.attempt(records).await {
                Ok(Tried::Taken(epoch, first)) => return Ok((epoch, first)),
                Ok(Tried::Unfit) => return Err(Appended::Unfit),
                Ok(Tried::Late) => return Err(Appended::Unavailable),
                // Nothing was sent.
                Err(LogError::Shed(_)) => {
                    let upstream = self.server.upstream.clone();
                    // At the deadline the loop ends.
                    drop(timeout_at(deadline, upstream.passable()).await);
                }
                Err(error) => {
                    self.server.upstream.tell_declined(&error);
                    if let Some(refusal) = refusal(&error) {
                        return Err(refusal);
                    }
                    sleep(AGAIN).await;
                }
            }
        }
        tracing::warn!(
            key = self.keys.log,
            records = records.len(),
            "records are given up: the log did not take them in time"
        );
        Err(Appended::Unavailable)
    }

    /// Sends a batch once. An error says nothing of whether the log has it.
    async fn attempt(&self, records: &[NewRecord]) -> Result<Tried, LogError> {
        let (keys, known) = (&self.keys, &self.server.scripts.append);
        let all = [keys.log.clone(), keys.epoch.clone(), self.writer.clone()];
        let words = self.words(records);
        let words: Vec<&[u8]> = words.iter().map(AsRef::as_ref).collect();
        let server = &self.server;
        let answer = server.ask(async {
            let ran: Value = server.run(known, &all, &words).await?;
            Answer::of(ran, server.servers.at(), &keys.log)
        });
        let mut answer = answer.await?;
        Ok(match answer.word.as_str() {
            "added" => {
                let (epoch, ms, seq) = (answer.epoch()?, answer.number()?, answer.number()?);
                Tried::Taken(epoch, Offset::new(ms << SEQ_BITS | seq))
            }
            "unfit" => Tried::Unfit,
            "late" => Tried::Late,
            word => return Err(answer.damaged(&format!("a script says {word:?}"))),
        })
    }

    /// What the script is given.
    fn words(&self, records: &[NewRecord]) -> Vec<Word> {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let Retention { records: most, age } = self.retention;
        let head = Claim::default().arguments().into_iter().map(Word::Text);
        let numbers = [
            self.number,
            millis(REMEMBERED),
            most.unwrap_or(0),
            age.map_or(0, millis),
            records.len() as u64,
        ];
        let numbers = numbers
            .into_iter()
            .map(|number| Word::Text(number.to_string()));
        let mut words: Vec<_> = head.chain(numbers).collect();
        for record in records {
            let (head, mut count) = (words.len(), 2);
            words.push(Word::Text(String::new()));
            words.extend([Word::Name("k"), Word::Bytes(record.key.clone())]);
            let mut add = |name, value| {
                words.extend([Word::Name(name), value]);
                count += 2;
            };
            if let Some(data) = &record.change.data {
                add("v", Word::Bytes(data.clone()));
            }
            if let Some(at) = record.event_time_ms {
                add("t", Word::Text(at.to_string()));
            }
            if let Some(id) = &record.id {
                add("i", Word::Text(id.to_string()));
            }
            words[head] = Word::Text(count.to_string());
        }
        words
    }
}

/// One argument of the script.
enum Word {
    Name(&'static str),
    Text(String),
    Bytes(bytes::Bytes),
}

impl AsRef<[u8]> for Word {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Name(name) => name.as_bytes(),
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// What a publisher is told of an error that no second try mends soon; none where one may.
fn refusal(error: &LogError) -> Option<Appended> {
    match error.fault()? {
        RedisFault::Unavailable | RedisFault::ReadOnly => None,
        RedisFault::Full => Some(Appended::Overloaded),
        RedisFault::NoPermission | RedisFault::WrongPassword => Some(Appended::Denied),
        _ => Some(Appended::Unavailable),
    }
}

/// Whether another try may succeed: then nothing of the channel is taken of that publisher before it.
const fn passes(failed: &Appended) -> bool {
    !matches!(failed, Appended::Unfit | Appended::TooLarge)
}

impl Plan {
    /// What became of its record. Of what failed in a way that passes, its publisher remembers the channel.
    fn result(self, results: &[Appended], lost: &Lost) -> Appended {
        let (at, channel, repeat) = match self {
            Self::AfterFailed => return Appended::AfterFailed,
            Self::Repeat(position) => return Appended::Duplicate(position),
            Self::Send(at, channel) => (at, channel, false),
            Self::RepeatOf(at, channel) => (at, channel, true),
        };
        match results.get(at).cloned().unwrap_or(Appended::Unavailable) {
            Appended::At(position) if repeat => Appended::Duplicate(position),
            Appended::At(position) => Appended::At(position),
            failed => {
                if passes(&failed) {
                    lost.add(channel);
                }
                failed
            }
        }
    }
}

/// How many of the records fit into a batch, at least one.
fn fitting(records: &[NewRecord]) -> usize {
    let mut bytes = 0;
    let fitting = records.iter().take(BATCH_RECORDS).take_while(|record| {
        bytes += size(record);
        bytes <= BATCH_BYTES
    });
    fitting.count().max(1).min(records.len())
}
