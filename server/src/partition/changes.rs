//! What a view remembers for those who come back with a position that the tail has passed: its deletes, and the list of
//! its rows by their last change.
//!
//! A row knows the offset of its last change, so what a returning client lacks of a view is the rows changed after its
//! position and the deletes after it. Deletes are remembered from the view's fence on, bounded: the oldest are forgotten,
//! and with each the floor from which the view can answer rises. The list is made when somebody asks, once for all who
//! ask about the same time: each takes the end of it behind its own position, and all share the encoded updates (I8).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::view::View;
use crate::{
    frame::Shared,
    model::{Change, Channel, Moment, Offset, Position, RowId, Update},
};

/// Deletes that a view remembers beside as many as it has rows.
const DELETES_SPARE: usize = 64;
/// Changes in one list, and so deletes that are remembered, at most: beyond it a snapshot, which all readers share, is the
/// lighter answer.
pub(super) const CHANGES_MAX: usize = 1024;
/// What an update's message has beside its channel, row and data, about.
const UPDATE_BYTES: usize = 100;
/// What a row of a snapshot has beside its id and data, about.
const ROW_BYTES: usize = 34;

/// The deletes of a view since an offset: of each row the last, unless the row has come back.
#[derive(Debug, Default)]
pub(super) struct Deletes {
    since: Offset,
    by_offset: BTreeMap<Offset, (RowId, i64)>,
    by_row: HashMap<RowId, Offset>,
}

impl Deletes {
    /// None yet; what came up to `since` is not known.
    pub(super) fn since(since: Offset) -> Self {
        Self {
            since,
            ..Self::default()
        }
    }

    /// Every delete after this offset is remembered.
    pub(super) const fn floor(&self) -> Offset {
        self.since
    }

    /// How many it remembers.
    pub(super) fn len(&self) -> usize {
        self.by_offset.len()
    }

    /// Notes a change of a view that has `rows` rows after it. A delete of a row that the view does not have counts too:
    /// a client may have it, when the delete before was conflated with this one.
    pub(super) fn note(&mut self, change: &Change, offset: Offset, rows: usize) {
        if let Some(old) = self.by_row.remove(&change.row) {
            self.by_offset.remove(&old);
        }
        if change.data.is_none() {
            self.by_row.insert(change.row.clone(), offset);
            self.by_offset
                .insert(offset, (change.row.clone(), change.ts_ms));
        }
        while self.by_offset.len() > CHANGES_MAX.min(DELETES_SPARE + rows) {
            let Some((oldest, (row, _))) = self.by_offset.pop_first() else {
                return;
            };
            self.by_row.remove(&row);
            self.since = oldest;
        }
    }
}

/// A view's rows and deletes by their last change, at one offset.
#[derive(Debug)]
pub(super) struct Changes {
    /// Everything that changed after this is in here.
    from: Offset,
    /// With it the view is here.
    pub(super) at: Offset,
    /// How often the view has changed since.
    pub(super) followed_by: usize,
    /// In offset order.
    updates: Vec<Arc<Shared>>,
}

impl Changes {
    /// The newest changes of a view at `here`; updates that `before` has too are taken from it, encoded as they are.
    pub(super) fn of(
        view: &View,
        before: Option<&Self>,
        channel: &Channel,
        here: &Position,
        now: Moment,
    ) -> Self {
        let deletes = view.deletes();
        let mut from = deletes.floor();
        let rows = view.rows().iter();
        let mut found: Vec<(Offset, Lasting<'_>)> = rows
            .filter(|(_, row)| row.offset > from)
            .map(|(id, row)| {
                let data = (!row.is_grave()).then_some(&row.data);
                (row.offset, (id, data, row.ts_ms))
            })
            .collect();
        let gone = deletes.by_offset.iter();
        found.extend(gone.map(|(&offset, (id, ts_ms))| (offset, (id, None, *ts_ms))));
        found.sort_unstable_by_key(|(offset, _)| *offset);
        if let Some(last) = found.len().checked_sub(CHANGES_MAX + 1) {
            from = found[last].0;
            found.drain(..=last);
        }
        let shared = |(offset, (row, data, ts_ms)): (Offset, Lasting<'_>)| {
            if let Some(known) = before.and_then(|before| before.get(offset)) {
                return known.clone();
            }
            let position = Position {
                offset,
                ..here.clone()
            };
            let change = Change {
                channel: channel.clone(),
                row: row.clone(),
                data: data.cloned(),
                ts_ms,
            };
            Shared::new(Update { position, change }, now)
        };
        Self {
            from,
            at: here.offset,
            followed_by: 0,
            updates: found.into_iter().map(shared).collect(),
        }
    }

    /// What it holds in memory, about.
    pub(super) fn weight(&self) -> usize {
        self.updates.iter().map(|update| update.weight()).sum()
    }

    fn get(&self, offset: Offset) -> Option<&Arc<Shared>> {
        let by_offset = |shared: &Arc<Shared>| shared.update.position.offset;
        let at = self.updates.binary_search_by_key(&offset, by_offset).ok()?;
        self.updates.get(at)
    }

    /// What changed after `after`, in offset order; none where the list does not reach back so far.
    pub(super) fn after(&self, after: Offset) -> Option<&[Arc<Shared>]> {
        let first = self
            .updates
            .partition_point(|shared| shared.update.position.offset <= after);
        (after >= self.from).then(|| &self.updates[first..])
    }
}

/// A row's id, its data unless it is gone, and its time.
type Lasting<'a> = (&'a RowId, Option<&'a bytes::Bytes>, i64);

/// The length of these updates on the wire, about.
pub(super) fn length_of(updates: &[Arc<Shared>]) -> usize {
    let length = |shared: &Arc<Shared>| {
        let change = &shared.update.change;
        let data = change.data.as_ref().map_or(0, bytes::Bytes::len);
        data + change.row.as_str().len() + change.channel.len() + UPDATE_BYTES
    };
    updates.iter().map(length).sum()
}

/// The length of a whole view on the wire, about.
pub(super) fn length_of_whole(view: &View) -> usize {
    view.bytes() + view.rows().len() * ROW_BYTES + UPDATE_BYTES
}
