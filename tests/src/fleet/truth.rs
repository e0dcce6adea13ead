//! What no node knows: everything that the logs ever took, whatever has been compacted, deleted or replaced since.
//!
//! Does: keeps each record that counts, by epoch, partition and channel, with the time from which it could be read; folds at
//! every offset. Owns: that history. Never knows: nodes, clients. Two tell it of the logs, and must agree: who wrote a record and was
//! given its offset, and a reader of its own that reads along with librdkafka and never sees an aborted transaction.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tidegate::model::{Epoch, Position};

use super::{
    held::Rows,
    scene::{Ms, Number, Row, Scene},
};

/// Between two folds that are kept.
const FOLD_EVERY: usize = 64;

/// What a record says: of which channel and row, and what; none deletes.
pub(super) type Said = (usize, Row, Option<Number>);

/// A record that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    /// As positions name it: Kafka's and one.
    pub(super) offset: u64,
    pub(super) row: Row,
    /// None deletes.
    pub(super) value: Option<Number>,
    /// When it could be read, at the latest.
    pub(super) known_at: Ms,
}

/// The records of one channel in one partition, in order, and what they come to here and there.
#[derive(Debug, Default)]
struct Strand {
    facts: Vec<Fact>,
    folds: Vec<Rows>,
}

impl Strand {
    fn push(&mut self, fact: Fact) {
        if self.facts.len().is_multiple_of(FOLD_EVERY) {
            self.folds.push(self.fold(u64::MAX, 0));
        }
        self.facts.push(fact);
    }

    /// The rows after everything up to `upto`, of the records behind `after`.
    fn fold(&self, upto: u64, after: u64) -> Rows {
        let end = self.facts.partition_point(|fact| fact.offset <= upto);
        let begin = self.facts.partition_point(|fact| fact.offset <= after);
        let kept = (end / FOLD_EVERY).min(self.folds.len().saturating_sub(1));
        let (mut rows, from) = match self.folds.get(kept) {
            Some(fold) if begin == 0 => (fold.clone(), kept * FOLD_EVERY),
            _ => (Rows::new(), begin),
        };
        for fact in &self.facts[from.min(end)..end] {
            match fact.value {
                Some(number) => drop(rows.insert(fact.row, number)),
                None => drop(rows.remove(&fact.row)),
            }
        }
        rows
    }
}

/// A topic from its making to its deletion.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) epoch: Epoch,
    pub(super) ended: Option<Ms>,
    strands: BTreeMap<(u32, usize), Strand>,
    /// Offsets up to which a partition's oldest records were deleted.
    starts: Vec<(u32, u64)>,
    /// Acknowledged, by partition and offset: the channel, the row, the value.
    acknowledged: BTreeMap<(u32, u64), Said>,
    /// Acknowledged, nobody knows where: a broker that has a record already, since its first acknowledgement was lost, does not say.
    somewhere: Vec<(u32, Said)>,
    /// Read, the same.
    read: BTreeMap<(u32, u64), Said>,
}

/// The truth of all streams.
#[derive(Debug, Default)]
pub(super) struct Truth {
    lives: Vec<Vec<Life>>,
    /// What does not agree.
    pub(super) contradictions: Vec<String>,
}

impl Truth {
    pub(super) fn new(scene: &Scene) -> Self {
        Self {
            lives: scene.streams.iter().map(|_| Vec::new()).collect(),
            contradictions: Vec::new(),
        }
    }

    /// A topic was made, under this id.
    pub(super) fn begin(&mut self, stream: usize, epoch: Epoch) {
        self.lives[stream].push(Life {
            epoch,
            ended: None,
            strands: BTreeMap::new(),
            starts: Vec::new(),
            acknowledged: BTreeMap::new(),
            somewhere: Vec::new(),
            read: BTreeMap::new(),
        });
    }

    /// It was deleted.
    pub(super) fn end(&mut self, stream: usize, at: Ms) {
        if let Some(life) = self.lives[stream].last_mut() {
            life.ended.get_or_insert(at);
        }
    }

    /// How many topics a stream has had.
    pub(super) fn lives(&self, stream: usize) -> usize {
        self.lives[stream].len()
    }

    /// The records of a partition up to there were deleted.
    pub(super) fn trim(&mut self, stream: usize, partition: u32, upto: u64) {
        if let Some(life) = self.lives[stream].last_mut() {
            life.starts.push((partition, upto));
        }
    }

    /// Whether the oldest records of the stream's topic were deleted.
    pub(super) fn is_trimmed(&self, stream: usize) -> bool {
        self.lives[stream].last().is_some_and(Life::is_trimmed)
    }

