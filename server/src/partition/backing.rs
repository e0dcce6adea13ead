//! Where the rows of a view come from that is not resident, and how far back a log can be read again.
//!
//! Does: answers for what stands behind a partition: the embedded log, which folds its own records, or nothing but a log
//! elsewhere, which this node then folds from its beginning. Owns: how far that fold has come. Never knows: views, joins. Keeps:
//! I5: rows read from a log that compacts are no state before the head that was there when they were read ("settled"), and of
//! last changes before it nothing is known ("since").

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    cache::CachedView,
    model::{Channel, Epoch, Mode, Offset, Record, StaleReason},
    source::{Fetch, ReadAt, embedded::EmbeddedLog},
};

/// What stands behind a partition.
#[derive(Debug)]
pub enum Backing {
    /// The embedded log: its cache has every row, and its records can be read again.
    Log(Arc<EmbeddedLog>),
    /// A log elsewhere. Views are resident from their first record on.
    Fold(Fold),
}

/// A fold of a whole log by this node.
#[derive(Debug)]
pub struct Fold {
    settings: FoldSettings,
    /// Events are kept by nobody but the tail.
    folds_rows: bool,
    /// Before this has been applied the rows are no state.
    settled: Offset,
    /// The head when this was begun.
    since: Offset,
    /// When everything that was applied was still in the log, tombstones included, in milliseconds since 1970.
    proven_ms: i64,
    flaw: Option<StaleReason>,
}

/// What is known of the log that is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldSettings {
    /// A record that is older may be gone because a newer one of its key has come.
    pub compacts_after: Duration,
    /// So long the log keeps a tombstone, at least: who reads on later has missed some.
    pub tombstones_kept: Duration,
    /// Views are served as live although the log does not reach back to its birth.
    pub accepts_incomplete: bool,
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
            settings,
            folds_rows: false,
            settled: Offset::BEFORE_ALL,
            since: Offset::BEFORE_ALL,
            proven_ms: 0,
            flaw: None,
        })
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
        }
    }

    /// Whether every view is resident from its first record on, since there is nowhere else to have it from.
    pub(super) const fn is_fold(&self) -> bool {
        matches!(self, Self::Fold(_))
    }

    /// Whether a view that was let go of can be had again.
    pub(super) fn has_rows(&self, epoch: Option<&Epoch>) -> bool {
        match self {
            Self::Log(log) => epoch == Some(log.epoch()),
            Self::Fold(_) => false,
        }
    }

    /// Whether deletes may be missing between what was applied and what this fetch read, or in what was applied: then
    /// everything is to be read anew.
    pub(super) fn has_missed(&self, fetch: &Fetch) -> bool {
        match (self, fetch.when) {
            (Self::Fold(fold), Some(when)) if fold.folds_rows => fold.has_missed(when),
            _ => false,
        }
    }

    /// This fetch has been applied.
    pub(super) fn applied(&mut self, fetch: &Fetch) {
        if let (Self::Fold(fold), Some(when)) = (self, fetch.when)
            && fold.folds_rows
        {
            fold.applied(fetch, when);
        }
    }

    /// Before this has been applied no view is served.
    pub(super) const fn settled(&self) -> Offset {
        match self {
            Self::Log(_) => Offset::BEFORE_ALL,
            Self::Fold(fold) => fold.settled,
        }
    }

    /// Of changes before this nothing is known, and no tail bridges them: some may have been deletes that are gone.
    pub(super) const fn since(&self) -> Offset {
        match self {
            Self::Log(_) => Offset::BEFORE_ALL,
            Self::Fold(fold) => fold.since,
        }
    }

    /// Why views are not whole, however new they are.
    pub(super) const fn flaw(&self) -> Option<StaleReason> {
        match self {
            Self::Log(_) => None,
            Self::Fold(fold) => fold.flaw,
        }
    }

    /// The rows of a channel that is not resident.
    pub(super) fn find(&self, channel: &Channel, epoch: &Epoch) -> Found {
        let Self::Log(log) = self else {
            return Found::Nothing;
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
            Self::Fold(_) => channels.retain(rows),
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
        *self = Self {
            settings: self.settings,
            folds_rows,
            settled: since,
            since,
            proven_ms: sent_ms,
            flaw: (folds_rows && !whole).then_some(StaleReason::IncompleteHistory),
        };
    }

    fn applied(&mut self, fetch: &Fetch, when: ReadAt) {
        let times = |record: Option<&Record>| record.map(|record| record.append_time_ms);
        if times(fetch.records.first())
            .is_some_and(|first| older(first, when.answered_ms, self.settings.compacts_after))
        {
            self.settled = self.settled.max(fetch.head);
        }
        self.proven_ms = if fetch.upto >= fetch.head {
            when.sent_ms
        } else {
            times(fetch.records.last()).map_or(self.proven_ms, |last| last.max(self.proven_ms))
        };
    }

    /// Also of a fold that goes on for so long: a row that it read early may have been deleted by what is gone by now.
    fn has_missed(&self, when: ReadAt) -> bool {
        let kept = self.settings.tombstones_kept;
        let missed = older(self.proven_ms, when.answered_ms, kept);
        if missed {
            tracing::warn!(
                behind_ms = when.answered_ms - self.proven_ms,
                "reading went on later than the log keeps tombstones: it is read anew from its start"
            );
        }
        missed
    }
}

/// Whether this was so long ago, or longer.
fn older(then_ms: i64, now_ms: i64, by: Duration) -> bool {
    i128::from(now_ms) - i128::from(then_ms) >= i128::try_from(by.as_millis()).unwrap_or(i128::MAX)
}
