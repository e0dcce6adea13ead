//! Where the rows of a view come from that is not resident, and how far back a log can be read again.
//!
//! Does: answers for what stands behind a partition: the embedded log, which folds its own records; a log elsewhere, with a cache
//! that others fold it into; or nothing but that log, which this node then folds from its beginning. Owns: how far that fold has come. Never knows: views, joins. Keeps:
//! I5: rows read from a log that compacts are no state before the head that was there when they were read ("settled"), and of
//! last changes before it nothing is known ("since").

use std::{collections::HashMap, sync::Arc};

use super::{
    fence::{Fence, FenceSettings},
    reading::{FoldSettings, Gaps, Reading},
    resume::FOLD_MARK,
};
use crate::{
    cache::CachedView,
    model::{Channel, Epoch, Mode, Offset, StaleReason},
    source::{Fetch, ReadAt, embedded::EmbeddedLog},
};

/// What stands behind a partition.
#[derive(Debug)]
pub enum Backing {
    /// The embedded log: its cache has every row, and its records can be read again.
    Log(Arc<EmbeddedLog>),
    /// A log elsewhere. Views are resident from their first record on.
    Fold(Fold),
    /// A log elsewhere, and a cache that others fold it into.
    Cache(Box<Fence>),
}

/// A fold of a whole log by this node.
#[derive(Debug)]
pub struct Fold {
    reading: Reading,
    settings: FoldSettings,
    /// What is missing in what was read.
    gaps: Gaps,
    /// Events are kept by nobody but the tail.
    folds_rows: bool,
    /// The head when this was begun.
    since: Offset,
    /// The log, and behind which offset this was begun.
    log: Option<(Epoch, Offset)>,
    /// It has lost tombstones that count.
    lacks_tombstones: bool,
    flaw: Option<StaleReason>,
}

/// What is known of a channel's rows.
pub(super) enum Found {
    /// Nothing can be said yet.
    NotYet,
    /// Nothing was ever written to it, or nothing is left of it.
    Nothing,
    /// These rows, as they were at this offset.
    Rows(CachedView, Offset),
}

impl From<Arc<EmbeddedLog>> for Backing {
    fn from(log: Arc<EmbeddedLog>) -> Self {
        Self::Log(log)
    }
}

impl From<FoldSettings> for Backing {
    fn from(settings: FoldSettings) -> Self {
        Self::Fold(Fold {
            reading: Reading::new(settings.compaction),
            settings,
            gaps: Gaps::default(),
            folds_rows: false,
            since: Offset::BEFORE_ALL,
            log: None,
            lacks_tombstones: false,
            flaw: None,
        })
    }
}

impl From<FenceSettings> for Backing {
    fn from(settings: FenceSettings) -> Self {
        Self::Cache(Box::new(Fence::new(settings)))
    }
}

impl Backing {
    /// The log that this fetch found is read from behind `start` on. Gives the last changes that are known, and an offset after
    /// which channels without one have not changed, where there is such a one.
    pub(super) fn open(
        &mut self,
        fetch: &Fetch,
        start: Offset,
        mode: Mode,
    ) -> (HashMap<Channel, Offset>, Option<Offset>) {
        match self {
            Self::Log(log) if fetch.epoch == *log.epoch() => {
                let (last_change, forgotten) = log.manifest();
                (last_change, Some(forgotten))
            }
            Self::Log(_) => (HashMap::new(), None),
            Self::Fold(fold) => {
                fold.open(fetch, start, mode);
                (HashMap::new(), Some(fetch.head))
            }
            // Last changes are read with the rows: what is not known here may be known there.
            Self::Cache(fence) => {
                fence.open(fetch, start);
                (HashMap::new(), None)
            }
        }
    }

    /// Whether every view is resident from its first record on, since there is nowhere else to have it from.
    pub(super) const fn is_fold(&self) -> bool {
        matches!(self, Self::Fold(_))
    }

