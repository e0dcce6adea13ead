//! A reader that minds the stream's rule for records that mean nothing: it gives nothing behind one that is not done with.
//!
//! It reads each record's meaning before its caller does, where the rule asks for that, and cuts the fetch just before a record
//! at which the partition is to stop. So nobody who reads through it, a node or a materializer, gets past that record, and both
//! stop at the same one. What is in the fetch is the caller's to pass over and to count. Keeps: a fetch waits for the dead-letter
//! topic a moment only; an operator's word, or another rule, is heard without a restart.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{
    NotTaken, Recent, Results, Shape, Whole,
    backoff::Backoff,
    batch,
    letters::{Dead, DeadLetters, Raws, kafkas, stored},
};
use crate::{
    decode::Decoder,
    model::{Epoch, Offset, PoisonRule},
    source::{
        Fetch, Source, SourceError, Wanted,
        poisons::{Poisons, Stop},
    },
};

/// So long a fetch waits for the dead-letter topic; what is not there by then is waited for without anybody waiting.
const PATIENCE: Duration = Duration::from_millis(250);
/// What is fetched of a partition that stopped, to see whether it still has to.
const A_LOOK: usize = 1;

/// What a stream's readers in one role have in common.
#[derive(Clone, Debug)]
pub struct Ward {
    /// The stream's name.
    pub stream: Arc<str>,
    /// The rule, and where partitions stopped.
    pub poisons: Arc<Poisons>,
    /// Where records go that are put aside; none: the rule never asks for that here.
    pub letters: Option<DeadLetters>,
}

/// A record that means nothing.
struct Found {
    /// Its place in the fetch.
    at: usize,
    offset: Offset,
    why: String,
}

/// Letters on their way.
struct Sent {
    epoch: Epoch,
    /// The records that they are of, in order.
    offsets: Vec<Offset>,
    answer: oneshot::Receiver<Results>,
    told: Option<Results>,
    /// A fetch has waited for them.
    waited: bool,
}

/// A reader that stops where the stream's rule says so.
pub struct Sifted {
    source: Whole,
    partition: u32,
    decoder: Decoder,
    ward: Ward,
    rule: watch::Receiver<PoisonRule>,
    sent: Option<Sent>,
    /// Up to here, in this log, all that means nothing is in the dead-letter topic …
    buried: Option<(Epoch, Offset)>,
    /// … from behind this on, where the last fetch began: of what is read anew nobody knows.
    after: Option<Offset>,
    backoff: Backoff,
    /// Where it stopped, and why.
    stopped: Option<(Epoch, Offset, String)>,
}

impl Sifted {
    /// A reader of one of a topic's partitions, whose records mean what this decoder says.
    #[must_use]
    pub fn new(
        shape: Arc<Shape>,
        partition: u32,
        recent: Arc<Recent>,
        decoder: Decoder,
        ward: Ward,
    ) -> Self {
        Self::of(
            Whole::new(shape, partition, recent),
            partition,
            decoder,
            ward,
        )
    }

    fn of(source: Whole, partition: u32, decoder: Decoder, ward: Ward) -> Self {
        Self {
            source,
            partition,
            decoder,
            rule: ward.poisons.changes(),
            ward,
            sent: None,
            buried: None,
            after: None,
            backoff: Backoff::default(),
            stopped: None,
        }
    }

    /// The records that mean nothing and are not done with, in order.
    fn find(&self, fetch: &Fetch) -> Vec<Found> {
        let (poisons, epoch) = (&self.ward.poisons, &fetch.epoch);
        let done = |offset: Offset| {
            let buried = self.buried.as_ref();
            buried.is_some_and(|(log, upto)| log == epoch && offset <= *upto)
                || poisons.is_excused(self.partition, epoch, offset)
        };
        let records = fetch.records.iter().enumerate();
        let found = records.filter(|(_, record)| !done(record.offset));
        found
            .filter_map(|(at, record)| {
                let why = self.decoder.check(record).err()?.to_string();
                let offset = record.offset;
                Some(Found { at, offset, why })
            })
            .collect()
    }

