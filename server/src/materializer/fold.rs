//! The fold of one partition as a state machine: what comes next, and what was read and is not written yet.
//!
//! Pure (I9): what the source and the cache answered comes in, what they are to be asked goes out, and time is an argument.
//!
//! Three headers make a chain. `seen` is in the cache; `sent` is on its way there; `open` is behind what was read and waits to
//! be sent. Each is written only if the one before it is what the cache has (compare-and-set), so whatever comes between (another
//! materializer, a cache that went back, a call whose answer was lost) shows, and the chain begins anew at what the cache says.

use std::{collections::VecDeque, mem, time::Duration};

use super::again::Again;
use crate::{
    cache::redis::{Batch, DecimalOffset, Flipped, Generation, Header, Wrote},
    decode::Decoder,
    model::{Offset, Placing, Record},
    source::{
        Fetch, ReadAt,
        compaction::{Compaction, proven_by},
    },
};

/// How much newer a proof must be before it alone is worth a write.
pub(super) const PROOF_EVERY: Duration = Duration::from_secs(5);

/// What the fold of a stream depends on.
#[derive(Clone, Debug)]
pub struct FoldSettings {
    /// What its rows depend on beside the log, as one word.
    pub fold_id: String,
    /// When the log loses what.
    pub compaction: Compaction,
    /// Where others place the stream's channels.
    pub placing: Placing,
}

/// Why a partition is folded from its log's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The cache has nothing of it.
    Empty,
    /// What the cache has was folded by other rules.
    FoldId,
    /// The log is another one than what the cache has is of.
    Epoch,
    /// The log no longer reaches back to where the cache is.
    Truncated,
    /// Tombstones may have gone unread.
    Outlasted,
    /// Keys of the cache are gone.
    Lost,
    /// It took longer than tombstones are kept, and is tried anew.
    TooSlow,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the cache for the current header.
    Look,
    /// Read, and write.
    Fold,
    /// Make what was built the current generation.
    Flip,
}

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) expected: Option<Header>,
    pub(super) header: Header,
    pub(super) batch: Batch,
}

/// What was counted since somebody asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) records: u64,
    pub(super) poisoned: u64,
    pub(super) misplaced: u64,
    pub(super) untimed: u64,
    pub(super) rows: u64,
    pub(super) batches: u64,
    pub(super) conflicts: u64,
    pub(super) lost: u64,
    pub(super) refolds: u64,
    pub(super) flips: u64,
}

/// A fold from the log's start, beside the current generation.
#[derive(Clone, Debug)]
struct Building {
    generation: Generation,
    why: Why,
    /// The current header when it began.
    base: Option<Header>,
    began_ms: i64,
}

/// What was read and not sent yet.
#[derive(Debug)]
struct Open {
    header: Header,
    batch: Batch,
    /// The log's end was reached.
    reached: bool,
}

/// What is on its way.
#[derive(Clone, Debug)]
struct Sent {
    header: Header,
    rows: usize,
    reached: bool,
}

/// What is left of a fetch that was more than a batch.
#[derive(Debug)]
struct Rest {
    records: VecDeque<Record>,
    fetch: Fetch,
    when: ReadAt,
}

/// The fold of one partition.
#[derive(Debug)]
pub(super) struct Fold {
    partition: u32,
    settings: FoldSettings,
    decoder: Decoder,
    looking: Option<Option<Why>>,
    building: Option<Building>,
    flipping: Option<Header>,
    seen: Option<Header>,
    sent: Option<Sent>,
    open: Option<Open>,
    rest: Option<Rest>,
    /// The source is not where reading goes on.
    astray: bool,
    again: Again,
    head: Offset,
    /// The log reached back to its birth when it was read last.
    reaches_back: bool,
    tally: Tally,
}

impl Fold {
    /// Begins by asking the cache.
    pub(super) fn new(
        partition: u32,
        settings: FoldSettings,
        decoder: Decoder,
        now_ms: i64,
    ) -> Self {
        Self {
            partition,
            again: Again::new(settings.compaction.tombstones_kept, now_ms),
            settings,
            decoder,
            looking: Some(None),
            building: None,
            flipping: None,
            seen: None,
            sent: None,
            open: None,
            rest: None,
            astray: true,
            head: Offset::BEFORE_ALL,
            reaches_back: false,
            tally: Tally::default(),
        }
    }