    /// Whether a cache elsewhere has the rows.
    pub(super) const fn is_cache(&self) -> bool {
        matches!(self, Self::Cache(_))
    }

    /// Whether a view that was let go of can be had again.
    pub(super) fn has_rows(&self, epoch: Option<&Epoch>) -> bool {
        match self {
            Self::Log(log) => epoch == Some(log.epoch()),
            Self::Fold(_) => false,
            Self::Cache(fence) => fence.answers(),
        }
    }

    /// Whether this fetch is of another log than the one that is read, which clients know by `epoch`.
    pub(super) fn is_other_log(&self, epoch: Option<&Epoch>, fetch: &Fetch) -> bool {
        epoch.map(|epoch| self.log(epoch)) != Some(&fetch.epoch)
    }

    /// The log that is read, which clients know by `epoch`, without the name of its fold.
    pub(super) fn log<'a>(&'a self, epoch: &'a Epoch) -> &'a Epoch {
        let log = match self {
            Self::Log(_) => None,
            Self::Fold(fold) => fold.log.as_ref().map(|(log, _)| log),
            Self::Cache(fence) => fence.log(),
        };
        log.unwrap_or(epoch)
    }

    /// What clients are told that the log of this fetch is called.
    pub(super) fn name(&self, fetch: &Fetch) -> Epoch {
        match self {
            Self::Log(_) => fetch.epoch.clone(),
            Self::Fold(fold) => fold.name(&fetch.epoch),
            Self::Cache(fence) => fence.name(&fetch.epoch),
        }
    }

    /// Where a log is read from when it has become another one, or no longer reaches back to where this node was: whoever folds
    /// it himself begins where it does; rows that a cache has are newer than that.
    pub(super) fn begins_anew(&self, fetch: &Fetch, other_log: bool, mode: Mode) -> Offset {
        match self {
            Self::Fold(_) if mode == Mode::View => fetch.start,
            Self::Log(_) | Self::Fold(_) if other_log => fetch.head,
            Self::Log(_) | Self::Fold(_) => fetch.start,
            Self::Cache(_) => fetch.head,
        }
    }

    /// Whether deletes may be missing between what was applied and what this fetch read, or in what was applied: then
    /// everything is to be read anew.
    pub(super) fn has_missed(&self, fetch: &Fetch) -> bool {
        match (self, fetch.when) {
            (Self::Fold(fold), Some(when)) if fold.folds_rows => fold.reading.has_missed(when),
            (Self::Cache(fence), Some(when)) => fence.reading.has_missed(when),
            _ => false,
        }
    }

    /// This fetch has been applied.
    pub(super) fn applied(&mut self, fetch: &Fetch) {
        match (self, fetch.when) {
            (Self::Fold(fold), Some(when)) if fold.folds_rows => fold.applied(fetch, when),
            (Self::Cache(fence), _) => fence.applied(fetch),
            _ => {}
        }
    }

    /// Whether the cache that has its views was silent from the beginning: what is resident is what few could be found elsewhere.
    pub(super) const fn is_cut_off(&self) -> bool {
        match self {
            Self::Log(_) | Self::Fold(_) => false,
            Self::Cache(fence) => !fence.heard(),
        }
    }

    /// Before this has been applied no view is served.
    pub(super) const fn settled(&self) -> Offset {
        match self {
            Self::Log(_) => Offset::BEFORE_ALL,
            Self::Fold(fold) => fold.reading.settled,
            Self::Cache(fence) => fence.reading.settled,
        }
    }

    /// Of changes before this nothing is known, and no tail bridges them: some may have been deletes that are gone.
    pub(super) const fn since(&self) -> Offset {
        match self {
            Self::Log(_) | Self::Cache(_) => Offset::BEFORE_ALL,
            Self::Fold(fold) => fold.since,
        }
    }

    /// Whether deletes may be missing that hide rows of older partitions.
    pub(super) const fn lacks_tombstones(&self) -> bool {
        matches!(self, Self::Fold(fold) if fold.lacks_tombstones)
    }

