//! Channels that moved, on a node that may have missed deletes where they moved to: which of them may show a row that is gone.
//!
//! An added partition whose older tombstones may be gone when it is folded can't tell a row that it has deleted from one of which it
//! never said anything. That matters only where an older partition still has such a row. Each partition alone can't see that: so,
//! once one of them has found it lacks tombstones, all tell what they have of channels, and a channel is in doubt as long as some row
//! of an older partition is one that no newer one speaks of, or somebody has not told yet. Keeps: I6. What is told is told before it
//! leaves.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::model::{Channel, Generations, Offset, Rows};

/// What all partitions of a stream know together of channels that moved.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    /// Some partition lacks tombstones: all tell what they have.
    torn: AtomicBool,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// Partitions that lack tombstones.
    torn: BTreeSet<u32>,
    /// Partitions that have told all that they have.
    by: BTreeSet<u32>,
    channels: HashMap<Channel, Lanes>,
}

/// What the partitions of one channel have told of it.
#[derive(Debug, Default)]
struct Lanes {
    /// Its rows in each, and where that partition was by then.
    rows: BTreeMap<u32, (Rows, Offset)>,
    /// Every row of an older lane is one that a newer one speaks of, since the lanes were there; none where that is not so.
    whole_at: Option<BTreeMap<u32, Offset>>,
}

impl Lanes {
    fn note(&mut self, partition: u32, rows: &Rows, at: Offset, homes: &[u32]) {
        self.rows.insert(partition, (rows.clone(), at));
        // The newest lane only ever speaks of more rows.
        if homes.last() != Some(&partition) || self.whole_at.is_none() {
            self.look(homes);
        }
    }

    fn look(&mut self, homes: &[u32]) {
        let rows = |home: &u32| self.rows.get(home).map(|(rows, _)| rows);
        let spoken = |at: usize, id| {
            let mut newer = homes[at + 1..].iter().filter_map(rows);
            newer.any(|rows| rows.contains_key(id))
        };
        let mut lanes = homes.iter().enumerate();
        let is_whole = lanes.all(|(at, home)| {
            let is_newest = at + 1 == homes.len();
            let mut rows = rows(home).into_iter().flatten();
            is_newest || rows.all(|(id, row)| row.is_grave() || spoken(at, id))
        });
        let now = || {
            let lanes = self.rows.iter();
            lanes.map(|(home, (_, at))| (*home, *at)).collect()
        };
        self.whole_at = is_whole.then(|| self.whole_at.take().unwrap_or_else(now));
    }
}

impl Lineage {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is to be told what partitions have.
    pub(super) fn is_torn(&self) -> bool {
        self.torn.load(Ordering::Acquire)
    }

    /// This partition lacks tombstones.
    pub(super) fn tear(&self, partition: u32) {
        self.told().torn.insert(partition);
        self.torn.store(true, Ordering::Release);
    }

    /// Whether one of the partitions to which a channel has moved lacks tombstones.
    pub(super) fn is_torn_for(&self, channel: &Channel, generations: &Generations) -> bool {
        let mut homes = generations.homes(channel).skip(1);
        self.is_torn() && {
            let told = self.told();
            homes.any(|home| told.torn.contains(&home))
        }
    }

    /// Whether this partition has told all that it has.
    pub(super) fn has_all_of(&self, partition: u32) -> bool {
        self.told().by.contains(&partition)
    }

    /// What a partition has of a channel, with everything up to there.
    pub(super) fn note(
        &self,
        partition: u32,
        channel: &Channel,
        rows: &Rows,
        at: Offset,
        homes: &[u32],
    ) {
        let mut told = self.told();
        let lanes = told.channels.entry(channel.clone()).or_default();
        lanes.note(partition, rows, at, homes);
    }