    /// What comes next.
    pub(super) const fn step(&self) -> Step {
        if self.looking.is_some() {
            Step::Look
        } else if self.flipping.is_some() {
            Step::Flip
        } else {
            Step::Fold
        }
    }

    /// What is to become the current generation, in place of what.
    pub(super) fn to_flip(&self) -> Option<(Option<Header>, Header)> {
        let base = self.building.as_ref()?.base.clone();
        Some((base, self.flipping.clone()?))
    }

    /// This is the current header.
    pub(super) fn looked(&mut self, current: Option<Header>, now_ms: i64) {
        self.drop_unwritten();
        self.flipping = None;
        let why = self
            .looking
            .take()
            .flatten()
            .or_else(|| self.unfit(current.as_ref()));
        let Some(why) = why else {
            (self.building, self.seen) = (None, current);
            return;
        };
        self.tally.refolds += 1;
        self.seen = None;
        self.building = Some(Building {
            generation: Generation::random(),
            why,
            base: current,
            began_ms: now_ms,
        });
    }

    /// Why nothing can go on from this header, if so.
    fn unfit(&self, current: Option<&Header>) -> Option<Why> {
        match current {
            None => Some(Why::Empty),
            Some(header) if header.fold_id != self.settings.fold_id => Some(Why::FoldId),
            // Of a log with longer offsets.
            Some(header) => Offset::try_from(&header.applied)
                .is_err()
                .then_some(Why::Epoch),
        }
    }

    /// Everything up to this has been read; none: nothing, so reading begins at the log's start.
    pub(super) fn after(&self) -> Option<Offset> {
        let newest = self.newest()?;
        Some(Offset::try_from(&newest.applied).unwrap_or_default())
    }

    /// The header from which the source is to be resumed before it is read on; told once.
    pub(super) fn resume(&mut self) -> Option<&Header> {
        if mem::take(&mut self.astray) {
            self.newest()
        } else {
            None
        }
    }

    /// Whether more may be read before something is written.
    pub(super) fn has_room(&self) -> bool {
        let full = self.open.as_ref().is_some_and(|open| open.batch.is_full());
        self.rest.is_none() && !full && self.step() == Step::Fold
    }

    /// Whether the log's end had not been reached when it was read last.
    pub(super) fn is_behind(&self) -> bool {
        !self.open.as_ref().is_some_and(|open| open.reached)
    }

    /// The last link of the chain.
    fn newest(&self) -> Option<&Header> {
        let open = self.open.as_ref().map(|open| &open.header);
        let sent = self.sent.as_ref().map(|sent| &sent.header);
        open.or(sent).or(self.seen.as_ref())
    }

    /// Takes what was read behind [`Fold::after`].
    pub(super) fn took(&mut self, mut fetch: Fetch, when: ReadAt) {
        if self.step() != Step::Fold {
            return;
        }
        (self.head, self.reaches_back) = (fetch.head, fetch.start == Offset::BEFORE_ALL);
        if let Some(why) = self.must_build(&fetch, when) {
            return self.look(Some(why));
        }
        let records = mem::take(&mut fetch.records);
        self.tally.records += records.len() as u64;
        let header = self.begun(&fetch, when);
        let header = self.settled(header, records.first(), &fetch, when);
        self.open_at(header);
        self.rest = Some(Rest {
            records: records.into(),
            fetch,
            when,
        });
        self.fold_rest();
    }

    /// Why what is there can't be gone on from, or is worth being folded again.
    fn must_build(&self, fetch: &Fetch, when: ReadAt) -> Option<Why> {
        let newest = self.newest()?;
        if newest.epoch != fetch.epoch {
            return Some(Why::Epoch);
        }
        if DecimalOffset::from(fetch.start) > newest.applied {
            return Some(Why::Truncated);
        }
        if self.building.is_some() {
            return None;
        }
        if self.outlasted(newest, when) {
            return Some(Why::Outlasted);
        }
        let again = !newest.complete && self.reaches_back && self.again.is_due(when.answered_ms);
        again.then_some(Why::TooSlow)
    }

    /// Whether tombstones behind `applied` may have been cleaned away before they were read.
    fn outlasted(&self, header: &Header, when: ReadAt) -> bool {
        let compaction = &self.settings.compaction;
        compaction.may_lack_tombstones(header.proven_ms, when.answered_ms)
    }

