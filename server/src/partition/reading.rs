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
    /// Its tombstones count from its birth on: rows that they delete may be in a partition that is older.
    pub needs_tombstones: bool,
}

/// Whether something is missing in a log that may have been a tombstone. What it takes: offsets that follow each other have nothing
/// between them; what is gone is younger than what comes before it; and a tombstone that young would still be there.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// What was read last, and when the log took it; none at its beginning.
    last: (Offset, Option<i64>),
}

impl Gaps {
    /// None yet, in a log that is read behind this.
    pub(super) const fn behind(start: Offset) -> Self {
        Self {
            last: (start, None),
        }
    }

    /// Up to where it was read.
    pub(super) const fn upto(&self) -> Offset {
        self.last.0
    }

    /// Whether a tombstone may have been gone when this was read.
    pub(super) fn may_hide_tombstones(
        &mut self,
        fetch: &Fetch,
        when: ReadAt,
        compaction: &Compaction,
    ) -> bool {
        let mut missing = false;
        let end = (fetch.upto.number().saturating_add(1), None);
        let records = fetch.records.iter();
        let places = records.map(|record| (record.offset.number(), Some(proven_by(record, when))));
        for (offset, at) in places.chain([end]) {
            let (last, last_at) = self.last;
            let proven = last_at.unwrap_or(i64::MIN);
            missing |= offset > last.number().saturating_add(1)
                && compaction.may_lack_tombstones(proven, when.answered_ms);
            let upto = Offset::new(offset.min(end.0 - 1));
            self.last = (upto.max(last), at.or(last_at));
        }
        missing
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Epoch, Record};

    const COMPACTION: Compaction = Compaction {
        after: Duration::from_millis(10),
        tombstones_kept: Duration::from_millis(100),
    };

    /// A fetch, answered at 1,000, of these offsets with their times, up to there.
    fn fetch(records: &[(u64, i64)], upto: u64) -> (Fetch, ReadAt) {
        let record = |(offset, append_time_ms): &(u64, i64)| Record {
            offset: Offset::new(*offset),
            key: "key".into(),
            value: None,
            event_time_ms: None,
            append_time_ms: *append_time_ms,
            expired: false,
        };
        let when = ReadAt {
            sent_ms: 990,
            answered_ms: 1000,
        };
        let fetch = Fetch {
            epoch: Epoch::new("e").unwrap(),
            start: Offset::BEFORE_ALL,
            records: records.iter().map(record).collect(),
            upto: Offset::new(upto),
            head: Offset::new(upto),
            when: Some(when),
            lineage: None,
        };
        (fetch, when)
    }

    #[test]
    fn only_what_is_missing_and_old_may_have_been_a_tombstone() {
        for (records, upto, expected) in [
            // All there, however old.
            (&[(1, 0), (2, 5), (3, 950)][..], 3, false),
            (&[][..], 0, false),
            // The beginning is missing: nobody knows how old that was.
            (&[(2, 990)][..], 2, true),
            // What is missing came after 905, at the earliest: a tombstone would be there.
            (&[(1, 0), (2, 905), (9, 990)][..], 9, false),
            (&[(1, 0), (2, 900), (9, 990)][..], 9, true),
            // At the end.
            (&[(1, 905)][..], 7, false),
            (&[(1, 900)][..], 7, true),
            (&[][..], 7, true),
            // A producer whose clock is ahead proves nothing before its time: what follows was read at 1,000.
            (&[(1, i64::MAX), (3, 0)][..], 3, false),
        ] {
            let (fetch, when) = fetch(records, upto);
            let mut gaps = Gaps::behind(Offset::BEFORE_ALL);
            let found = gaps.may_hide_tombstones(&fetch, when, &COMPACTION);
            assert_eq!(found, expected, "{records:?} up to {upto}");
            assert_eq!(gaps.upto(), Offset::new(upto));
        }
    }

    #[test]
    fn what_one_fetch_ends_with_the_next_one_goes_on_from() {
        let mut gaps = Gaps::behind(Offset::BEFORE_ALL);
        let (first, when) = fetch(&[(1, 0), (2, 0)], 2);
        assert!(!gaps.may_hide_tombstones(&first, when, &COMPACTION));
        let (next, when) = fetch(&[(3, 0)], 3);
        assert!(!gaps.may_hide_tombstones(&next, when, &COMPACTION));
        let (beyond, when) = fetch(&[(5, 990)], 5);
        assert!(gaps.may_hide_tombstones(&beyond, when, &COMPACTION));
    }
}
