//! The backfill: channels whose rows are older than the tail reaches back wait here for what the log has in between.
//!
//! One reader serves all who wait: a pass begins behind the oldest rows and ends where the tail begins; who comes during a pass
//! waits for the next one. Owns: the rows of those who wait, and what was read for them. Never knows: who reads the log, and how.
//! Keeps: nothing is skipped between rows and tail; what is kept is bounded.

use std::collections::HashMap;

use super::reading::Reading;
use crate::{
    cache::redis::{CachedRow, DecimalOffset, Walk},
    model::{Change, Channel, Offset, RowId},
    source::{Fetch, compaction::Compaction},
};

/// Channels that wait at the same time.
const WAITING_MAX: usize = 1024;
/// Changes of all of them that are kept: beyond it they are read from the cache again, which is newer by then.
const CHANGES_MAX: usize = 200_000;

/// What was read of a channel: its rows, and what followed them.
#[derive(Debug)]
pub(super) struct Filling {
    pub(super) walk: Box<Walk>,
    pub(super) rows: Vec<(RowId, CachedRow)>,
    /// What the cache knows of last changes holds for those after this.
    pub(super) since: DecimalOffset,
    /// Everything up to here is in the rows or in the changes.
    pub(super) filled: Offset,
    pub(super) changes: Vec<(Change, Offset)>,
    /// The pass that is under way reads for it.
    pub(super) is_in_pass: bool,
    /// Before this the changes are no state of the log.
    pub(super) settled: Offset,
}

#[derive(Debug, Default)]
pub(super) struct Backfill {
    waiting: HashMap<Channel, Filling>,
    pass: Option<Pass>,
    /// A fetch is under way.
    asked: bool,
}

/// One reading of the log, for those who waited when it began.
#[derive(Debug)]
struct Pass {
    /// It has come so far.
    at: Offset,
    reading: Reading,
    /// Changes that it found for all of them.
    changes: usize,
}

impl Backfill {
    /// A channel's rows are older than the tail. Tells whether there is room.
    pub(super) fn add(&mut self, channel: &Channel, filling: Filling) -> bool {
        let room = self.waiting.len() < WAITING_MAX;
        if room {
            self.waiting.insert(channel.clone(), filling);
        }
        room
    }

    pub(super) fn has(&self, channel: &Channel) -> bool {
        self.waiting.contains_key(channel)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn clear(&mut self) {
        // A fetch that is under way comes back.
        *self = Self {
            asked: self.asked,
            ..Self::default()
        };
    }

    /// What the log is to be asked for now: what follows this. None where nobody waits, or it has been asked already.
    pub(super) fn next(&mut self, compaction: Compaction) -> Option<Offset> {
        if self.asked {
            return None;
        }
        if self.pass.is_none() {
            self.pass = Some(self.begin(compaction)?);
        }
        self.asked = true;
        self.pass.as_ref().map(|pass| pass.at)
    }

    fn begin(&mut self, compaction: Compaction) -> Option<Pass> {
        let at = self.waiting.values().map(|filling| filling.filled).min()?;
        let proven = self
            .waiting
            .values()
            .map(|filling| filling.walk.proven_ms());
        let mut reading = Reading::new(compaction);
        reading.begin(Offset::BEFORE_ALL, proven.min()?);
        for filling in self.waiting.values_mut() {
            filling.is_in_pass = true;
        }
        Some(Pass {
            at,
            reading,
            changes: 0,
        })
    }

    /// The log did not answer: it is asked again.
    pub(super) const fn failed(&mut self) {
        self.asked = false;
    }

    /// Takes what was read, decoded. Tells whether the log goes on from where the pass was, with nothing missing.
    pub(super) fn took(&mut self, fetch: &Fetch, changes: Vec<(Change, Offset)>) -> bool {
        self.asked = false;
        let Some(pass) = &mut self.pass else {
            return true;
        };
        let missed = fetch.when.is_some_and(|when| pass.reading.has_missed(when));
        if missed || fetch.start > pass.at {
            return false;
        }
        if let Some(when) = fetch.when {
            pass.reading.applied(fetch, when);
        }
        for (change, offset) in changes {
            if let Some(filling) = self.waiting.get_mut(&change.channel)
                && filling.is_in_pass
                && offset > filling.filled
            {
                filling.changes.push((change, offset));
                pass.changes += 1;
            }
        }
        pass.at = pass.at.max(fetch.upto);
        pass.changes <= CHANGES_MAX
    }

    /// Those whose rows and changes reach to where the tail begins by now.
    pub(super) fn finished(&mut self, floor: Offset) -> Vec<(Channel, Filling)> {
        let Some(pass) = self.pass.take_if(|pass| pass.at >= floor) else {
            return Vec::new();
        };
        let mut finished = self.leave();
        for (_, filling) in &mut finished {
            filling.filled = filling.filled.max(pass.at);
            filling.settled = pass.reading.settled;
        }
        finished
    }

    /// The pass can't be ended: all that waited for it are given back.
    pub(super) fn give_up(&mut self) -> Vec<Channel> {
        self.pass = None;
        let left = self.leave();
        left.into_iter().map(|(channel, _)| channel).collect()
    }

    /// Those for whom the pass read.
    fn leave(&mut self) -> Vec<(Channel, Filling)> {
        let in_pass = |_: &Channel, filling: &mut Filling| filling.is_in_pass;
        self.waiting.extract_if(in_pass).collect()
    }
}