    /// That was all that it has.
    pub(super) fn told_all(&self, partition: u32, generations: &Generations) {
        let mut told = self.told();
        told.by.insert(partition);
        for (channel, lanes) in &mut told.channels {
            if lanes.whole_at.is_none() {
                let homes: Vec<u32> = generations.homes(channel).collect();
                lanes.look(&homes);
            }
        }
    }

    /// A partition is read anew: what it told does not count any more.
    pub(super) fn forget(&self, partition: u32) {
        if self.is_torn() {
            let mut told = self.told();
            told.by.remove(&partition);
            told.torn.remove(&partition);
            for lanes in told.channels.values_mut() {
                lanes.rows.remove(&partition);
                lanes.whole_at = None;
            }
        }
    }

    /// Whether a channel may show a row that is gone; `at`: to whoever has come so far in one of its partitions.
    pub(super) fn doubts(
        &self,
        channel: &Channel,
        generations: &Generations,
        at: Option<(u32, Offset)>,
    ) -> bool {
        if !self.is_torn_for(channel, generations) {
            return false;
        }
        let mut homes = generations.homes(channel);
        let told = self.told();
        if !homes.all(|home| told.by.contains(&home)) {
            return true;
        }
        let Some(lanes) = told.channels.get(channel) else {
            return false;
        };
        let Some(whole_at) = &lanes.whole_at else {
            return true;
        };
        at.is_some_and(|(partition, at)| whole_at.get(&partition).is_some_and(|from| at < *from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Row, RowId};

    fn rows(rows: &[(&str, &str)]) -> Rows {
        let row = |(id, data): &(&str, &str)| {
            let row = Row {
                data: (*data).to_owned().into(),
                ts_ms: 0,
                offset: Offset::new(1),
            };
            (RowId::new(id).unwrap(), row)
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn a_row_of_which_the_newer_partition_says_nothing_is_in_doubt() {
        // Of 2 partitions JFK is in 1, of 4 in 3.
        let jfk: Channel = "s/JFK".parse().unwrap();
        let grown = Generations::of(&[2, 4]).unwrap();
        let lineage = Lineage::default();
        let doubts = || lineage.doubts(&jfk, &grown, None);
        let note = |partition, at, has: &[(&str, &str)]| {
            lineage.note(partition, &jfk, &rows(has), Offset::new(at), &[1, 3]);
        };
        assert!(!doubts());
        lineage.tear(2);
        assert!(!doubts(), "it has not moved there");
        lineage.tear(3);
        assert!(doubts(), "nobody has told anything");
        assert!(
            !lineage.doubts(&jfk, &Generations::single(2), None),
            "it has not moved"
        );
        note(1, 5, &[("a", "1"), ("b", "2")]);
        lineage.told_all(1, &grown);
        assert!(doubts(), "one of its partitions has not told");
        note(3, 7, &[("a", "3")]);
        lineage.told_all(3, &grown);
        assert!(doubts(), "was b deleted?");
        note(3, 8, &[("a", "3"), ("b", "")]);
        assert!(!doubts(), "it was");
        let doubts_at = |at| lineage.doubts(&jfk, &grown, Some((3, Offset::new(at))));
        assert!(
            doubts_at(7) && !doubts_at(8),
            "who has not heard of that is in doubt"
        );
        note(3, 9, &[("a", "3"), ("b", ""), ("d", "5")]);
        assert!(!doubts_at(8));
        note(1, 6, &[("a", "1"), ("b", "2"), ("c", "4")]);
        assert!(doubts(), "c is new where it was before");
        note(1, 7, &[]);
        assert!(!doubts(), "there is nothing to be deleted");
        lineage.forget(3);
        assert!(!doubts(), "it is read anew, and may be whole this time");
        lineage.tear(3);
        assert!(doubts(), "it has not told what it has");
        lineage.told_all(3, &grown);
        assert!(
            !doubts(),
            "it has none of it, and neither has the older one"
        );
        note(1, 8, &[("e", "6")]);
        assert!(doubts(), "of which nothing is said there");
    }
}
