//! Views as a whole: rows and last changes by channel, with the position up to which they are folded.
//!
//! Does: folds changes into rows, and answers with a view and its position at one moment. Owns: the folded rows. Never
//! knows: who serves them. In the embedded engine the cache is folded under the log's own lock, so its position is the
//! log's head: whoever reads it is usually ahead of the node's partition, which the fence join of `partition.rs` expects.

pub mod copies;
pub mod redis;

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::model::{Change, Channel, Offset, Row, RowId, Rows, names};

/// Channels that are looked at for each record: more than a record can add, so that forgetting keeps up with inventing.
const LOOKS_PER_RECORD: usize = 2;

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
    /// Each of them once, in the order in which they are looked at.
    names: VecDeque<Channel>,
    /// The last change of any channel that was forgotten.
    forgotten: Offset,
}

impl CachedView {
    /// Rows as they were read from somewhere.
    #[must_use]
    pub fn of(rows: Rows, last_change: Offset) -> Self {
        let length = |(id, row): (&RowId, &Row)| id.as_str().len() + row.data.len();
        let bytes = rows.iter().map(length).sum();
        Self {
            rows,
            bytes,
            last_change,
        }
    }

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
        self.change(change, offset, change.data.clone())
    }

    /// The same, but that a row which is deleted leaves a grave: an older partition may still have it, and is not to be believed.
    pub fn apply_burying(&mut self, change: &Change, offset: Offset) -> Option<Row> {
        let data = change.data.clone().unwrap_or_default();
        self.change(change, offset, Some(data))
    }

    fn change(&mut self, change: &Change, offset: Offset, data: Option<Bytes>) -> Option<Row> {
        self.last_change = offset;
        let (row, id) = (&change.row, change.row.as_str().len());
        let old = match data {
            Some(data) => {
                self.bytes += data.len() + id;
                let ts_ms = change.ts_ms;
                let now = Row {
                    data,
                    ts_ms,
                    offset,
                };
                self.rows.insert(row.clone(), now)
            }
            None => self.rows.remove(row),
        };
        if self.rows.is_empty() {
            // An emptied map keeps a node with room for many rows.
            self.rows = Rows::new();
        }
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
        let Some(view) = self.views.get_mut(&change.channel) else {
            let mut view = CachedView::default();
            let old = view.apply(change, offset);
            self.put(change.channel.clone(), view);
            return old;
        };
        let before = (view.rows.len(), view.bytes);
        let old = view.apply(change, offset);
        self.rows = self.rows + view.rows.len() - before.0;
        self.bytes = self.bytes + view.bytes - before.1;
        old
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
            None => {
                let view = CachedView {
                    last_change: offset,
                    ..CachedView::default()
                };
                self.put(channel.clone(), view);
            }
        }
    }
    /// Puts a channel's view, folded elsewhere, in place of what it has.
    pub fn put(&mut self, channel: Channel, view: CachedView) {
        self.rows += view.rows.len();
        self.bytes += view.bytes;
        match self.views.insert(channel.clone(), view) {
            Some(old) => self.gone(&old),
            None => self.names.push_back(channel),
        }
    }
    fn gone(&mut self, view: &CachedView) {
        self.rows -= view.rows.len();
        self.bytes -= view.bytes;
    }
    /// Looks at some channels, in turn, for `records` new records, and forgets those that have no rows and have not changed
    /// after `start`, behind which the log begins: nothing is known of them that an empty view and an empty log would not say.
    pub fn forget_quiet(&mut self, start: Offset, records: usize) {
        if start == Offset::BEFORE_ALL {
            return;
        }
        for _ in 0..looks(self.names.len(), records) {
            let Some(name) = self.names.pop_front() else {
                return;
            };
            let view = self.views.get(&name);
            if view.is_some_and(|view| !view.rows.is_empty() || view.last_change > start) {
                self.names.push_back(name);
            } else if let Some(view) = self.views.remove(&name) {
                self.gone(&view);
                self.forgotten = self.forgotten.max(view.last_change);
            }
        }
        names::give_back(&mut self.views);
    }
    /// A channel that is not here has not changed after this.
    #[must_use]
    pub const fn forgotten(&self) -> Offset {
        self.forgotten
    }
    /// From now on a channel that is not here may have changed up to this.
    pub const fn forget_up_to(&mut self, offset: Offset) {
        self.forgotten = offset;
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

/// How many of so many channels are looked at for `records` new records.
#[must_use]
pub fn looks(channels: usize, records: usize) -> usize {
    let spare = channels.saturating_sub(names::KEPT);
    spare.min(records.saturating_mul(LOOKS_PER_RECORD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RowId;

    fn change(row: &str, data: Option<&str>) -> Change {
        change_of("s/c", row, data)
    }

    fn change_of(channel: &str, row: &str, data: Option<&str>) -> Change {
        Change {
            channel: channel.parse().unwrap(),
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
    /// So many names at a time, of which each is written to, emptied, and never heard of again.
    #[test]
    fn channels_that_are_invented_and_emptied_do_not_stay_and_others_do() {
        const LOG: u64 = 500;
        let mut cache = MemoryCache::default();
        let mut offset = 0;
        cache.apply(&change_of("s/lasting", "a", Some("1")), Offset::new(1));
        for number in 0..20_000 {
            let name = format!("s/x{number}");
            for data in [Some("1"), None] {
                offset += 1;
                cache.apply(&change_of(&name, "a", data), Offset::new(offset));
                cache.forget_quiet(Offset::new(offset.saturating_sub(LOG)), 1);
            }
            let held = cache.views().count();
            assert!(
                held as u64 <= names::KEPT as u64 + LOG,
                "{held} after {number}"
            );
            assert_eq!(held, cache.names.len());
        }
        assert!(cache.views.capacity() < 16 * names::KEPT);
        assert_eq!(cache.view("s/lasting").unwrap().rows.len(), 1);
        assert!(cache.view("s/x0").is_none());
        let still_known = cache
            .manifest()
            .filter(|(name, _)| name.as_bytes() != b"s/lasting");
        let forgotten = cache.forgotten();
        assert!(forgotten.number() <= offset - LOG);
        assert!(
            still_known
                .map(|(_, last)| last)
                .all(|last| last > Offset::new(2))
        );
        cache.apply(&change_of("s/x0", "a", Some("1")), Offset::new(offset + 1));
        assert_eq!(cache.view("s/x0").unwrap().rows.len(), 1);
    }

    #[test]
    fn names_of_events_that_the_log_no_longer_has_go_also_after_a_burst() {
        let mut cache = MemoryCache::default();
        for number in 1..=50_000 {
            let name: Channel = format!("s/x{number}").parse().unwrap();
            cache.touch(&name, Offset::new(number));
        }
        let quiet: Channel = "s/quiet".parse().unwrap();
        for number in 50_001..=100_000 {
            cache.touch(&quiet, Offset::new(number));
            cache.forget_quiet(Offset::new(number - 10), 1);
        }
        assert_eq!(cache.manifest().count(), names::KEPT);
        assert!(cache.views.capacity() <= 8 * names::KEPT);
        assert_eq!(
            cache.view("s/quiet").unwrap().last_change,
            Offset::new(100_000)
        );
    }
}
