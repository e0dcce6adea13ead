//! The fence: how a partition goes by a cache that others fold.
//!
//! Does: says where the log is read from (the newest header), which channels' rows are to be read from the cache, one load for
//! all who ask, and whether what was read may be joined with the tail. Owns: the header that this node goes by, and the loads.
//! Never knows: how a cache is asked, views, joins. Keeps: a header of another log, of another fold, or behind which
//! tombstones may be gone counts as none; a fold that is not whole has an epoch of its own, so no token passes for one of the
//! whole. `loading.rs` asks the cache; `join.rs` makes what it answers resident.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    alone::Alone,
    backfill::{Backfill, Filling, Origin},
    backing::fold_name,
    reading::{FoldSettings, Reading},
};
use crate::{
    cache::redis::{Generation, Header},
    model::{Channel, Epoch, Moment, Offset, StaleReason},
    source::{Fetch, Lineage},
};

/// Channels of a partition that are read from the cache at the same time.
pub(super) const LOADS_MAX: usize = 16;
/// Channels that wait for their turn. Whoever joins another one is held, and asks again.
const WANTED_MAX: usize = 1 << 16;
/// After a load that came to nothing the next ones wait so long.
const LOAD_AGAIN: Duration = Duration::from_millis(250);

/// How a stream's views lie in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceSettings {
    /// What is known of the log.
    pub fold: FoldSettings,
    /// What the fold depends on beside the log: rows of another one are not this node's.
    pub fold_id: Arc<str>,
    /// While the cache does not answer, a log of so many records at most is folded in its place; 0: none.
    pub alone_max: u64,
}

/// What the next fetch is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// What follows this; none: the log from its earliest record on.
    pub after: Option<Offset>,
    /// The source is told first that this log was read up to there, by whomever.
    pub resume: Option<(Epoch, Option<Lineage>)>,
}

/// What there is to see of a partition's cache.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FenceReport {
    /// Whether the cache answered last.
    pub answers: bool,
    /// The header by which this node goes: up to where the fold is.
    pub applied: Option<u64>,
    /// Its generation.
    pub generation: Option<String>,
    /// Whether the fold is whole.
    pub complete: Option<bool>,
    /// Channels that were read.
    pub loads: u64,
    /// Reads that came to nothing, and were tried again.
    pub failed_loads: u64,
    /// Channels whose rows were older than the tail, so that the log was read in between.
    pub backfilled: u64,
    /// Channels that were folded from the log, since the cache did not answer.
    pub folded_alone: u64,
    /// Channels that wait to be read, or are being read.
    pub waiting: usize,
}

#[derive(Debug)]
pub struct Fence {
    settings: FenceSettings,
    pub(super) reading: Reading,
    /// The log that is read, by its source's name for it, and the source's word for where that is.
    log: Option<(Epoch, Option<Lineage>)>,
    /// The header by which this node goes.
    header: Option<Header>,
    /// The fold of views that are not whole.
    mark: Option<Generation>,
    /// A header from which the log is to be read on …
    jump: Option<Header>,
    /// … and the one from which the fetch that is under way was asked to.
    jumping: Option<Header>,
    /// The log did not go on from this one. From a later one of the same fold it may.
    refused: Option<Header>,
    /// The source was asked for another log than the one that is read.
    astray: bool,
    /// Whether the cache has been asked, and whether it answered.
    answers: Option<bool>,
    /// It has answered since the node began.
    heard: bool,
    wanted: VecDeque<Channel>,
    waiting: HashSet<Channel>,
    loading: usize,
    pub(super) backfill: Backfill,
    pub(super) alone: Alone,
    again_at: Moment,
    loads: u64,
    failed_loads: u64,
    pub(super) backfilled: u64,
}

impl Fence {
    pub(super) fn new(settings: FenceSettings) -> Self {
        let alone = Alone::new(settings.alone_max, settings.fold.accepts_incomplete);
        Self {
            reading: Reading::new(settings.fold.compaction),
            settings,
            log: None,
            header: None,
            mark: None,
            jump: None,
            jumping: None,
            refused: None,
            astray: false,
            answers: None,
            heard: false,
            wanted: VecDeque::new(),
            waiting: HashSet::new(),
            loading: 0,
            backfill: Backfill::default(),
            alone,
            again_at: Moment::default(),
            loads: 0,
            failed_loads: 0,
            backfilled: 0,
        }
    }

    /// What the next fetch is asked for, where everything up to `applied` has been; none before the cache was asked.
    pub(super) fn next(&mut self, applied: Option<Offset>) -> Option<Next> {
        self.answers?;
        self.jumping.clone_from(&self.jump);
        if let Some(header) = &self.jump {
            let lineage = (!header.lineage.is_empty()).then(|| header.lineage.as_str().into());
            return Some(Next {
                after: Some(applied_of(header)),
                resume: Some((header.epoch.clone(), lineage)),
            });
        }
        Some(Next {
            after: applied,
            resume: self.log.clone().filter(|_| self.astray),
        })
    }

