//! What a partition lets go of: channels that its log has forgotten, and, when memory is short, views that nobody follows.
//!
//! Neither loses anything: of a forgotten channel no record and no row is left, and a view becomes resident again when
//! somebody joins.

use super::{Partition, SHARED_KEPT};
use crate::{
    cache,
    model::{Channel, Moment, Offset, names},
};

/// So much faster than the log forgets channels a partition looks for those that it has forgotten: each costs more here.
const FOLLOWS: usize = 4;
/// Views of a partition that are evicted in one go, at most.
const EVICTED_MAX: usize = 10_000;

impl Partition {
    /// Looks at some channels, in turn, and forgets those that the log has forgotten: they have no rows, and no record is left
    /// of them. What a tail still has of them leaves with it.
    pub(super) fn forget_quiet(&mut self, start: Offset, records: usize) {
        if self.backing.is_cache() {
            return self.forget_passed(records);
        }
        if self.forgotten.is_none() {
            return;
        }
        let looks = cache::looks(self.names.len(), records.saturating_mul(FOLLOWS));
        let looked_at: Vec<_> = self.names.drain(..looks).collect();
        let is_quiet =
            |name: &Channel| self.last_change.get(name).is_none_or(|&last| last <= start);
        let (mut quiet, others): (Vec<_>, Vec<_>) = looked_at.into_iter().partition(is_quiet);
        self.names.extend(others);
        if quiet.is_empty() {
            return;
        }
        let asked = quiet.clone();
        let views = &self.views;
        let has_rows = |name: &Channel| views.get(name).is_some_and(|view| !view.rows().is_empty());
        self.backing.retain_known(&mut quiet, has_rows);
        let mut known = quiet.into_iter().peekable();
        for name in asked {
            if known.next_if_eq(&name).is_some() {
                self.names.push_back(name);
            } else {
                self.forgotten = self.forgotten.max(self.last_change.remove(&name));
                self.views.remove(&name);
                self.decoder.forget(&name);
            }
        }
        names::give_back(&mut self.last_change);
        names::give_back(&mut self.views);
    }

    /// The same, where a cache has the rows: of channels that are not resident, and that the tail has passed, nothing has to be
    /// known here.
    fn forget_passed(&mut self, records: usize) {
        let floor = self.tail.floor();
        for _ in 0..cache::looks(self.names.len(), records.saturating_mul(FOLLOWS)) {
            let Some(name) = self.names.pop_front() else {
                return;
            };
            let passed = self
                .last_change
                .get(&name)
                .is_none_or(|&last| last <= floor);
            if passed && !self.views.contains_key(&name) {
                self.last_change.remove(&name);
                self.decoder.forget(&name);
            } else {
                self.names.push_back(name);
            }
        }
        names::give_back(&mut self.last_change);
    }

    /// Resident views that nobody asked for lately, as many as go at once: those who follow them may still need them. None
    /// while the rows can't be had again.
    #[must_use]
    pub fn unasked(&self, now: Moment) -> Vec<Channel> {
        if !self.readable || !self.backing.has_rows(self.epoch.as_ref()) {
            return Vec::new();
        }
        let unasked = self
            .views
            .iter()
            .filter(|(_, view)| now.since(view.asked_at()) > SHARED_KEPT);
        unasked
            .take(EVICTED_MAX)
            .map(|(channel, _)| channel.clone())
            .collect()
    }

    /// Lets go of these views, but for those that somebody asked for meanwhile, and of everything that readers of the others
    /// would share; tells how many went. Who joins next makes a view resident again.
    pub fn evict(&mut self, channels: &[Channel], now: Moment) -> usize {
        let before = self.views.len();
        for channel in channels {
            let view = self.views.get(channel);
            if view.is_some_and(|view| now.since(view.asked_at()) > SHARED_KEPT) {
                self.views.remove(channel);
            }
        }
        for channel in self.sharing.drain() {
            if let Some(view) = self.views.get_mut(&channel) {
                view.let_go();
            }
        }
        let evicted = before - self.views.len();
        self.evicted += evicted as u64;
        evicted
    }
}
