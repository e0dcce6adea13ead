//! What a log that keeps the newest record of each key no longer has, as Kafka's cleaner does it.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tidegate::{
    model::Offset,
    source::{Fetch, compaction::Compaction, embedded::EmbeddedLog},
};

/// No record is cleaned away that is younger, which is longer than [`SLO`](super::node::SLO), as a configuration has to say; so long a
/// tombstone stays after the cleaner first came by it (Kafka's `delete.retention.ms`).
pub(super) const COMPACTION: Compaction = Compaction {
    after: Duration::from_millis(800),
    tombstones_kept: Duration::from_millis(1500),
};

/// Bytes of one fetch, about.
pub(super) const FETCH_BYTES: usize = 1500;

/// The offsets of one log that have gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Cleaned(Rc<RefCell<Gone>>);

#[derive(Debug, Default)]
struct Gone {
    offsets: HashSet<Offset>,
    /// When the cleaner first came by a tombstone.
    seen_ms: HashMap<Offset, i64>,
}

impl Cleaned {
    /// One run of the cleaner.
    pub(super) fn run(&self, log: &Arc<EmbeddedLog>, wall_ms: i64) {
        let old = |append_ms: i64, age: Duration| {
            wall_ms - append_ms >= i64::try_from(age.as_millis()).unwrap_or(i64::MAX)
        };
        let whole = log.read(None, usize::MAX).expect("a log in memory");
        let cleanable: Vec<_> = whole
            .records
            .into_iter()
            .filter(|record| old(record.append_time_ms, COMPACTION.after))
            .collect();
        let newest: HashMap<_, _> = cleanable
            .iter()
            .map(|record| (record.key.clone(), record.offset))
            .collect();
        let mut gone = self.0.borrow_mut();
        for record in cleanable {
            let superseded = newest[&record.key] > record.offset;
            let over = record.value.is_none() && {
                let seen_ms = *gone.seen_ms.entry(record.offset).or_insert(wall_ms);
                old(seen_ms, COMPACTION.tombstones_kept)
            };
            if superseded || over {
                gone.offsets.insert(record.offset);
            }
        }
    }

    /// Reads on behind `after` as Kafka does: to a record that is left, or to the end.
    pub(super) fn read(&self, log: &EmbeddedLog, mut after: Option<Offset>) -> Fetch {
        let gone = &self.0.borrow().offsets;
        loop {
            let mut fetch = log.read(after, FETCH_BYTES).expect("a log in memory");
            fetch
                .records
                .retain(|record| !gone.contains(&record.offset));
            let ends = fetch.upto >= fetch.head;
            match fetch.records.last() {
                Some(last) if !ends => fetch.upto = last.offset,
                None if !ends => {
                    after = Some(fetch.upto);
                    continue;
                }
                _ => {}
            }
            return fetch;
        }
    }
}
