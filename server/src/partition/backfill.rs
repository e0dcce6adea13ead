//! The backfill: channels whose rows are older than the tail reaches back wait here for what the log has in between.
//!
//! One reader serves all who wait: a pass begins behind the oldest rows and ends where the tail begins; who comes during a pass
//! waits for the next one. Where the cache does not answer, a pass can also begin at the log's start, for channels of which no rows
//! are known. Owns: the rows of those who wait, and what was read for them. Never knows: who reads the log, and how. Keeps:
//! nothing is skipped between rows and tail; what is kept is bounded.

use std::collections::HashMap;

use super::reading::Reading;
use crate::{
    cache::{CachedView, redis::Walk},
    model::{Change, Channel, Offset},
    source::{Fetch, compaction::Compaction},
};

/// Channels that wait at the same time.
const WAITING_MAX: usize = 1024;
/// Changes of all of them that are kept, or rows that are found: beyond it they are read from the cache again, which is newer by
/// then.
const CHANGES_MAX: usize = 200_000;

/// What was read of a channel: its rows, and what followed them.
#[derive(Debug)]
pub(super) struct Filling {
    pub(super) walk: Box<Walk>,
    pub(super) cached: CachedView,
    /// Whether its rows are those of the cache; else they are found in the log, from its start on.
    pub(super) origin: Origin,
    /// What is known of last changes holds for those after this.
    pub(super) since: Offset,
    /// Everything up to here is in the rows or in the changes.
    pub(super) filled: Offset,
    pub(super) changes: Vec<(Change, Offset)>,
    /// The pass that is under way reads for it.
    pub(super) is_in_pass: bool,
    /// Before this the changes are no state of the log.
    pub(super) settled: Offset,
}

/// Where rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Cache,
    Log,
}

impl Filling {
    /// A channel of which no rows are known.
    fn of_nothing() -> Self {
        Self {
            walk: Box::default(),
            cached: CachedView::default(),
            origin: Origin::Log,
            since: Offset::BEFORE_ALL,
            filled: Offset::BEFORE_ALL,
            changes: Vec::new(),
            is_in_pass: false,
            settled: Offset::BEFORE_ALL,
        }
    }

    /// Takes a change. Gives how much more it holds then.
    fn take(&mut self, change: Change, offset: Offset) -> usize {
        if self.origin == Origin::Cache {
            self.changes.push((change, offset));
            return 1;
        }
        let rows = self.cached.rows.len();
        drop(self.cached.apply(&change, offset));
        self.cached.rows.len().saturating_sub(rows)
    }
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
    origin: Origin,
    /// What its first fetch found, of one that folds the log.
    since: Option<Offset>,
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

    /// A channel's rows are to be found in the log. Tells whether there is room.
    pub(super) fn add_nothing(&mut self, channel: &Channel) -> bool {
        self.add(channel, Filling::of_nothing())
    }

    /// Whether the pass that is under way folds the log, and nothing of it has been read yet.
    pub(super) fn is_to_fold(&self) -> bool {
        let pass = self.pass.as_ref();
        pass.is_some_and(|pass| pass.origin == Origin::Log && pass.since.is_none())
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

    /// What the log is to be asked for now: what follows this, and whether a pass begins with it. None where nobody waits, or it
    /// has been asked already.
    pub(super) fn next(&mut self, compaction: Compaction) -> Option<(Offset, bool)> {
        if self.asked {
            return None;
        }
        let begins = self.pass.is_none();
        if begins {
            self.pass = Some(self.begin(compaction)?);
        }
        self.asked = true;
        self.pass.as_ref().map(|pass| (pass.at, begins))
    }

    /// Those who wait for the same kind of pass go together: a fold of the log knows nothing of what is proven of others' rows.
    fn begin(&mut self, compaction: Compaction) -> Option<Pass> {
        let origin = self.waiting.values().next()?.origin;
        let mut pass = Pass {
            origin,
            since: None,
            at: Offset::new(u64::MAX),
            reading: Reading::new(compaction),
            changes: 0,
        };
        let mut proven_ms = i64::MAX;
        for filling in self.waiting.values_mut().filter(|one| one.origin == origin) {
            filling.is_in_pass = true;
            pass.at = pass.at.min(filling.filled);
            proven_ms = proven_ms.min(filling.walk.proven_ms());
        }
        pass.reading.begin(Offset::BEFORE_ALL, proven_ms);
        Some(pass)
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
        if pass.origin == Origin::Log && pass.since.is_none() {
            pass.begin_fold(fetch);
        }
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
                pass.changes += filling.take(change, offset);
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
            if filling.origin == Origin::Log {
                filling.since = pass.since.unwrap_or_default();
                *filling.walk = Walk::of_whole(pass.at.into());
            }
        }
        finished
    }

    /// The pass can't be ended: all that waited for it are given back, and what it was to read.
    pub(super) fn give_up(&mut self) -> (Vec<Channel>, Option<Origin>) {
        let origin = self.pass.take().map(|pass| pass.origin);
        let left = self.leave();
        (
            left.into_iter().map(|(channel, _)| channel).collect(),
            origin,
        )
    }

    /// Those for whom the pass read.
    fn leave(&mut self) -> Vec<(Channel, Filling)> {
        let in_pass = |_: &Channel, filling: &mut Filling| filling.is_in_pass;
        self.waiting.extract_if(in_pass).collect()
    }
}

impl Pass {
    /// A fold of the log begins with what is left of it; it is a state of the log at the head that was there then, and knows no last
    /// changes before it.
    fn begin_fold(&mut self, first: &Fetch) {
        let sent_ms = first.when.map_or(0, |when| when.sent_ms);
        self.reading.begin(first.head, sent_ms);
        self.since = Some(first.head);
        self.at = first.start;
    }
}
