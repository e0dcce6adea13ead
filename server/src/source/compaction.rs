//! What reading a log that compacts proves, and what it does not.
//!
//! A log that compacts loses records that newer ones of the same key have superseded, and, later, tombstones. So rows that were
//! read from its older part may be no state of it, and who reads on late may have missed a delete. Times are the log's own, as
//! its producers may have given them: one whose clock is ahead proves nothing before its time.

use std::time::Duration;

use super::ReadAt;
use crate::model::Record;

/// When a log loses what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// A record that is older may be gone because a newer one of its key has come.
    pub after: Duration,
    /// So long the log keeps a tombstone, at least: who reads on later has missed some.
    pub tombstones_kept: Duration,
}

impl Compaction {
    /// Of a log that loses nothing but its beginning.
    pub const NEVER: Self = Self {
        after: Duration::MAX,
        tombstones_kept: Duration::MAX,
    };

    /// Whether among records that begin with this one some may have been missing when they were read: they are a state of the
    /// log only with all that was there by then.
    #[must_use]
    pub fn may_have_torn(&self, first: Option<&Record>, when: ReadAt) -> bool {
        first.is_some_and(|first| older(first.append_time_ms, when.answered_ms, self.after))
    }

    /// Whether tombstones may be gone that who goes on now needs, where all were there at `proven_ms`.
    #[must_use]
    pub fn may_lack_tombstones(&self, proven_ms: i64, now_ms: i64) -> bool {
        older(proven_ms, now_ms, self.tombstones_kept)
    }
}

/// When everything up to this record, tombstones included, was in the log: when it came, and not later than it was read.
#[must_use]
pub fn proven_by(record: &Record, when: ReadAt) -> i64 {
    record.append_time_ms.min(when.answered_ms)
}

/// Whether this was so long ago, or longer.
fn older(then_ms: i64, now_ms: i64, by: Duration) -> bool {
    i128::from(now_ms) - i128::from(then_ms) >= i128::try_from(by.as_millis()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Offset;

    const LOG: Compaction = Compaction {
        after: Duration::from_secs(10),
        tombstones_kept: Duration::from_secs(100),
    };

    fn at(append_time_ms: i64) -> Record {
        Record {
            offset: Offset::new(1),
            key: "key".into(),
            value: None,
            event_time_ms: None,
            append_time_ms,
            expired: false,
        }
    }

    #[test]
    fn what_is_old_may_be_torn_and_what_was_proven_long_ago_may_lack_tombstones() {
        let when = ReadAt {
            sent_ms: 199_000,
            answered_ms: 200_000,
        };
        assert!(!LOG.may_have_torn(None, when));
        assert!(!LOG.may_have_torn(Some(&at(190_001)), when));
        assert!(LOG.may_have_torn(Some(&at(190_000)), when));
        assert!(!LOG.may_lack_tombstones(100_001, 200_000));
        assert!(LOG.may_lack_tombstones(100_000, 200_000));
        assert!(LOG.may_lack_tombstones(i64::MIN, i64::MAX));
    }

    #[test]
    fn a_producer_whose_clock_is_ahead_proves_nothing_before_its_time() {
        let when = ReadAt {
            sent_ms: 5,
            answered_ms: 10,
        };
        assert_eq!(proven_by(&at(7), when), 7);
        assert_eq!(proven_by(&at(i64::MAX), when), 10);
    }
}
