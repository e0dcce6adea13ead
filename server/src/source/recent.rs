//! What the reader of a partition and its appender tell each other: the log's name, and the ids of its newest records.
//!
//! A publisher that did not hear of its record sends it again under the same id, to this node or to another. Whoever has read
//! the first one in the log since then knows it, and does not append it twice. Two may get in all the same: where the second
//! comes before the first has been read. Of events such a repeat is passed over where the first is still known. Of a view it is
//! applied, as the log says: a node that began to read between the two, or found the first one compacted away, would apply it
//! too, and all nodes must come to the same rows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::embedded::IdWindow;
use crate::model::{Epoch, Offset, Record};

/// What was seen last in a partition's log.
#[derive(Debug, Default)]
pub struct Recent {
    seen: Mutex<Seen>,
    /// Whether the reader passes over repeats.
    passes_repeats: bool,
}

/// A record that was read, and its publisher's name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) offset: Offset,
    pub(super) id: Arc<str>,
    /// When the log took it, in milliseconds since 1970.
    pub(super) at_ms: i64,
}

#[derive(Debug, Default)]
struct Seen {
    epoch: Option<Epoch>,
    ids: IdWindow,
}

impl Recent {
    /// Nothing has been seen yet. Of events, repeats are passed over.
    #[must_use]
    pub fn new(passes_repeats: bool) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            passes_repeats,
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These records were read, of which some have ids; takes out those that are to be passed over. Time is that of the log, so
    /// that all who read the same come to the same.
    pub(super) fn read(&self, epoch: &Epoch, ids: Vec<Named>, records: &mut Vec<Record>) {
        let mut seen = self.seen();
        if seen.epoch.as_ref() != Some(epoch) {
            *seen = Seen {
                epoch: Some(epoch.clone()),
                ids: IdWindow::default(),
            };
        }
        let mut repeats = Vec::new();
        for Named { offset, id, at_ms } in ids {
            match seen.ids.known(&id, at_ms) {
                Some(first) if first < offset => repeats.push(offset),
                Some(_) => {}
                None => seen.ids.insert(id, offset, at_ms),
            }
        }
        if self.passes_repeats && !repeats.is_empty() {
            records.retain(|record| repeats.binary_search(&record.offset).is_err());
        }
    }

    /// The log's name as it was read last, if it was of this topic.
    #[cfg(feature = "kafka")]
    pub(super) fn epoch(&self, topic: &str) -> Option<Epoch> {
        let seen = self.seen();
        let rest = seen.epoch.as_ref()?.as_str().strip_prefix(topic)?;
        let of_topic = rest.is_empty() || rest.starts_with("-l");
        seen.epoch.clone().filter(|_| of_topic)
    }

    /// Where the record with this id is, if it was seen of late.
    pub(super) fn known(&self, id: &str, now_ms: i64) -> Option<(Epoch, Offset)> {
        let mut seen = self.seen();
        let offset = seen.ids.known(id, now_ms)?;
        Some((seen.epoch.clone()?, offset))
    }

    /// The record with this id was appended here.
    pub(super) fn appended(&self, epoch: &Epoch, id: &Arc<str>, offset: Offset, now_ms: i64) {
        let mut seen = self.seen();
        // Where nobody reads, its own records are all that it knows. Of another log the reader will tell.
        let named = seen.epoch.get_or_insert_with(|| epoch.clone());
        if named == epoch && seen.ids.known(id, now_ms).is_none() {
            seen.ids.insert(id.clone(), offset, now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: u64) -> Record {
        Record {
            offset: Offset::new(offset),
            key: "k".into(),
            value: None,
            event_time_ms: None,
            append_time_ms: 0,
            expired: false,
        }
    }

    fn read(recent: &Recent, epoch: &str, ids: &[(u64, &str)], at_ms: i64) -> Vec<u64> {
        let ids = ids.iter().map(|(offset, id)| Named {
            offset: Offset::new(*offset),
            id: (*id).into(),
            at_ms,
        });
        let ids: Vec<_> = ids.collect();
        let mut records: Vec<_> = ids
            .iter()
            .map(|named| record(named.offset.number()))
            .collect();
        recent.read(&Epoch::new(epoch).unwrap(), ids, &mut records);
        records
            .iter()
            .map(|record| record.offset.number())
            .collect()
    }

    #[test]
    fn of_events_a_repeat_is_passed_over_and_of_views_it_is_not() {
        let (events, views) = (Recent::new(true), Recent::new(false));
        let ids = [(1, "a"), (2, "b"), (5, "a")];
        assert_eq!(read(&events, "e", &ids, 0), [1, 2]);
        assert_eq!(read(&views, "e", &ids, 0), [1, 2, 5]);
        // The same records read again are no repeats of themselves.
        assert_eq!(read(&events, "e", &ids, 0), [1, 2]);
        assert_eq!(views.known("a", 0).unwrap().1, Offset::new(1));
    }

    #[test]
    fn ids_are_known_for_a_while_and_in_one_log() {
        let recent = Recent::new(true);
        let epoch = Epoch::new("e").unwrap();
        assert_eq!(read(&recent, "e", &[(1, "a")], 0), [1]);
        recent.appended(&epoch, &"b".into(), Offset::new(2), 0);
        assert_eq!(recent.known("b", 1), Some((epoch.clone(), Offset::new(2))));
        assert_eq!(read(&recent, "e", &[(3, "a")], 600_001), [3]);
        recent.appended(
            &Epoch::new("other").unwrap(),
            &"c".into(),
            Offset::new(4),
            0,
        );
        assert_eq!(recent.known("c", 0), None);
        assert_eq!(read(&recent, "f", &[(1, "a")], 600_002), [1]);
    }

    #[test]
    fn where_nobody_reads_what_was_appended_here_is_known() {
        let (recent, epoch) = (Recent::new(true), Epoch::new("e").unwrap());
        recent.appended(&epoch, &"a".into(), Offset::new(7), 0);
        assert_eq!(recent.known("a", 1), Some((epoch, Offset::new(7))));
        // Read later, it is no repeat of itself; of another log nothing is known.
        assert_eq!(read(&recent, "e", &[(7, "a"), (9, "a")], 1), [7]);
        assert_eq!(read(&recent, "f", &[(9, "a")], 1), [9]);
    }

    #[cfg(feature = "kafka")]
    #[test]
    fn the_name_of_a_log_that_went_back_is_that_of_its_topic() {
        let recent = Recent::new(false);
        assert_eq!(recent.epoch("abc"), None);
        read(&recent, "abc-l7", &[], 0);
        assert_eq!(recent.epoch("abc").unwrap().as_str(), "abc-l7");
        assert_eq!(recent.epoch("ab"), None);
    }
}
