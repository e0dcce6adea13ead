//! How far a log that compacts was read, and what that proves.
//!
//! Owns: from where on what was read is a state of the log ("settled"), and when everything that was read was still there,
//! tombstones included ("proven"). Never knows: views, caches, clocks: times come with the fetches.

use crate::{
    model::Offset,
    source::{
        Fetch, ReadAt,
        compaction::{Compaction, proven_by},
    },
};

/// What is known of the log that is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldSettings {
    /// When it loses what.
    pub compaction: Compaction,
    /// Views are served as live although the log does not reach back to its birth.
    pub accepts_incomplete: bool,
}

/// How far a log was read, and what that proves.
#[derive(Debug)]
pub(super) struct Reading {
    compaction: Compaction,
    /// Before this has been applied the rows are no state.
    pub(super) settled: Offset,
    /// When everything that was applied was still in the log, tombstones included, in milliseconds since 1970.
    proven_ms: i64,
}

impl Reading {
    pub(super) const fn new(compaction: Compaction) -> Self {
        Self {
            compaction,
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
        if self.compaction.may_have_torn(fetch.records.first(), when) {
            self.settled = self.settled.max(fetch.head);
        }
        self.proven_ms = if fetch.upto >= fetch.head {
            when.sent_ms
        } else {
            let last = fetch.records.last().map(|last| proven_by(last, when));
            self.proven_ms.max(last.unwrap_or(i64::MIN))
        };
    }

    /// Also of a fold that goes on for so long: a row that it read early may have been deleted by what is gone by now.
    pub(super) fn has_missed(&self, when: ReadAt) -> bool {
        let missed = self
            .compaction
            .may_lack_tombstones(self.proven_ms, when.answered_ms);
        if missed {
            tracing::warn!(
                behind_ms = when.answered_ms - self.proven_ms,
                "reading went on later than the log keeps tombstones: it is read anew"
            );
        }
        missed
    }
}