    /// The header that this fetch goes on from; of a fold that begins, its first.
    fn begun(&self, fetch: &Fetch, when: ReadAt) -> Header {
        let generation = self
            .building
            .as_ref()
            .map(|building| building.generation.clone());
        let Some(newest) = self.newest() else {
            return Header {
                epoch: fetch.epoch.clone(),
                generation: generation.unwrap_or_else(Generation::random),
                fold_id: self.settings.fold_id.clone(),
                applied: Offset::BEFORE_ALL.into(),
                lineage: String::new(),
                proven_ms: when.sent_ms,
                since: fetch.head.into(),
                settled: Offset::BEFORE_ALL.into(),
                complete: fetch.start == Offset::BEFORE_ALL,
                written_at_ms: 0,
            };
        };
        let mut header = newest.clone();
        if self.building.is_some() && self.outlasted(newest, when) {
            // It ends all the same, but rows may be there whose tombstones went before it came to them.
            let head = DecimalOffset::from(fetch.head);
            header.settled = header.settled.max(head.clone());
            (header.since, header.complete, header.proven_ms) = (head, false, when.sent_ms);
        }
        header
    }

    /// Rows that are read from compacted history are a state only at the head that was there when they were read.
    fn settled(
        &self,
        mut header: Header,
        first: Option<&Record>,
        fetch: &Fetch,
        when: ReadAt,
    ) -> Header {
        if self.settings.compaction.may_have_torn(first, when) {
            header.settled = header.settled.max(fetch.head.into());
        }
        header
    }

    fn open_at(&mut self, header: Header) {
        let batch = self
            .open
            .take()
            .map_or_else(Batch::default, |open| open.batch);
        self.open = Some(Open {
            header,
            batch,
            reached: false,
        });
    }

    /// Folds what was read until the batch is full or nothing is left.
    fn fold_rest(&mut self) {
        let (Some(open), Some(rest)) = (&mut self.open, &mut self.rest) else {
            return;
        };
        let (mut last, mut time) = (None, open.header.proven_ms);
        while !open.batch.is_full()
            && let Some(record) = rest.records.pop_front()
        {
            let offset = DecimalOffset::from(record.offset);
            match self.decoder.decode(&record) {
                // Nobody looks for it here, and nodes that read it pass over it as well.
                Ok(change)
                    if (self.settings.placing)
                        .elsewhere(&change.channel, self.partition)
                        .is_some() =>
                {
                    self.tally.misplaced += 1;
                }
                Ok(change) => open.batch.fold(&change, &offset),
                Err(error) => {
                    self.tally.poisoned += 1;
                    tracing::debug!(%error, offset = %record.offset, "a record means nothing, and is passed over");
                }
            }
            (last, time) = (Some(offset), time.max(proven_by(&record, rest.when)));
        }
        let (fetch, header) = (&rest.fetch, &mut open.header);
        // Also of a place before `upto`: who read a log as far as there read all before it in that log.
        header.lineage = fetch.lineage.as_deref().unwrap_or_default().to_owned();
        if rest.records.is_empty() {
            header.applied = fetch.upto.into();
            open.reached = fetch.upto >= fetch.head;
            header.proven_ms = if open.reached {
                rest.when.sent_ms
            } else {
                time
            };
            self.rest = None;
        } else {
            header.applied = last.unwrap_or_else(|| header.applied.clone());
            header.proven_ms = time;
        }
    }

    /// What is to be written now, if anything is worth it. Nothing more is handed out until it is [`Fold::wrote`].
    pub(super) fn hand_out(&mut self, now_ms: i64) -> Option<Writing> {
        if self.sent.is_some() || self.step() != Step::Fold || !self.is_worth_writing() {
            return None;
        }
        let Open {
            mut header,
            batch,
            reached,
        } = self.open.take()?;
        header.written_at_ms = now_ms;
        self.sent = Some(Sent {
            header: header.clone(),
            rows: batch.rows(),
            reached,
        });
        if self.rest.is_some() {
            self.open_at(header.clone());
            self.fold_rest();
        }
        Some(Writing {
            expected: self.seen.clone(),
            header,
            batch,
        })
    }