    /// Who wrote a record was given its offset, or 0, before which nothing is: then it is somewhere.
    pub(super) fn acknowledge(
        &mut self,
        (stream, life): (usize, usize),
        (partition, offset): (u32, u64),
        (channel, row, value): Said,
    ) {
        let record = (channel, row, value);
        let Some(life) = self.lives[stream].get_mut(life) else {
            return;
        };
        if offset == 0 {
            life.somewhere.push((partition, record));
        } else {
            life.acknowledged.insert((partition, offset), record);
        }
    }

    /// The reader read a record.
    pub(super) fn read(
        &mut self,
        (stream, life): (usize, usize),
        (partition, offset): (u32, u64),
        (channel, row, value): Said,
        known_at: Ms,
    ) {
        let record = (channel, row, value);
        let Some(life) = self.lives[stream].get_mut(life) else {
            return;
        };
        if life.read.insert((partition, offset), record).is_some() {
            return;
        }
        let strand = life.strands.entry((partition, channel)).or_default();
        if strand
            .facts
            .last()
            .is_some_and(|last| last.offset >= offset)
        {
            let text = format!(
                "the reader of {} came back to {partition}:{offset}",
                life.epoch
            );
            self.contradictions.push(text);
            return;
        }
        strand.push(Fact {
            offset,
            row,
            value,
            known_at,
        });
    }

    /// The first place of a stream of which the reader has not read what was acknowledged there.
    pub(super) fn first_unread(&self, (stream, life): (usize, usize)) -> Option<(u32, u64)> {
        let life = self.lives[stream].get(life)?;
        let mut known = life.acknowledged.keys();
        known.find(|at| !life.read.contains_key(at)).copied()
    }

    /// Acknowledged records that the reader has not read.
    pub(super) fn unread(&self) -> usize {
        let lives = self.lives.iter().flatten();
        lives
            .map(|life| {
                let known = life.acknowledged.keys();
                known.filter(|at| !life.read.contains_key(at)).count() + life.nowhere().count()
            })
            .sum()
    }

    /// How many records count.
    pub(super) fn len(&self) -> usize {
        self.lives
            .iter()
            .flatten()
            .map(|life| life.read.len())
            .sum()
    }

