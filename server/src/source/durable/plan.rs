//! What a commit will change, worked out before it is on disk and done when it is.
//!
//! Records of one commit may depend on each other (a repeat of an id, the last row that a view has room for), so they are
//! planned on copies of the views that they touch; those are cheap, since rows are persistent maps. The writer is the only
//! one that changes the state, so nothing can have changed between planning and doing.

use std::{collections::HashMap, sync::Arc};

use super::commit::Entry;
use crate::{
    cache::CachedView,
    model::{Channel, Mode, Offset, Record},
    source::embedded::{Appended, EmbeddedLog, Lost, NewRecord, State},
};

/// A commit in the making.
pub(super) struct Plan {
    pub(super) entries: Vec<Entry>,
    views: HashMap<Channel, CachedView>,
    ids: HashMap<Arc<str>, Offset>,
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
        if !self.views.contains_key(&change.channel) {
            let view = state
                .cache
                .view(&change.channel)
                .cloned()
                .unwrap_or_default();
            self.views.insert(change.channel.clone(), view);
        }
        let Some(view) = self.views.get_mut(&change.channel) else {
            return Appended::NotStored;
        };
        let offset = Offset::new(self.head.number() + 1);
        match log.settings.mode {
            Mode::View if view.would_exceed(&change, log.settings.view_max) => {
                return Appended::ViewFull;
            }
            Mode::View => view.apply(&change, offset),
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
            append_time_ms: self.now_ms,
        };
        self.entries.push(Entry { record, id: new.id });
        Appended::At(log.at(offset))
    }

    /// Does what was planned.
    pub(super) fn carry_out(self, state: &mut State) {
        state.head = self.head;
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
