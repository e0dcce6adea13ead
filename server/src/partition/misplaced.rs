//! Records in a partition where their channel does not belong.
//!
//! Whether it does is the rule of [`Placing`], by which materializers go as well. Who follows a channel looks into its one partition
//! only, so what is written elsewhere would be missing in silence. Whoever reads such a record counts it, passes over it, and says so
//! to all of the stream: the channel is not live from then on.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;

use super::lineage::Lineage;
use crate::model::{Channel, Freshness, FreshnessState, Placing, Position, StaleReason};

/// Channels that are remembered; beyond it all of the stream count.
const CHANNELS_MAX: usize = 10_000;

/// What all partitions of a stream know together. By default every channel belongs everywhere.
#[derive(Debug, Default)]
pub struct Misplaced {
    placing: ArcSwap<Placing>,
    /// Of channels that moved: which may show a row that is gone.
    pub(super) lineage: Lineage,
    any: AtomicBool,
    /// And by which partition.
    found: Mutex<HashMap<Channel, u32>>,
}

impl Misplaced {
    /// Of a stream whose channels others place so.
    #[must_use]
    pub fn of(placing: Placing) -> Self {
        Self {
            placing: ArcSwap::from_pointee(placing),
            ..Self::default()
        }
    }

    /// From now on they are placed so: the stream has more partitions.
    pub fn place(&self, placing: Placing) {
        self.placing.store(Arc::new(placing));
    }

    fn found(&self) -> MutexGuard<'_, HashMap<Channel, u32>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the channel of a record that was found `here` belongs, if that is elsewhere: from now on it is not live.
    pub(super) fn look(&self, channel: &Channel, here: u32) -> Option<u32> {
        let home = self.placing.load().elsewhere(channel, here)?;
        let mut found = self.found();
        if found.len() < CHANNELS_MAX {
            found.insert(channel.clone(), here);
        }
        self.any.store(true, Ordering::Release);
        Some(home)
    }

    /// A partition is read anew.
    pub(super) fn forget(&self, here: u32) {
        self.lineage.forget(here);
        if self.any.load(Ordering::Acquire) {
            let mut found = self.found();
            found.retain(|_, by| *by != here);
            self.any.store(!found.is_empty(), Ordering::Release);
        }
    }

    /// Whether records of this channel are where nobody looks for them.
    #[must_use]
    pub fn has(&self, channel: &Channel) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let found = self.found();
        found.contains_key(channel) || found.len() >= CHANNELS_MAX
    }

    /// The partitions in which records of this channel are, where it has moved.
    pub(super) fn moved(&self, channel: &Channel) -> Option<Vec<u32>> {
        let placing = self.placing.load();
        let homes: Vec<u32> = placing.generations()?.homes(channel).collect();
        (homes.len() > 1).then_some(homes)
    }

    /// A partition has told all that it has of channels that moved.
    pub(super) fn told_all(&self, here: u32) {
        if let Some(generations) = self.placing.load().generations() {
            self.lineage.told_all(here, generations);
        }
    }

    /// Whether everything that this channel was in doubt for is known to whoever is here.
    #[must_use]
    pub fn is_whole_at(&self, channel: &Channel, here: &Position) -> bool {
        let placing = self.placing.load();
        let at = Some((here.partition, here.offset));
        let doubts = |generations| self.lineage.doubts(channel, generations, at);
        !placing.generations().is_some_and(doubts)
    }

    /// Whether deletes may be missing that hide rows which this channel has where it was before.
    #[must_use]
    pub fn is_torn_for(&self, channel: &Channel) -> bool {
        let placing = self.placing.load();
        let torn = |generations| self.lineage.is_torn_for(channel, generations);
        placing.generations().is_some_and(torn)
    }

    /// Why this channel is not live, if its partitions are not enough to say that it is.
    #[must_use]
    pub fn flaw(&self, channel: &Channel) -> Option<StaleReason> {
        let placing = self.placing.load();
        let doubts = |generations| self.lineage.doubts(channel, generations, None);
        if self.has(channel) {
            Some(StaleReason::Misplaced)
        } else if placing.generations().is_some_and(doubts) {
            Some(StaleReason::IncompleteHistory)
        } else {
            None
        }
    }

    /// The freshness of this channel: what would be live is stale.
    #[must_use]
    pub fn seen_in(&self, freshness: Freshness, channel: &Channel) -> Freshness {
        let live = freshness.state == FreshnessState::Live;
        match self.flaw(channel).filter(|_| live) {
            Some(reason) => Freshness {
                state: FreshnessState::Stale,
                reason: Some(reason),
                ..freshness
            },
            None => freshness,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Generations;

    fn among(partitions: u32) -> Placing {
        Placing::among(Generations::single(partitions))
    }

    const LIVE: Freshness = Freshness {
        state: FreshnessState::Live,
        age_ms: Some(1),
        reason: None,
    };

    fn channel(name: &str) -> Channel {
        Channel::new("s", name).unwrap()
    }

    #[test]
    fn a_channel_that_was_found_elsewhere_is_not_live_until_that_is_read_anew() {
        // Of 16 partitions JFK is in 3 and LGA in 0.
        let misplaced = Misplaced::of(among(16));
        assert_eq!(misplaced.look(&channel("JFK"), 3), None);
        assert_eq!(misplaced.seen_in(LIVE, &channel("JFK")), LIVE);
        assert_eq!(misplaced.look(&channel("JFK"), 4), Some(3));
        let stale = misplaced.seen_in(LIVE, &channel("JFK"));
        assert_eq!(
            (stale.state, stale.reason),
            (FreshnessState::Stale, Some(StaleReason::Misplaced))
        );
        assert_eq!(misplaced.seen_in(LIVE, &channel("LGA")), LIVE);
        misplaced.forget(5);
        assert!(misplaced.has(&channel("JFK")));
        misplaced.forget(4);
        assert!(!misplaced.has(&channel("JFK")));
    }

    #[test]
    fn what_was_written_before_a_topic_grew_is_where_it_belongs() {
        // Of 2 partitions JFK is in 1, of 4 in 3.
        let misplaced = Misplaced::of(among(2));
        assert_eq!(misplaced.look(&channel("JFK"), 3), Some(1));
        let grown = Generations::single(2).grown(4).unwrap();
        misplaced.forget(3);
        misplaced.place(Placing::among(grown));
        assert_eq!(misplaced.look(&channel("JFK"), 3), None);
        assert_eq!(misplaced.look(&channel("JFK"), 1), None);
        assert_eq!(misplaced.look(&channel("JFK"), 2), Some(3));
    }

    #[test]
    fn too_many_of_them_are_all_and_one_partition_is_everywhere() {
        let misplaced = Misplaced::of(among(2));
        for number in 0..3 * CHANNELS_MAX {
            misplaced.look(&channel(&number.to_string()), 1);
        }
        assert!(misplaced.has(&channel("never-seen")));
        for nowhere in [Misplaced::of(among(1)), Misplaced::default()] {
            assert_eq!(nowhere.look(&channel("JFK"), 7), None);
        }
    }
}