    /// Whether what was read is to be written now.
    pub(super) fn is_worth_writing(&self) -> bool {
        let Some(open) = &self.open else {
            return false;
        };
        let Some(seen) = &self.seen else {
            return true;
        };
        let proof_ms = i64::try_from(PROOF_EVERY.as_millis()).unwrap_or(i64::MAX);
        open.header.applied != seen.applied
            || open.header.proven_ms.saturating_sub(seen.proven_ms) >= proof_ms
            || (self.building.is_some() && open.reached)
    }

    /// What came of the batch that was handed out.
    pub(super) fn wrote(&mut self, wrote: Wrote) {
        let Some(sent) = self.sent.take() else {
            return;
        };
        match wrote {
            Wrote::Written => self.written(sent),
            Wrote::Conflict(there) => {
                self.tally.conflicts += 1;
                self.conflicted(there);
            }
            Wrote::Lost(_) => {
                self.tally.lost += 1;
                self.look(Some(Why::Lost));
            }
        }
    }

    fn written(&mut self, sent: Sent) {
        self.tally.batches += 1;
        self.tally.rows += sent.rows as u64;
        if self.looking.is_some() {
            return;
        }
        if self.building.is_some() && sent.reached {
            self.flipping = Some(sent.header.clone());
        }
        self.seen = Some(sent.header);
    }

    /// Somebody else wrote, or this one did and was not told.
    fn conflicted(&mut self, there: Option<Header>) {
        if self.looking.is_some() {
            return;
        }
        match (&self.building, there) {
            (Some(_), Some(there)) => {
                self.drop_unwritten();
                self.seen = Some(there);
            }
            // What was built has been dropped, or is not the current generation any more.
            _ => self.look(None),
        }
    }

    /// What came of the flip.
    pub(super) fn flipped(&mut self, flipped: &Flipped, now_ms: i64) {
        let Some(built) = self.flipping.take() else {
            return;
        };
        // A flip whose answer was lost is found done.
        let done = match flipped {
            Flipped::Flipped => true,
            Flipped::Conflict(there) => there
                .as_ref()
                .is_some_and(|there| there.generation == built.generation),
        };
        let Some(building) = self.building.take().filter(|_| done) else {
            self.tally.conflicts += 1;
            return self.look(None);
        };
        self.tally.flips += 1;
        let took_ms = now_ms.saturating_sub(building.began_ms);
        let slow = !built.complete && self.reaches_back;
        self.again.ended(slow, now_ms);
        tracing::info!(
            generation = %built.generation, epoch = %built.epoch, applied = %built.applied, complete = built.complete,
            why = ?building.why, took_ms, "a partition was folded from its log's start"
        );
        if slow {
            tracing::warn!(
                took_ms, kept = ?self.settings.compaction.tombstones_kept,
                "the fold took longer than the log keeps tombstones: its views are incomplete_history until one is quick enough"
            );
        }
    }

    /// Keys of the generation that is written to were found to be gone.
    pub(super) fn missed(&mut self) {
        if self.step() == Step::Fold && self.building.is_none() {
            self.tally.lost += 1;
            self.look(Some(Why::Lost));
        }
    }

    /// Asking the cache came to nothing; what was on its way may have been written.
    pub(super) fn failed(&mut self) {
        self.drop_unwritten();
        if self.building.is_none() {
            self.look(None);
        }
    }

    fn look(&mut self, why: Option<Why>) {
        self.drop_unwritten();
        self.looking = Some(why.or(self.looking.flatten()));
    }

    fn drop_unwritten(&mut self) {
        (self.sent, self.open, self.rest) = (None, None, None);
        self.astray = true;
    }

    /// What was counted since this was asked last.
    pub(super) fn take_tally(&mut self) -> Tally {
        Tally {
            untimed: self.decoder.take_untimed(),
            ..mem::take(&mut self.tally)
        }
    }

    /// The header that the cache has, as far as is known.
    pub(super) const fn seen(&self) -> Option<&Header> {
        self.seen.as_ref()
    }

    /// The newest head that was seen.
    pub(super) const fn head(&self) -> Offset {
        self.head
    }

    /// Why it is being folded from the log's start, if it is.
    pub(super) fn building(&self) -> Option<Why> {
        self.building.as_ref().map(|building| building.why)
    }
}

#[cfg(test)]
mod tests;
