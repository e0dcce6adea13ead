//! What memory holds of a log: its newest records, the ids that are still known, and the fold.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::Expiry;
use crate::{
    cache::MemoryCache,
    model::{Offset, Record},
};

/// Repeats of an `id` are known within the last so many.
pub const ID_WINDOW: usize = 100_000;
/// … and within so long.
pub const ID_WINDOW_AGE_MS: i64 = 10 * 60 * 1000;
/// What a record costs beside its key and value, about.
const RECORD_OVERHEAD: usize = 96;

/// What memory holds of a log.
#[derive(Debug, Default)]
pub(in crate::source) struct State {
    pub(super) records: VecDeque<Record>,
    pub(super) bytes: usize,
    /// Just before the earliest record that memory holds.
    pub(super) start: Offset,
    pub(in crate::source) head: Offset,
    pub(in crate::source) ids: IdWindow,
    pub(in crate::source) cache: MemoryCache,
    pub(in crate::source) expiry: Expiry,
    /// Rows that were deleted since their time was over.
    pub(in crate::source) expired: u64,
}

impl State {
    /// A state that holds this fold and no record. Channels that are not in it may have been forgotten before it was written.
    pub(in crate::source) fn folded(mut cache: MemoryCache, head: Offset) -> Self {
        cache.forget_up_to(head);
        Self {
            start: head,
            head,
            cache,
            ..Self::default()
        }
    }

    /// Reads what follows `after`, about `bytes` of it, one record at least.
    pub(super) fn read(&self, after: Offset, bytes: usize) -> Vec<Record> {
        let first = self
            .records
            .partition_point(|record| record.offset <= after);
        let (mut room, mut records) = (bytes, Vec::new());
        for record in self.records.range(first..) {
            if !records.is_empty() && room < weight(record) {
                break;
            }
            room = room.saturating_sub(weight(record));
            records.push(record.clone());
        }
        records
    }

    /// The first record to hold is the one behind this offset.
    pub(in crate::source) fn begin_at(&mut self, start: Offset) {
        self.start = start;
    }

    /// Holds a record; whoever calls folds it.
    pub(in crate::source) fn push(&mut self, record: Record) {
        self.bytes += weight(&record);
        self.records.push_back(record);
    }

    /// Lets go of the oldest records while `too_much` says so.
    pub(in crate::source) fn drop_while(&mut self, too_much: impl Fn(&Self, &Record) -> bool) {
        while self
            .records
            .front()
            .is_some_and(|record| too_much(self, record))
        {
            if let Some(record) = self.records.pop_front() {
                self.bytes -= weight(&record);
                self.start = record.offset;
            }
        }
    }

    /// Lets go of the oldest records beyond so many bytes.
    pub(in crate::source) fn keep_newest(&mut self, bytes: usize) {
        self.drop_while(|state, _| state.bytes > bytes);
    }
}

/// The ids of the last records.
#[derive(Debug, Default)]
pub(in crate::source) struct IdWindow {
    seen: HashMap<Arc<str>, Offset>,
    order: VecDeque<(i64, Arc<str>)>,
}

impl IdWindow {
    /// Where the record with this id is; those of long ago are forgotten first.
    pub(in crate::source) fn known(&mut self, id: &str, now_ms: i64) -> Option<Offset> {
        self.expire(now_ms);
        self.seen.get(id).copied()
    }
    /// All ids, with the times and places of their records, the oldest first.
    pub(in crate::source) fn all(&self) -> impl Iterator<Item = (i64, Arc<str>, Offset)> {
        self.order
            .iter()
            .filter_map(|(at, id)| Some((*at, id.clone(), *self.seen.get(id)?)))
    }
    pub(in crate::source) fn insert(&mut self, id: Arc<str>, offset: Offset, now_ms: i64) {
        self.seen.insert(id.clone(), offset);
        self.order.push_back((now_ms, id));
        self.expire(now_ms);
    }
    fn expire(&mut self, now_ms: i64) {
        while self.order.len() > ID_WINDOW
            || self
                .order
                .front()
                .is_some_and(|(at, _)| now_ms - at > ID_WINDOW_AGE_MS)
        {
            let Some((_, id)) = self.order.pop_front() else {
                return;
            };
            self.seen.remove(&id);
        }
    }
}

fn weight(record: &Record) -> usize {
    record.key.len() + record.value.as_ref().map_or(0, Bytes::len) + RECORD_OVERHEAD
}