    /// Whether the log is to be read from somewhere else than before.
    pub(super) fn is_to_begin(&self, applied: Option<Offset>) -> bool {
        self.answers.is_some() && (self.jump.is_some() || self.astray || applied.is_none())
    }

    /// The header from which the fetch that was just answered was to go on, if it was.
    pub(super) fn take_jump(&mut self) -> Option<Header> {
        let jump = self.jumping.take();
        if jump.is_some() {
            (self.jump, self.astray) = (None, true);
        }
        jump
    }

    /// Whether the log goes on from where this fold is, says the fetch that was asked to.
    pub(super) fn goes_on(&mut self, header: &Header, fetch: &Fetch) -> bool {
        let answered_ms = fetch.when.map_or(0, |when| when.answered_ms);
        let goes_on = fetch.epoch == header.epoch
            && fetch.start <= applied_of(header)
            && !self
                .settings
                .fold
                .compaction
                .may_lack_tombstones(header.proven_ms, answered_ms);
        if goes_on {
            self.mark = self.mark_of(header);
            self.header = Some(header.clone());
        } else {
            tracing::warn!(
                epoch = %fetch.epoch, cached = %header.epoch, applied = %header.applied, start = %fetch.start,
                "the log does not go on from where the cache is: it has to be folded anew"
            );
            self.refused = Some(header.clone());
        }
        goes_on
    }

    /// The log is read from `at` on; by a fold that is there, or from its head.
    pub(super) fn open(&mut self, fetch: &Fetch, at: Offset) {
        let sent_ms = fetch.when.map_or(0, |when| when.sent_ms);
        let fold = self.header.as_ref();
        let fold = fold.filter(|fold| fold.epoch == fetch.epoch && applied_of(fold) == at);
        let proven_ms = fold.map_or(sent_ms, |fold| fold.proven_ms);
        if fold.is_none() {
            (self.header, self.mark) = (None, None);
        }
        self.reading.begin(Offset::BEFORE_ALL, proven_ms);
        self.log = Some((fetch.epoch.clone(), fetch.lineage.clone()));
        self.astray = false;
        self.wanted.clear();
        self.waiting.clear();
        self.backfill.clear();
        self.alone.opened();
    }

    /// This fetch has been applied.
    pub(super) fn applied(&mut self, fetch: &Fetch) {
        if let Some(when) = fetch.when {
            self.reading.applied(fetch, when);
        }
        if fetch.lineage.is_some() {
            self.log = Some((fetch.epoch.clone(), fetch.lineage.clone()));
        }
        self.astray = false;
    }

    /// The log that is read, by its source's name for it.
    pub(super) fn log(&self) -> Option<&Epoch> {
        self.log.as_ref().map(|(epoch, _)| epoch)
    }

    /// The name that clients get for the log: of views that are not whole it is another one.
    pub(super) fn name(&self, epoch: &Epoch) -> Epoch {
        let Some(mark) = &self.mark else {
            return epoch.clone();
        };
        let part = mark.as_str().get(..20).unwrap_or(mark.as_str());
        fold_name(epoch, part)
    }

    pub(super) fn flaw(&self) -> Option<StaleReason> {
        self.mark.as_ref().map(|_| StaleReason::IncompleteHistory)
    }

    fn mark_of(&self, header: &Header) -> Option<Generation> {
        let accepted = header.complete || self.settings.fold.accepts_incomplete;
        (!accepted).then(|| header.generation.clone())
    }

    /// The cache has this header, or none. `reaches`: the tail reaches back to an offset; `idle`: no view is resident.
    pub(super) fn saw(
        &mut self,
        header: Option<Header>,
        reaches: impl Fn(Offset) -> bool,
        idle: bool,
    ) {
        (self.answers, self.heard) = (Some(true), true);
        self.alone.answered();
        let usable = header.filter(|header| {
            *header.fold_id == *self.settings.fold_id
                && Offset::try_from(&header.applied).is_ok()
                && self.refused.as_ref() != Some(header)
        });
        let Some(header) = usable else {
            (self.header, self.jump) = (None, None);
            return;
        };
        let same = self.log() == Some(&header.epoch) && self.mark == self.mark_of(&header);
        if !same || (idle && !reaches(applied_of(&header))) {
            self.jump = Some(header);
        } else {
            (self.header, self.jump) = (Some(header), None);
        }
    }

    /// Nobody needs its partition: what was asked of the cache is not answered any more.
    pub(super) fn rest(&mut self) {
        self.wanted.clear();
        self.waiting.clear();
        (self.jumping, self.loading) = (None, 0);
        self.backfill = Backfill::default();
    }

    /// Before the log is read again the cache is asked how far its fold is by now.
    pub(super) const fn wake(&mut self) {
        self.answers = None;
        self.alone.answered();
    }

