//! Rows that nobody updates: which of them are due, by when the log took their last change.
//!
//! One entry for each row that there is, in the order of the last changes; a row that is changed again goes to the end. A
//! wall clock that is set back makes rows stay longer by as much, never shorter.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use crate::{
    cache::MemoryCache,
    decode::own_key,
    model::{Change, Offset},
};

/// The rows of one log by their last change.
#[derive(Debug, Default)]
pub(in crate::source) struct Expiry {
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
    /// Of rows that were recovered. When the log took their last changes is not kept: their time begins anew at `now_ms`.
    pub(in crate::source) fn recovered(cache: &MemoryCache, now_ms: i64) -> Self {
        let mut rows = BTreeMap::new();
        for (channel, view) in cache.views() {
            for (id, row) in &view.rows {
                let tombstone = Change {
                    channel: channel.clone(),
                    row: id.clone(),
                    data: None,
                    ts_ms: now_ms,
                };
                let last = Last {
                    at_ms: now_ms,
                    key: own_key(channel.name(), id.as_str()),
                    tombstone,
                };
                rows.insert(row.offset, last);
            }
        }
        Self { rows }
    }

    /// The row of `change` had its last change at `old`, if it was there; now it has this one.
    pub(in crate::source) fn note(
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

    /// The rows whose time is over, those that have waited longest first: their keys, and the tombstones that delete them.
    pub(in crate::source) fn due(
        &self,
        ttl: Duration,
        now_ms: i64,
    ) -> impl Iterator<Item = (Bytes, Change)> {
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let is_over = move |last: &&Last| now_ms.saturating_sub(last.at_ms) > ttl_ms;
        let tombstone = move |last: &Last| Change {
            ts_ms: now_ms,
            ..last.tombstone.clone()
        };
        let due = self.rows.values().take_while(is_over);
        due.map(move |last| (last.key.clone(), tombstone(last)))
    }
}
