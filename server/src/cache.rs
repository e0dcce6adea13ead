//! Views as a whole: rows and last changes by channel, with the position up to which they are folded.
//!
//! Does: folds changes into rows, and answers with a view and its position at one moment. Owns: the folded rows. Never
//! knows: who serves them. In the embedded engine the cache is folded under the log's own lock, so its position is the
//! log's head: whoever reads it is usually ahead of the node's partition, which the fence join of `partition.rs` expects.

use std::collections::HashMap;

use crate::model::{Change, Channel, Offset, Row, Rows};

/// How large a view may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewMax {
    /// Rows.
    pub rows: usize,
    /// Bytes of all rows' ids and data.
    pub bytes: usize,
}

/// The rows of one channel.
#[derive(Clone, Debug, Default)]
pub struct CachedView {
    /// Its rows.
    pub rows: Rows,
    /// Bytes of ids and data.
    pub bytes: usize,
    /// The offset of its newest change, a delete included.
    pub last_change: Offset,
}

/// What a row costs beside its id and data, about: its place in the map, and what its id and data are held by.
const ROW_OVERHEAD: usize = 160;
/// What a channel costs beside its rows, about.
const CHANNEL_OVERHEAD: usize = 128;

/// The fold of one partition's log.
#[derive(Clone, Debug, Default)]
pub struct MemoryCache {
    views: HashMap<Channel, CachedView>,
    rows: usize,
    bytes: usize,
}

impl CachedView {
    /// Whether the change would carry the view beyond its limit. Deletes and changes that shrink never do.
    #[must_use]
    pub fn would_exceed(&self, change: &Change, max: ViewMax) -> bool {
        let Some(data) = &change.data else {
            return false;
        };
        let new = data.len() + change.row.as_str().len();
        match self.rows.get(&change.row) {
            Some(row) => {
                new > row.data.len() + change.row.as_str().len()
                    && self.bytes - row.data.len() + data.len() > max.bytes
            }
            None => self.rows.len() >= max.rows || self.bytes + new > max.bytes,
        }
    }

    /// Applies a change; gives the row as it was.
    pub fn apply(&mut self, change: &Change, offset: Offset) -> Option<Row> {
        self.last_change = offset;
        let id = change.row.as_str().len();
        let old = match &change.data {
            Some(data) => {
                self.bytes += data.len() + id;
                self.rows.insert(
                    change.row.clone(),
                    Row {
                        data: data.clone(),
                        ts_ms: change.ts_ms,
                        offset,
                    },
                )
            }
            None => self.rows.remove(&change.row),
        };
        self.bytes -= old.as_ref().map_or(0, |row| row.data.len() + id);
        old
    }
}

impl MemoryCache {
    /// The view of a channel; none when nothing was ever written to it.
    #[must_use]
    pub fn view(&self, channel: &str) -> Option<&CachedView> {
        self.views.get(channel)
    }
    /// Folds a change; gives the row as it was.
    pub fn apply(&mut self, change: &Change, offset: Offset) -> Option<Row> {
        let (rows, bytes) = (&mut self.rows, &mut self.bytes);
        let mut fold = |view: &mut CachedView| {
            let before = (view.rows.len(), view.bytes);
            let old = view.apply(change, offset);
            *rows = *rows + view.rows.len() - before.0;
            *bytes = *bytes + view.bytes - before.1;
            old
        };
        match self.views.get_mut(&change.channel) {
            Some(view) => fold(view),
            None => fold(self.views.entry(change.channel.clone()).or_default()),
        }
    }
    /// Rows of all views.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }
    /// What all views hold in memory, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.bytes + self.rows * ROW_OVERHEAD + self.views.len() * CHANNEL_OVERHEAD
    }
    /// Notes a change of an event channel, whose rows nobody keeps.
    pub fn touch(&mut self, channel: &Channel, offset: Offset) {
        match self.views.get_mut(channel) {
            Some(view) => view.last_change = offset,
            None => self.views.entry(channel.clone()).or_default().last_change = offset,
        }
    }
    /// Puts a channel's view, folded elsewhere, in place of what it has.
    pub fn put(&mut self, channel: Channel, view: CachedView) {
        self.rows += view.rows.len();
        self.bytes += view.bytes;
        if let Some(old) = self.views.insert(channel, view) {
            self.rows -= old.rows.len();
            self.bytes -= old.bytes;
        }
    }
    /// Every channel with its view.
    pub fn views(&self) -> impl Iterator<Item = (&Channel, &CachedView)> {
        self.views.iter()
    }
    /// The last change of every channel.
    pub fn manifest(&self) -> impl Iterator<Item = (&Channel, Offset)> {
        self.views
            .iter()
            .map(|(channel, view)| (channel, view.last_change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RowId;

    fn change(row: &str, data: Option<&str>) -> Change {
        Change {
            channel: "s/c".parse().unwrap(),
            row: RowId::new(row).unwrap(),
            data: data.map(|data| data.to_owned().into()),
            ts_ms: 0,
        }
    }

    #[test]
    fn bytes_are_those_of_the_rows() {
        let mut view = CachedView::default();
        for (at, (row, data)) in [
            ("a", Some("12")),
            ("b", Some("3456")),
            ("a", Some("1")),
            ("b", None),
            ("c", None),
        ]
        .into_iter()
        .enumerate()
        {
            view.apply(&change(row, data), Offset::new(at as u64 + 1));
            let counted: usize = view
                .rows
                .iter()
                .map(|(id, row)| id.as_str().len() + row.data.len())
                .sum();
            assert_eq!(view.bytes, counted);
        }
        assert_eq!((view.rows.len(), view.last_change), (1, Offset::new(5)));
    }

    #[test]
    fn the_cache_adds_up_what_its_views_hold() {
        let mut cache = MemoryCache::default();
        cache.apply(&change("a", Some("12")), Offset::new(1));
        cache.apply(&change("b", Some("3456")), Offset::new(2));
        cache.apply(&change("a", Some("1")), Offset::new(3));
        assert_eq!((cache.rows(), cache.bytes), (2, 7));
        let mut other = CachedView::default();
        other.apply(&change("c", Some("123")), Offset::new(4));
        cache.put("s/other".parse().unwrap(), other.clone());
        assert_eq!((cache.rows(), cache.bytes), (3, 11));
        cache.put("s/c".parse().unwrap(), other);
        assert_eq!((cache.rows(), cache.bytes), (2, 8));
        cache.apply(&change("c", None), Offset::new(5));
        assert_eq!((cache.rows(), cache.bytes), (1, 4));
        assert!(cache.weight() > ROW_OVERHEAD + 2 * CHANNEL_OVERHEAD);
    }

    #[test]
    fn a_full_view_takes_what_does_not_make_it_larger() {
        let mut view = CachedView::default();
        view.apply(&change("a", Some("1234")), Offset::new(1));
        let max = ViewMax { rows: 1, bytes: 6 };
        assert!(view.would_exceed(&change("b", Some("1")), max));
        assert!(view.would_exceed(&change("a", Some("123456")), max));
        assert!(!view.would_exceed(&change("a", Some("12345")), max));
        assert!(!view.would_exceed(&change("a", None), max));
    }
}
