//! What a commit will change, worked out before it is on disk and done when it is.
//!
//! Records of one commit may depend on each other (a repeat of an id, the last row that a view has room for), so they are
//! planned on copies of the views that they touch; those are cheap, since rows are persistent maps. The writer is the only
//! one that changes the state, so nothing can have changed between planning and doing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;

use super::commit::Entry;
use crate::{
    cache::CachedView,
    model::{Change, Channel, Mode, Offset, Record},
    source::embedded::{Appended, EXPIRED_BATCH, EmbeddedLog, Lost, NewRecord, State},
};

/// A commit in the making.
pub(super) struct Plan {
    pub(super) entries: Vec<Entry>,
    views: HashMap<Channel, CachedView>,
    ids: HashMap<Arc<str>, Offset>,
    /// What becomes of rows, where they have a time to live: when each was changed before, and what changes it now.
    changes: Vec<(Option<Offset>, Offset, Bytes, Change)>,
    expired: u64,
    head: Offset,
    now_ms: i64,
}

impl Plan {
    /// An empty plan; its commit will have been appended at `now_ms`.
    pub(super) fn new(state: &State, now_ms: i64) -> Self {
        Self {
            entries: Vec::new(),
            views: HashMap::new(),
            ids: HashMap::new(),
            changes: Vec::new(),
            expired: 0,
            head: state.head,
            now_ms,
        }
    }

    /// Adds a record, and says what will have become of it.
    pub(super) fn add(
        &mut self,
        log: &EmbeddedLog,
        state: &mut State,
        new: NewRecord,
        lost: &Lost,
    ) -> Appended {
        if lost.has(&new.change.channel) {
            return Appended::AfterFailed;
        }
        let mut known = |id: &Arc<str>| {
            self.ids
                .get(id)
                .copied()
                .or_else(|| state.ids.known(id, self.now_ms))
        };
        if let Some(offset) = new.id.as_ref().and_then(&mut known) {
            return Appended::Duplicate(log.at(offset));
        }
        let mut change = new.change;
        change.ts_ms = new.event_time_ms.unwrap_or(self.now_ms);
        let (offset, now_ms) = (Offset::new(self.head.number() + 1), self.now_ms);
        let view = self.view(state, &change.channel);
        match log.settings.mode {
            Mode::View if view.would_exceed(&change, log.settings.view_max) => {
                return Appended::ViewFull;
            }
            Mode::View => {
                let old = view.apply(&change, offset).map(|row| row.offset);
                if log.settings.row_ttl.is_some() {
                    self.changes
                        .push((old, offset, new.key.clone(), change.clone()));
                }
            }
            Mode::Events => view.last_change = offset,
        }
        self.head = offset;
        if let Some(id) = &new.id {
            self.ids.insert(id.clone(), offset);
        }
        let record = Record {
            offset,
            key: new.key,
            value: change.data,
            event_time_ms: new.event_time_ms,
            append_time_ms: now_ms,
            expired: false,
        };
        self.entries.push(Entry { record, id: new.id });
        Appended::At(log.at(offset))
    }

    /// Adds the tombstones of rows whose time is over, a batch of them at most. Before anything else is added.
    pub(super) fn expire(&mut self, ttl: Duration, state: &State) {
        for (key, tombstone) in state.expiry.due(ttl, self.now_ms).take(EXPIRED_BATCH) {
            let offset = Offset::new(self.head.number() + 1);
            let view = self.view(state, &tombstone.channel);
            let old = view.apply(&tombstone, offset).map(|row| row.offset);
            self.head = offset;
            self.expired += 1;
            let record = Record {
                offset,
                key: key.clone(),
                value: None,
                event_time_ms: None,
                append_time_ms: self.now_ms,
                expired: true,
            };
            self.changes.push((old, offset, key, tombstone));
            self.entries.push(Entry { record, id: None });
        }
    }

    /// The view of a channel as it will be.
    fn view(&mut self, state: &State, channel: &Channel) -> &mut CachedView {
        self.views.entry(channel.clone()).or_insert_with(|| {
            let view = state.cache.view(channel);
            view.cloned().unwrap_or_default()
        })
    }

    /// Does what was planned.
    pub(super) fn carry_out(self, state: &mut State) {
        state.head = self.head;
        state.expired += self.expired;
        for (old, offset, key, change) in &self.changes {
            state.expiry.note(*old, *offset, (key, change), self.now_ms);
        }
        for (channel, view) in self.views {
            // A record that was refused leaves the name of a channel that has none.
            if view.last_change != Offset::BEFORE_ALL {
                state.cache.put(channel, view);
            }
        }
        for Entry { record, id } in self.entries {
            if let Some(id) = id {
                state.ids.insert(id, record.offset, self.now_ms);
            }
            state.push(record);
        }
    }
}
