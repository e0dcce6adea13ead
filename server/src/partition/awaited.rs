//! Channels that somebody asked for before anything was written to them: they are resident from their first record on.
//!
//! Anybody may invent a name, so the newest ones are remembered and no more. Of one that is forgotten nothing is lost: who asks
//! for it again has its view read from the cache, as any other.

use std::collections::{HashSet, VecDeque};

use crate::model::Channel;

/// Names that a partition remembers.
pub(super) const AWAITED_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Awaited {
    names: HashSet<Channel>,
    /// In the order in which they were asked for; some have been written to since.
    asked: VecDeque<Channel>,
}

impl Awaited {
    pub(super) fn add(&mut self, channel: &Channel) {
        if !self.names.insert(channel.clone()) {
            return;
        }
        self.asked.push_back(channel.clone());
        if self.asked.len() > AWAITED_MAX
            && let Some(oldest) = self.asked.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    /// Whether it is remembered.
    pub(super) fn has(&self, channel: &Channel) -> bool {
        self.names.contains(channel)
    }

    /// It has been written to; tells whether somebody had asked for it.
    pub(super) fn take(&mut self, channel: &Channel) -> bool {
        self.names.remove(channel)
    }

    /// Those that nothing has been written to.
    pub(super) fn names(&self) -> impl Iterator<Item = &Channel> {
        self.names.iter()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_names_are_remembered_and_no_more() {
        let name = |number: usize| -> Channel { format!("s/{number}").parse().unwrap() };
        let mut awaited = Awaited::default();
        for number in 0..AWAITED_MAX + 10 {
            awaited.add(&name(number));
            awaited.add(&name(number));
        }
        assert_eq!(awaited.names.len(), AWAITED_MAX);
        assert!(!awaited.take(&name(9)));
        assert!(awaited.take(&name(10)) && !awaited.take(&name(10)));
        // Asked for and written to without end: what is remembered of it does not grow.
        for number in 0..10 * AWAITED_MAX {
            awaited.add(&name(number));
            assert!(awaited.take(&name(number)));
        }
        assert!(awaited.asked.len() <= AWAITED_MAX && awaited.names.len() < AWAITED_MAX);
    }
}
