//! What reading a log that compacts proves.
//!
//! Owns: from where on what was read is a state of the log ("settled"), and when everything that was read was still there,
//! tombstones included ("proven"). Never knows: views, caches, clocks: times come with the fetches.

use std::time::Duration;

use crate::{
    model::{Offset, Record},
    source::{Fetch, ReadAt},
};

/// What is known of the log that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldSettings {
    /// A record that is older may be gone because a newer one of its key has come.
    pub compacts_after: Duration,
    /// So long the log keeps a tombstone, at least: who reads on later has missed some.
    pub tombstones_kept: Duration,
    /// Views are served as live although the log does not reach back to its birth.
    pub accepts_incomplete: bool,
}

/// How far a log was read, and what that proves.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) settings: FoldSettings,
    /// Before this has been applied the rows are no state.
    pub(super) settled: Offset,
    /// When everything that was applied was still in the log, tombstones included, in milliseconds since 1970.
    pub(super) proven_ms: i64,
}

impl Reading {
    pub(super) const fn new(settings: FoldSettings) -> Self {
        Self {
            settings,
            settled: Offset::BEFORE_ALL,
            proven_ms: 0,
        }
    }

    /// Reading begins anew.
    pub(super) const fn begin(&mut self, settled: Offset, proven_ms: i64) {
        (self.settled, self.proven_ms) = (settled, proven_ms);
    }

    /// This fetch has been applied.
    pub(super) fn applied(&mut self, fetch: &Fetch, when: ReadAt) {
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
    pub(super) fn has_missed(&self, when: ReadAt) -> bool {
        let missed = self.may_lack_tombstones(self.proven_ms, when.answered_ms);
        if missed {
            tracing::warn!(
                behind_ms = when.answered_ms - self.proven_ms,
                "reading went on later than the log keeps tombstones: it is read anew"
            );
        }
        missed
    }

    /// Whether tombstones may be gone that who goes on now needs, where all were there at `proven_ms`.
    pub(super) fn may_lack_tombstones(&self, proven_ms: i64, now_ms: i64) -> bool {
        older(proven_ms, now_ms, self.settings.tombstones_kept)
    }
}

/// Whether this was so long ago, or longer.
fn older(then_ms: i64, now_ms: i64, by: Duration) -> bool {
    i128::from(now_ms) - i128::from(then_ms) >= i128::try_from(by.as_millis()).unwrap_or(i128::MAX)
}
