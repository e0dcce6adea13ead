//! Bugs on purpose: where a stream's configuration says so, what leaves a partition is not what it should be.
//!
//! Does: loses, doubles, swaps and misplaces now and then, or hides that the source fails. Owns: which bug it is. Never knows: who
//! looks for it. Built with the Cargo feature `seeded-bugs` alone: the oracle of the fleet's tests must find each of them.

use std::sync::Arc;

use super::{Join, Partition, resume::From};
use crate::{
    frame::Shared,
    model::{Moment, Offset, SeededBug},
};

/// One update of so many is concerned …
const UPDATES: u64 = 40;
/// … one pair of neighbours of so many …
const PAIRS: u64 = 3;
/// … and one subscription of so many.
const JOINS: u64 = 4;
/// A subscription is misplaced by so much.
const ASIDE: u64 = 4;

/// Which bug a partition has, and what it has counted.
#[derive(Debug, Default)]
pub(super) struct Seeded {
    bug: Option<SeededBug>,
    count: u64,
}

impl Seeded {
    fn is_turn(&mut self, of: u64) -> bool {
        self.count += 1;
        self.count.is_multiple_of(of)
    }

    /// What reaches the tail of a batch.
    pub(super) fn pass(&mut self, mut batch: Vec<Arc<Shared>>) -> Vec<Arc<Shared>> {
        match self.bug {
            Some(SeededBug::Lose) => batch.retain(|_| !self.is_turn(UPDATES)),
            Some(SeededBug::Double) => {
                let twice = |shared: Arc<Shared>| {
                    let copies = if self.is_turn(UPDATES) { 2 } else { 1 };
                    std::iter::repeat_n(shared, copies)
                };
                batch = batch.into_iter().flat_map(twice).collect();
            }
            Some(SeededBug::Swap) => {
                for at in 1..batch.len() {
                    let channel = |at: usize| &batch[at].update.change.channel;
                    if channel(at - 1) == channel(at) && self.is_turn(PAIRS) {
                        batch.swap(at - 1, at);
                    }
                }
            }
            Some(SeededBug::Hide | SeededBug::Misplace) | None => {}
        }
        batch
    }

    /// Where a subscription goes on.
    pub(super) fn place(&mut self, join: &Join, applied: Offset) -> Join {
        let mut join = join.clone();
        if let (From::After(token), Some(SeededBug::Misplace)) = (&mut join.from, self.bug)
            && token.offset < applied
            && self.is_turn(JOINS)
        {
            let aside = Offset::new(token.offset.number() + ASIDE);
            token.offset = aside.min(applied);
        }
        join
    }
}

impl Partition {
    /// The same with a bug.
    #[must_use]
    pub fn with_bug(mut self, bug: Option<SeededBug>) -> Self {
        self.seeded.bug = bug;
        self
    }

    /// A fetch that was sent at `asked_at` has failed: with that bug it counts as a proof.
    pub(super) fn hide_failure(&mut self, asked_at: Moment, now: Moment) {
        if self.seeded.bug == Some(SeededBug::Hide) && self.epoch.is_some() {
            self.saw(self.applied, asked_at);
            self.tail.push(Vec::new(), self.applied, self.health, now);
        }
    }
}