    /// Has these in the dead-letter topic, or says what it waits for.
    async fn bury(&mut self, fetch: &Fetch, found: &[Found]) -> Result<(), String> {
        let Some(letters) = self.ward.letters.clone() else {
            return Err("there is no dead-letter topic".to_owned());
        };
        self.sent = self.sent.take().filter(|sent| sent.epoch == fetch.epoch);
        loop {
            let buried = self.buried.as_ref();
            let upto = buried.filter(|(log, _)| *log == fetch.epoch);
            let rest = upto.map_or(0, |(_, upto)| {
                found.partition_point(|found| found.offset <= *upto)
            });
            if rest == found.len() {
                return Ok(());
            }
            if self.sent.is_none() {
                if self.backoff.waits() {
                    return Err(self.why_not().to_owned());
                }
                self.send(&letters, fetch, &found[rest..])?;
            }
            self.hear().await?;
        }
    }

    /// What was wrong at the last try.
    fn why_not(&self) -> &str {
        let stopped = self.stopped.as_ref();
        stopped.map_or("", |(_, _, why)| why)
    }

    fn send(
        &mut self,
        letters: &DeadLetters,
        fetch: &Fetch,
        found: &[Found],
    ) -> Result<(), String> {
        let numbers: HashSet<i64> = found.iter().map(|found| kafkas(found.offset)).collect();
        let raw = self.source.source().take_raw();
        // What was read once reads again; if not, the letter has what is known.
        let raws: Raws = batch::raw(raw, &numbers).unwrap_or_default();
        let all = found.iter().map(|found| {
            let dead = Dead {
                topic: self.source.topic(),
                partition: self.partition,
                record: &fetch.records[found.at],
                why: &found.why,
            };
            letters.letter(&dead, raws.get(&kafkas(found.offset)))
        });
        match letters.send(all.collect()) {
            Ok(answer) => {
                self.sent = Some(Sent {
                    epoch: fetch.epoch.clone(),
                    offsets: found.iter().map(|found| found.offset).collect(),
                    answer,
                    told: None,
                    waited: false,
                });
                Ok(())
            }
            Err(why) => {
                self.backoff.fail();
                Err(match why {
                    NotTaken::Full => "too many records wait for it".to_owned(),
                    NotTaken::Shed(_) => "its brokers do not answer".to_owned(),
                })
            }
        }
    }

    /// Hears what became of what was sent, for a moment.
    async fn hear(&mut self) -> Result<(), String> {
        let Some(mut sent) = self.sent.take() else {
            return Ok(());
        };
        let told = match sent.told.take() {
            Some(told) => told,
            None => {
                let patience = if sent.waited {
                    Duration::ZERO
                } else {
                    PATIENCE
                };
                sent.waited = true;
                match timeout(patience, &mut sent.answer).await {
                    Ok(told) => told.unwrap_or_default(),
                    Err(_) => {
                        self.sent = Some(sent);
                        return Err("it has not answered yet".to_owned());
                    }
                }
            }
        };
        let (count, why) = stored(&told);
        if let Some(last) = count.checked_sub(1).and_then(|last| sent.offsets.get(last)) {
            self.buried = Some((sent.epoch, *last));
            let poisons = &self.ward.poisons;
            poisons.note_quarantined(self.partition, count as u64);
        }
        if told.len() == sent.offsets.len() && why.is_none() {
            self.backoff = Backoff::default();
            return Ok(());
        }
        self.backoff.fail();
        Err(why.unwrap_or_else(|| "this process is leaving".to_owned()))
    }

    /// The partition is read on.
    fn go_on(&mut self) {
        if let Some((_, offset, _)) = self.stopped.take() {
            self.ward.poisons.go_on(self.partition);
            tracing::info!(stream = %self.ward.stream, partition = self.partition, %offset, "the partition is read on");
        }
    }

    /// What there is before the record at which the partition stops: of one that had stopped there already, nothing.
    fn stop(
        &mut self,
        mut fetch: Fetch,
        first: &Found,
        (rule, why): (PoisonRule, String),
    ) -> Result<Fetch, SourceError> {
        let here = (&fetch.epoch, &first.offset);
        let known = self.stopped.as_ref();
        let again = known.is_some_and(|(epoch, offset, _)| (epoch, offset) == here);
        if !again || known.is_some_and(|(.., before)| *before != why) {
            let message = self.tell(&fetch.epoch, first.offset, rule, &why);
            if again {
                tracing::debug!(message, "the partition still stops");
            } else {
                tracing::error!(message, "a partition stops at a record that means nothing");
            }
        }
        self.stopped = Some((fetch.epoch.clone(), first.offset, why));
        if again && first.at == 0 {
            return Err(match rule {
                PoisonRule::Halt => SourceError::Halted,
                PoisonRule::Skip | PoisonRule::Quarantine => SourceError::Unquarantined,
            });
        }
        fetch.records.truncate(first.at);
        fetch.upto = Offset::new(first.offset.number().saturating_sub(1));
        Ok(fetch)
    }

