//! A resident view: its rows, the fence from which it may be served, the deletes that it remembers, and what its readers
//! share: an encoding of the whole, and the list of what changed last.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::changes::{Changes, Deletes, length_of, length_of_whole};
use crate::{
    cache::{CachedView, redis::Walk},
    frame::{
        Shared, Snapshot,
        held::{Held, Share},
    },
    model::{Change, Channel, Moment, Offset, Position, RowId, Rows},
};

/// A shared encoding, or list of changes, is used for those who join later while so many changes followed it at most.
const CHANGES_SHARED: usize = 64;
/// … or as many as this part of its rows.
const CHANGES_SHARED_PART: usize = 4;

/// What a resident row costs beside its data, which the embedded log's own fold has too, about.
const ROW_BYTES: usize = 112;
/// … a view beside its rows …
const VIEW_BYTES: usize = 512;
/// … and a delete that it remembers.
const DELETE_BYTES: usize = 160;

/// What the resident views of a partition hold, about.
#[derive(Clone, Debug, Default)]
pub struct ViewsHeld {
    /// Their rows, and the deletes that they remember. The rows' data is the log's, where there is one here.
    pub views: Held,
    /// What their readers share: encodings, and lists of what changed last.
    pub encodings: Held,
    /// The rows' data is nobody else's, and so counted here.
    pub data_too: bool,
}

pub(super) struct View {
    cached: CachedView,
    /// What it deletes leaves graves: its channel has moved here from an older partition, which may still have the row.
    buries: bool,
    fence: Offset,
    /// Of rows that were read page by page: which is as of when. Until all are as of the fence.
    pages: Option<Box<Walk>>,
    held: Share,
    data_too: bool,
    encodings: Held,
    newest: Option<Arc<Snapshot>>,
    older: Weak<Snapshot>,
    changes: usize,
    deletes: Deletes,
    changed: Option<(Changes, Share)>,
    asked_at: Moment,
}

impl View {
    /// Rows as the cache had them at `fence`. It may be served once the node has applied as much.
    pub(super) fn new(cached: CachedView, fence: Offset, held: &ViewsHeld, now: Moment) -> Self {
        let mut view = Self {
            cached,
            buries: false,
            fence,
            pages: None,
            held: held.views.share(),
            data_too: held.data_too,
            encodings: held.encodings.clone(),
            newest: None,
            older: Weak::new(),
            changes: 0,
            deletes: Deletes::since(fence),
            changed: None,
            asked_at: now,
        };
        view.weigh();
        view
    }

    /// The same of a channel that has moved here from an older partition, if it has.
    pub(super) fn burying(self, buries: bool) -> Self {
        Self { buries, ..self }
    }

    /// Rows as the cache had them, each as of its page, the newest as of `fence`, or a state of the log from there on.
    pub(super) fn of_pages(
        cached: CachedView,
        fence: Offset,
        pages: Box<Walk>,
        held: &ViewsHeld,
        now: Moment,
    ) -> Self {
        let pages = Some(pages);
        Self {
            pages,
            ..Self::new(cached, fence, held, now)
        }
    }

    /// Whether a change has been applied to the row already when it was read.
    fn has(&self, row: &RowId, offset: Offset) -> bool {
        let base = match &self.pages {
            Some(pages) => pages.row_base(row).and_then(|base| base.try_into().ok()),
            None => None,
        };
        offset <= base.unwrap_or(self.fence)
    }

    fn weigh(&mut self) {
        let rows = self.cached.rows.len() * ROW_BYTES;
        let deletes = self.deletes.len() * DELETE_BYTES;
        let data = if self.data_too { self.cached.bytes } else { 0 };
        self.held.set(VIEW_BYTES + rows + deletes + data);
    }

    /// When somebody last asked for it, for its changes, or made it resident.
    pub(super) const fn asked_at(&self) -> Moment {
        self.asked_at
    }

    pub(super) const fn fence(&self) -> Offset {
        self.fence
    }

    pub(super) const fn rows(&self) -> &Rows {
        &self.cached.rows
    }

    /// Bytes of its rows' ids and data.
    pub(super) const fn bytes(&self) -> usize {
        self.cached.bytes
    }

    /// The deletes that it remembers.
    pub(super) const fn deletes(&self) -> &Deletes {
        &self.deletes
    }

    /// Applies a change, unless the cache had it already.
    pub(super) fn apply(&mut self, change: &Change, offset: Offset) {
        if !self.has(&change.row, offset) {
            if self.buries {
                // Its rows say what was deleted, too.
                drop(self.cached.apply_burying(change, offset));
            } else {
                drop(self.cached.apply(change, offset));
                self.deletes.note(change, offset, self.cached.rows.len());
            }
            self.changes += 1;
            if let Some((changed, _)) = &mut self.changed {
                changed.followed_by += 1;
            }
            self.weigh();
        }
        if self.pages.is_some() && offset >= self.fence {
            self.pages = None;
        }
    }

    /// So few that what others read already is good enough for who joins now, with what followed it.
    fn are_few(&self, changes: usize) -> bool {
        changes <= CHANGES_SHARED.max(self.cached.rows.len() / CHANGES_SHARED_PART)
    }

    /// The rows changed and deleted after `after`, in the order of their last changes, up to an offset from which the tail
    /// reaches on; none where nobody remembers them all, or where the whole view is shorter.
    pub(super) fn changed_after(
        &mut self,
        after: Offset,
        channel: &Channel,
        here: &Position,
        floor: Offset,
        now: Moment,
    ) -> Option<(Vec<Arc<Shared>>, Offset)> {
        self.asked_at = now;
        let mut changed = self.changed.take().map(|(list, _)| list);
        if let Some(list) = changed.as_mut().filter(|list| list.followed_by == 0) {
            list.at = here.offset;
        }
        let good = |list: &Changes| list.at >= floor && self.are_few(list.followed_by);
        let list = match changed {
            Some(list) if good(&list) => list,
            before => Changes::of(self, before.as_ref(), channel, here, now),
        };
        let whole = length_of_whole(self);
        let mut held = self.encodings.share();
        held.set(list.weight());
        let (list, _) = self.changed.insert((list, held));
        let updates = list.after(after)?;
        (length_of(updates) <= whole).then(|| (updates.to_vec(), list.at))
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
        let few = self.are_few(self.changes);
        if let Some(newest) = &self.newest
            && few
            && newest.position().offset >= floor
        {
            return newest.clone();
        }
        if let Some(older) = self.older.upgrade() {
            older.abandon();
        }
        let rows = self.cached.rows.clone();
        let snapshot = Snapshot::new(channel.clone(), here, rows, &self.encodings);
        self.older = self
            .newest
            .replace(snapshot.clone())
            .map_or_else(Weak::new, |old| Arc::downgrade(&old));
        self.changes = 0;
        snapshot
    }

    /// Lets go of what nobody asked for lately; tells whether it did.
    pub(super) fn forget_shared(&mut self, now: Moment, kept: Duration) -> bool {
        let unasked = now.since(self.asked_at) > kept;
        if unasked {
            self.let_go();
        }
        unasked
    }

    /// Lets go of what its readers share: those who have it keep it.
    pub(super) fn let_go(&mut self) {
        self.changed = None;
        if let Some(newest) = self.newest.take() {
            // Who still reads it counts among the two.
            self.older = Arc::downgrade(&newest);
        }
    }
}
