//! Rows that nobody updates: which of them are due, by when the log took their last change.
//!
//! One entry for each row that there is, in the order of the last changes; a row that is changed again goes to the end. A
//! wall clock that is set back makes rows stay longer by as much, never shorter.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use crate::model::{Change, Offset};

/// The rows of one log by their last change.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    rows: BTreeMap<Offset, Last>,
}

/// What is needed to delete a row.
#[derive(Debug)]
struct Last {
    at_ms: i64,
    key: Bytes,
    tombstone: Change,
}

impl Expiry {
    /// The row of `change` had its last change at `old`, if it was there; now it has this one.
    pub(super) fn note(
        &mut self,
        old: Option<Offset>,
        offset: Offset,
        (key, change): (&Bytes, &Change),
        at_ms: i64,
    ) {
        if let Some(old) = old {
            self.rows.remove(&old);
        }
        if change.data.is_some() {
            let tombstone = Change {
                data: None,
                ..change.clone()
            };
            let key = key.clone();
            let last = Last {
                at_ms,
                key,
                tombstone,
            };
            self.rows.insert(offset, last);
        }
    }

    /// The row that has waited longest, if its time is over: its key, and the tombstone that deletes it.
    pub(super) fn next_due(&self, ttl: Duration, now_ms: i64) -> Option<(Bytes, Change)> {
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let (_, last) = self.rows.first_key_value()?;
        (now_ms.saturating_sub(last.at_ms) > ttl_ms)
            .then(|| (last.key.clone(), last.tombstone.clone()))
    }
}