    /// Tells operators where it stopped, and what they can do: in these words.
    fn tell(&self, epoch: &Epoch, offset: Offset, rule: PoisonRule, why: &str) -> String {
        let (stream, partition, poisons) = (&self.ward.stream, self.partition, &self.ward.poisons);
        let at = format!(
            "partition {partition} of {stream} stops at offset {offset} (Kafka's {} of {})",
            kafkas(offset),
            self.source.topic()
        );
        let hand = format!("POST /streams/{stream}/skip?partition={partition}&offset={offset}");
        let message = match rule {
            PoisonRule::Halt => format!(
                "{at}: {why}; pass over this one record by {hand}, or change streams[].poison and reload"
            ),
            PoisonRule::Skip | PoisonRule::Quarantine => format!(
                "{at}: it is to be in the dead-letter topic {} first, which fails: {why}; it is tried again, and {hand} passes over it without",
                self.ward.letters.as_ref().map_or("", DeadLetters::topic)
            ),
        };
        let epoch = epoch.clone();
        poisons.stop(
            partition,
            Stop {
                epoch,
                offset,
                message: message.clone(),
            },
        );
        message
    }
}

impl Drop for Sifted {
    /// Whoever no longer reads a partition does not stop it either.
    fn drop(&mut self) {
        if self.stopped.is_some() {
            self.ward.poisons.go_on(self.partition);
        }
    }
}

impl Source for Sifted {
    async fn fetch(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        let rule = *self.rule.borrow_and_update();
        if after < self.after {
            self.buried = None;
        }
        self.after = after;
        let bytes = match self.stopped {
            Some(_) if rule != PoisonRule::Skip => A_LOOK,
            _ => bytes,
        };
        let keep = rule == PoisonRule::Quarantine;
        self.source.source().keep_raw(keep);
        let fetch = self.source.fetch(after, bytes).await?;
        let found = match rule {
            PoisonRule::Skip => Vec::new(),
            PoisonRule::Quarantine | PoisonRule::Halt => self.find(&fetch),
        };
        let Some(first) = found.first() else {
            self.go_on();
            return Ok(fetch);
        };
        if rule == PoisonRule::Halt {
            let why = first.why.clone();
            return self.stop(fetch, first, (rule, why));
        }
        match self.bury(&fetch, &found).await {
            Ok(()) => {
                self.go_on();
                Ok(fetch)
            }
            Err(why) => {
                // Some of them may be there by now.
                let left = self.find(&fetch);
                self.stop(fetch, left.first().unwrap_or(first), (rule, why))
            }
        }
    }

    fn resume(&mut self, epoch: &Epoch, at: Offset, lineage: Option<&str>) {
        self.source.resume(epoch, at, lineage);
    }

    async fn begin(&mut self, wanted: Wanted) -> Result<Option<Offset>, SourceError> {
        self.source.begin(wanted).await
    }

    async fn look(&mut self) -> Result<(), SourceError> {
        self.source.look().await
    }

    fn rest(&mut self) {
        self.source.rest();
    }

    fn failure(&self) -> Option<String> {
        let why = self.source.failure();
        why.or_else(|| Some(self.ward.poisons.stopped(self.partition)?.message))
    }

    /// Of what was missed, what means nothing has been done with by who reads the partition.
    fn another(&self) -> Option<Self> {
        let ward = Ward {
            poisons: Arc::default(),
            letters: None,
            ..self.ward.clone()
        };
        let (source, decoder) = (self.source.another()?, self.decoder.another());
        Some(Self::of(source, self.partition, decoder, ward))
    }

    async fn changed(&mut self) {
        if self.stopped.is_none() || self.source.failure().is_some() {
            return self.source.changed().await;
        }
        let sent = self.sent.as_mut();
        let answered = async {
            match sent {
                None => std::future::pending().await,
                Some(Sent { told: Some(_), .. }) => {}
                Some(sent) => sent.told = Some((&mut sent.answer).await.unwrap_or_default()),
            }
        };
        // An error means that nobody can change it any more: the caller's own timer goes on.
        tokio::select! {
            biased;
            changed = self.rule.changed() => if changed.is_err() { std::future::pending().await },
            () = answered => {}
        }
    }
}