    /// The cache was asked, and did not answer.
    pub(super) fn did_not_answer(&mut self, now: Moment) {
        self.answers = Some(false);
        self.alone.silent(now);
        self.again_at = now.plus(LOAD_AGAIN);
    }

    /// Whether the cache has answered since the node began.
    pub(super) const fn heard(&self) -> bool {
        self.heard
    }

    /// Whether the cache answered last.
    pub(super) fn answers(&self) -> bool {
        self.answers == Some(true)
    }

    /// The rows of a channel are wanted.
    pub(super) fn want(&mut self, channel: &Channel) {
        if self.backfill.has(channel) || self.wanted.len() >= WANTED_MAX {
            return;
        }
        if self.waiting.insert(channel.clone()) {
            self.wanted.push_back(channel.clone());
        }
    }

    /// The next channel to be read, and of which generation.
    pub(super) fn next_load(&mut self, now: Moment) -> Option<(Channel, Generation)> {
        let generation = self.header.as_ref()?.generation.clone();
        if self.loading >= LOADS_MAX || now < self.again_at || self.jump.is_some() {
            return None;
        }
        let channel = self.wanted.pop_front()?;
        self.loading += 1;
        self.loads += 1;
        Some((channel, generation))
    }

    /// When there is something to be read that has to wait, until when.
    pub(super) fn load_at(&self) -> Option<Moment> {
        let waits = self.header.is_some() && !self.wanted.is_empty() && self.loading < LOADS_MAX;
        waits.then_some(self.again_at)
    }

    /// A load has ended. Tells whether somebody still wants it: nobody, when the log has become another one meanwhile.
    pub(super) fn loaded(&mut self, channel: &Channel) -> bool {
        self.loading -= 1;
        self.waiting.remove(channel)
    }

    /// What a load brought can't be used, or not yet: whoever waits asks again.
    pub(super) fn load_failed(&mut self, channel: &Channel, now: Moment) {
        self.failed_loads += 1;
        self.again_at = now.plus(LOAD_AGAIN);
        self.want(channel);
    }

    /// What of the log is to be read for those whose rows are older than the tail; once the cache has been silent for a while, also
    /// for those whose rows are unknown. Views that are not whole have a fold that only the cache has.
    pub(super) fn next_backfill(&mut self, now: Moment) -> Option<Next> {
        if self.alone.may(now) && self.mark.is_none() && self.log.is_some() {
            while let Some(channel) = self.wanted.pop_front() {
                self.waiting.remove(&channel);
                if !self.backfill.add_nothing(&channel) {
                    self.want(&channel);
                    break;
                }
            }
        }
        let (after, begins) = self.backfill.next(self.settings.fold.compaction)?;
        let log = self.log.as_ref().filter(|_| begins);
        Some(Next {
            after: Some(after),
            resume: log.map(|(epoch, _)| (epoch.clone(), None)),
        })
    }

    /// The log can't be read for those who wait: they are wanted again.
    pub(super) fn give_up_backfill(&mut self, now: Moment) {
        let (channels, origin) = self.backfill.give_up();
        for channel in channels {
            self.load_failed(&channel, now);
        }
        if origin == Some(Origin::Log) {
            self.alone.failed(now);
        }
    }

    /// Those whose rows and changes reach to where the tail begins by now.
    pub(super) fn finish_backfill(&mut self, floor: Offset) -> Vec<(Channel, Filling)> {
        let finished = self.backfill.finished(floor);
        let folded = |(_, filling): &&(Channel, Filling)| filling.origin == Origin::Log;
        let folded = finished.iter().filter(folded).count() as u64;
        if folded > 0 {
            self.alone.succeeded(folded);
        }
        self.backfilled += finished.len() as u64 - folded;
        finished
    }

    /// Whether rows with this header may be joined.
    pub(super) fn may_join(&self, header: &Header, proven_ms: i64, now_ms: i64) -> bool {
        self.log() == Some(&header.epoch)
            && self.mark == self.mark_of(header)
            && *header.fold_id == *self.settings.fold_id
            && !self
                .settings
                .fold
                .compaction
                .may_lack_tombstones(proven_ms, now_ms)
    }

    pub(super) fn report(&self) -> FenceReport {
        let header = self.header.as_ref();
        FenceReport {
            answers: self.answers(),
            applied: header.map(|header| applied_of(header).number()),
            generation: header.map(|header| header.generation.to_string()),
            complete: header.map(|header| header.complete),
            loads: self.loads,
            failed_loads: self.failed_loads,
            backfilled: self.backfilled,
            folded_alone: self.alone.folded,
            waiting: self.waiting.len() + self.backfill.len(),
        }
    }
}

/// Up to where a fold is. A header with an offset that this node can't have is never gone by.
fn applied_of(header: &Header) -> Offset {
    Offset::try_from(&header.applied).unwrap_or(Offset::BEFORE_ALL)
}