    /// Why views are not whole, however new they are.
    pub(super) fn flaw(&self) -> Option<StaleReason> {
        match self {
            Self::Log(_) => None,
            Self::Fold(fold) => fold.flaw,
            Self::Cache(fence) => fence.flaw(),
        }
    }

    /// The rows of a channel that is not resident. `awaited`: it was read from the cache, and nothing was ever written to it.
    pub(super) fn find(&mut self, channel: &Channel, epoch: &Epoch, awaited: bool) -> Found {
        let log = match self {
            Self::Log(log) => log,
            Self::Fold(_) => return Found::Nothing,
            Self::Cache(_) if awaited => return Found::Nothing,
            Self::Cache(fence) => {
                fence.want(channel);
                return Found::NotYet;
            }
        };
        if epoch != log.epoch() {
            return Found::NotYet;
        }
        let (cached, fence) = log.view(channel);
        if cached.last_change == Offset::BEFORE_ALL {
            Found::Nothing
        } else {
            Found::Rows(cached, fence)
        }
    }

    /// Of these channels keeps those that something is known of: `rows` tells of resident ones.
    pub(super) fn retain_known(
        &self,
        channels: &mut Vec<Channel>,
        rows: impl Fn(&Channel) -> bool,
    ) {
        match self {
            Self::Log(log) => log.retain_known(channels),
            Self::Fold(_) | Self::Cache(_) => channels.retain(rows),
        }
    }
}

impl Fold {
    fn open(&mut self, fetch: &Fetch, start: Offset, mode: Mode) {
        let folds_rows = mode == Mode::View;
        let whole = start == Offset::BEFORE_ALL || self.settings.accepts_incomplete;
        let sent_ms = fetch.when.map_or(0, |when| when.sent_ms);
        let since = if folds_rows {
            fetch.head
        } else {
            Offset::BEFORE_ALL
        };
        // Until then events come that are older than whoever joins now.
        let settled = since.max(fetch.head);
        self.folds_rows = folds_rows;
        self.log = Some((fetch.epoch.clone(), start));
        self.since = since;
        self.flaw = (folds_rows && !whole).then_some(StaleReason::IncompleteHistory);
        self.reading.begin(settled, sent_ms);
        (self.gaps, self.lacks_tombstones) = (Gaps::behind(start), false);
    }

    fn applied(&mut self, fetch: &Fetch, when: ReadAt) {
        self.reading.applied(fetch, when);
        let FoldSettings {
            compaction,
            accepts_incomplete,
            needs_tombstones,
        } = &self.settings;
        // What is read on from there is proven as it comes.
        let is_early = self.gaps.upto() < self.since;
        let known = self.flaw.is_some() || self.lacks_tombstones;
        let counts = *needs_tombstones && !accepts_incomplete && !known;
        if counts && is_early && self.gaps.may_hide_tombstones(fetch, when, compaction) {
            self.lacks_tombstones = true;
            tracing::warn!(
                "this partition was added while others had rows already, and its older tombstones may be gone: channels that moved here are stale while an older partition has rows of which this one says nothing"
            );
        }
    }

    /// A fold that lacks the log's beginning, or some of its tombstones, is another one than that of the whole, or than one that
    /// lacks less.
    fn name(&self, epoch: &Epoch) -> Epoch {
        match (&self.log, self.flaw) {
            _ if self.lacks_tombstones => fold_name(epoch, "t"),
            (Some((_, start)), Some(_)) => fold_name(epoch, &format!("s{start}")),
            _ => epoch.clone(),
        }
    }
}

/// The name that clients get for an incomplete fold of a log.
pub(super) fn fold_name(epoch: &Epoch, fold: &str) -> Epoch {
    let name = format!("{epoch}{FOLD_MARK}{fold}");
    Epoch::new(&name).unwrap_or_else(|_| epoch.clone())
}
