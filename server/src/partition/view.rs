//! A resident view: its rows, the fence from which it may be served, and the encoding that its readers share.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    cache::CachedView,
    frame::Snapshot,
    model::{Change, Channel, Moment, Offset, Position, Rows},
};

/// A shared encoding is used for those who join later while so many changes followed it at most.
const CHANGES_SHARED: usize = 64;
/// … or as many as this part of its rows.
const CHANGES_SHARED_PART: usize = 4;

pub(super) struct View {
    cached: CachedView,
    fence: Offset,
    newest: Option<Arc<Snapshot>>,
    older: Weak<Snapshot>,
    changes: usize,
    asked_at: Moment,
}

impl View {
    /// Rows as the cache had them at `fence`. It may be served once the node has applied as much.
    pub(super) fn new(cached: CachedView, fence: Offset) -> Self {
        Self {
            cached,
            fence,
            newest: None,
            older: Weak::new(),
            changes: 0,
            asked_at: Moment::default(),
        }
    }

    pub(super) const fn fence(&self) -> Offset {
        self.fence
    }

    pub(super) const fn rows(&self) -> &Rows {
        &self.cached.rows
    }

    /// Applies a change, unless the cache had it already.
    pub(super) fn apply(&mut self, change: &Change, offset: Offset) {
        if offset > self.fence {
            self.cached.apply(change, offset);
            self.changes += 1;
        }
    }

    /// A snapshot at or before `here`, from which the tail reaches on. At most two encodings live at a time: readers of
    /// the older one begin again.
    pub(super) fn snapshot(
        &mut self,
        channel: &Channel,
        here: Position,
        floor: Offset,
        now: Moment,
    ) -> Arc<Snapshot> {
        self.asked_at = now;
        let few = self.changes <= CHANGES_SHARED.max(self.cached.rows.len() / CHANGES_SHARED_PART);
        if let Some(newest) = &self.newest
            && (self.changes == 0 || few)
            && newest.position().offset >= floor
        {
            return newest.clone();
        }
        if let Some(older) = self.older.upgrade() {
            older.abandon();
        }
        let snapshot = Snapshot::new(channel.clone(), here, self.cached.rows.clone());
        self.older = self
            .newest
            .replace(snapshot.clone())
            .map_or_else(Weak::new, |old| Arc::downgrade(&old));
        self.changes = 0;
        snapshot
    }

    /// Lets go of an encoding that nobody asked for lately; tells whether it did.
    pub(super) fn forget_snapshot(&mut self, now: Moment, kept: Duration) -> bool {
        if now.since(self.asked_at) <= kept {
            return false;
        }
        if let Some(newest) = self.newest.take() {
            // Who still reads it counts among the two.
            self.older = Arc::downgrade(&newest);
        }
        true
    }
}