    /// Notes where who wrote and who read do not agree.
    pub(super) fn compare(&mut self) {
        let mut wrong = Vec::new();
        for life in self.lives.iter().flatten() {
            for (at, written) in &life.acknowledged {
                match life.read.get(at) {
                    None => wrong.push(format!(
                        "acknowledged and not in the log: {} {at:?} {written:?}",
                        life.epoch
                    )),
                    Some(read) if read != written => {
                        wrong.push(format!(
                            "{} {at:?}: acknowledged {written:?}, in the log {read:?}",
                            life.epoch
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        for life in self.lives.iter().flatten() {
            let nowhere = life.nowhere().map(|written| {
                format!(
                    "acknowledged and not in the log: {} {written:?}",
                    life.epoch
                )
            });
            wrong.extend(nowhere);
        }
        self.contradictions.extend(wrong);
    }

    /// Compares what is left of a partition's log at the end, as (offset, channel, row, value), with what was read along.
    pub(super) fn survives(
        &mut self,
        (stream, partition): (usize, u32),
        compacted: bool,
        left: &[(u64, Said)],
    ) {
        let Some(life) = self.lives[stream].last() else {
            return;
        };
        let left: BTreeMap<_, _> = left.iter().copied().collect();
        let mut wrong = Vec::new();
        for (offset, record) in &left {
            if life.read.get(&(partition, *offset)) != Some(record) {
                wrong.push(format!(
                    "{} {partition}:{offset}: the log has {record:?}, which was never read",
                    life.epoch
                ));
            }
        }
        let start = life.start(partition);
        let mut newest = BTreeMap::new();
        let all = life
            .read
            .range((partition, start + 1)..=(partition, u64::MAX));
        for ((_, offset), (channel, row, value)) in all {
            let key = (*channel, *row, if compacted { 0 } else { *offset });
            newest.insert(key, (*offset, *value));
        }
        for ((channel, row, _), (offset, value)) in newest {
            let may_be_gone = compacted && value.is_none();
            if !left.contains_key(&offset) && !may_be_gone {
                wrong.push(format!(
                    "{} {partition}:{offset}: the log has lost channel {channel} row {row}",
                    life.epoch
                ));
            }
        }
        self.contradictions.extend(wrong);
    }

    /// The topic of an epoch.
    pub(super) fn life(&self, stream: usize, epoch: &Epoch) -> Option<&Life> {
        self.lives[stream].iter().find(|life| life.is_named(epoch))
    }

    /// The topic that is there.
    pub(super) fn current(&self, stream: usize) -> Option<&Life> {
        self.lives[stream].last()
    }
}

impl Life {
    /// Whether an epoch is its, or that of a fold that lacks its beginning.
    fn is_named(&self, epoch: &Epoch) -> bool {
        let rest = epoch.as_str().strip_prefix(self.epoch.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("-i"))
    }

    /// Whether its oldest records were deleted.
    pub(super) fn is_trimmed(&self) -> bool {
        !self.starts.is_empty()
    }

    /// The record at a place.
    pub(super) fn at(&self, position: &Position) -> Option<Said> {
        self.read
            .get(&(position.partition, position.offset.number()))
            .copied()
    }

    /// The channel's records in a partition behind `after` and up to `upto`.
    pub(super) fn between(&self, partition: u32, channel: usize, after: u64, upto: u64) -> &[Fact] {
        let Some(strand) = self.strands.get(&(partition, channel)) else {
            return &[];
        };
        let begin = strand.facts.partition_point(|fact| fact.offset <= after);
        let end = strand.facts.partition_point(|fact| fact.offset <= upto);
        &strand.facts[begin..end.max(begin)]
    }

    /// The rows of a channel in a partition at an offset.
    pub(super) fn fold(&self, partition: u32, channel: usize, upto: u64) -> Rows {
        let strand = self.strands.get(&(partition, channel));
        strand.map_or_else(Rows::new, |strand| strand.fold(upto, 0))
    }

    /// The same of a reader that came when the oldest records had gone; one for each time that some went.
    pub(super) fn folds_without_beginning<'a>(
        &'a self,
        partition: u32,
        channel: usize,
        upto: u64,
    ) -> impl Iterator<Item = Rows> + 'a {
        let starts = self
            .starts
            .iter()
            .filter(move |(trimmed, _)| *trimmed == partition);
        let strand = self.strands.get(&(partition, channel));
        starts.map(move |(_, start)| {
            strand.map_or_else(Rows::new, |strand| strand.fold(upto, *start))
        })
    }

    /// The newest record of a partition.
    pub(super) fn head(&self, partition: u32) -> Option<u64> {
        let mut all = self.read.range((partition, 0)..=(partition, u64::MAX));
        all.next_back().map(|((_, offset), _)| *offset)
    }

    /// What must be somewhere and is not; of deletes, which all say the same, there may always be another.
    fn nowhere(&self) -> impl Iterator<Item = &(u32, Said)> {
        let values = self.somewhere.iter();
        let values = values.filter(|(_, (_, _, value))| value.is_some());
        values.filter(|(partition, record)| {
            let mut read = self.read.range((*partition, 0)..=(*partition, u64::MAX));
            !read.any(|(_, read)| read == record)
        })
    }

    /// How many records a partition has behind an offset.
    pub(super) fn count_behind(&self, partition: u32, after: u64) -> usize {
        let behind = (partition, after + 1)..=(partition, u64::MAX);
        self.read.range(behind).count()
    }

    fn start(&self, partition: u32) -> u64 {
        let starts = self
            .starts
            .iter()
            .filter(|(trimmed, _)| *trimmed == partition);
        starts.map(|(_, start)| *start).max().unwrap_or(0)
    }
}

/// The truth, while it is still being told.
#[derive(Debug)]
pub(super) struct Telling(Mutex<Truth>);

impl Telling {
    pub(super) const fn new(truth: Truth) -> Self {
        Self(Mutex::new(truth))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Truth> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fold_is_the_same_from_any_kept_fold_on() {
        let mut strand = Strand::default();
        let mut slow = Rows::new();
        for offset in 1..=300_u64 {
            let row = Row::try_from(offset * 7 % 13).unwrap();
            let value = (offset % 5 != 0).then_some(offset);
            strand.push(Fact {
                offset: offset * 2,
                row,
                value,
                known_at: 0,
            });
            match value {
                Some(number) => drop(slow.insert(row, number)),
                None => drop(slow.remove(&row)),
            }
            assert_eq!(strand.fold(offset * 2 + 1, 0), slow, "{offset}");
        }
        let late = strand.fold(600, 500);
        assert!(late.values().all(|number| *number > 250), "{late:?}");
        assert_eq!(strand.fold(1, 0), Rows::new());
    }
}
