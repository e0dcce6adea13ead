//! Rest: nobody needs a partition, so it is not read; and waking, when somebody does.
//!
//! At rest nothing is held that the log has: no tail, no events. Views stay, as the last that is known, for the case that nothing
//! newer can be had when somebody comes; nobody is answered from them before the log was asked again. Keeps: I3, I5, I6. A tail
//! never bridges what was not read: either reading goes on exactly where it ended, or the tail has another life.

use super::{Partition, backing::Backing, resume::From, tail::Health};
use crate::{
    cache::redis::Header,
    model::{Mode, Moment, Offset},
    source::{Fetch, Wanted},
};

/// A partition that was asked for again, and has not come as far as the log yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waking {
    /// The head that its first fetch found.
    head: Option<Offset>,
}

impl Partition {
    /// Whether anybody follows it, or waits for it.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.tail.is_followed() || !self.joins.is_empty()
    }

    /// It is not read from now on. What was asked of its cache, or of its log, is not answered any more.
    pub fn rest(&mut self, now: Moment) {
        (self.unproven, self.waking, self.begins) = (None, None, None);
        for channel in self.sharing.drain() {
            if let Some(view) = self.views.get_mut(&channel) {
                view.let_go();
            }
        }
        match &mut self.backing {
            Backing::Cache(fence) => fence.rest(),
            Backing::Fold(_) if self.settings.mode == Mode::Events => self.forget_events(),
            Backing::Fold(_) | Backing::Log(_) => {}
        }
        self.tail.rest(now);
    }

    /// Somebody needs it: it is to be read again.
    pub fn wake(&mut self) {
        self.health.trouble = None;
        let known = self.epoch.is_some() && self.standing().is_none();
        self.waking = known.then(Waking::default);
        if let Some(stand_in) = &mut self.stand_in {
            stand_in.wait();
        }
        if let Backing::Cache(fence) = &mut self.backing {
            fence.wake();
        }
        self.tail.wake();
    }

    /// Events are kept by nobody but the tail: without it nothing is known of them.
    fn forget_events(&mut self) {
        for name in self.names.drain(..) {
            self.decoder.forget(&name);
        }
        self.last_change.clear();
        (self.epoch, self.applied, self.forgotten) = (None, Offset::BEFORE_ALL, None);
        self.head = (Offset::BEFORE_ALL, Moment::default());
        self.health = Health::default();
    }

    /// Whether joins wait for the log to be caught up with.
    pub(super) const fn is_waking(&self) -> bool {
        self.waking.is_some()
    }

    /// … and has not been read since.
    pub(super) fn has_just_woken(&self) -> bool {
        self.waking.is_some_and(|waking| waking.head.is_none())
    }

    /// What was read reaches to where `applied` is, of a log that had this head.
    pub(super) fn come_to(&mut self, head: Offset) {
        if let Some(waking) = &mut self.waking
            && self.applied >= *waking.head.get_or_insert(head)
        {
            self.waking = None;
        }
    }

    /// Whether reading on from where it rested is more than one replay: then it begins with the rows that the cache has by now.
    pub(super) fn is_far_behind(&self, header: &Header) -> bool {
        let replayed = self.settings.replay_records as u64;
        let reach = self.applied.number().saturating_add(replayed);
        let folded = Offset::try_from(&header.applied);
        self.is_waking() && folded.is_ok_and(|folded| folded > Offset::new(reach))
    }

    /// Of the log of a stream of events, which was not read yet, or not since it rested: what is wanted of it. That is what the
    /// tail would hold, and what those resume from who wait already.
    #[must_use]
    pub fn wanted(&self) -> Option<Wanted> {
        let events = self.backing.is_fold() && self.settings.mode == Mode::Events;
        if !events || self.epoch.is_some() || self.begins.is_some() {
            return None;
        }
        let behind = self.joins.iter().filter_map(|join| match &join.from {
            From::After(token) => Some(token.offset),
            From::Earliest => Some(Offset::BEFORE_ALL),
            From::Now | From::History(_) => None,
        });
        Some(Wanted {
            age: self.tail.age(),
            behind: behind.min(),
            newest: self.settings.replay_records as u64,
        })
    }

    /// What is wanted begins behind this offset.
    pub const fn begin_behind(&mut self, at: Offset) {
        self.begins = Some(at);
    }

    /// Behind which offset this first fetch read: behind the one that it was asked for, if the log reaches back, and as far.
    pub(super) fn beginning(&self, fetch: &Fetch) -> Offset {
        let asked = self.begins.unwrap_or(fetch.start);
        asked.max(fetch.start).min(fetch.upto.max(fetch.start))
    }
}
