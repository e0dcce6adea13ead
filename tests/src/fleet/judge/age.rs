//! Nothing is shown as live that is older than that may be.

use super::{BOUND_MS, Judge, Kind};
use crate::fleet::{history::Manner, scene::Ms};

impl Judge<'_> {
    /// Nothing has been shown as live, since the last look, that lacks a change older than the bound.
    pub(super) fn check_age(&mut self, at: usize, now: Ms) {
        let seat = &self.seats[at];
        let until = seat.held.live_until.min(now);
        // What a poll was told is held against its own age.
        if self.history.manner == Manner::Poll
            || !seat.held.joined
            || seat.held.live_until == Ms::MIN
            || seat.hushed
        {
            return;
        }
        let stream = self.scene.channels[seat.channel].1;
        let mut found = None;
        for here in seat.held.token.positions() {
            let Some(life) = self.truth.life(stream, &here.epoch) else {
                continue;
            };
            if let Some(ended) = life.ended.filter(|ended| ended + BOUND_MS < until) {
                found = Some(format!(
                    "shown live at t={until} at {here}, of a log that was gone at t={ended}"
                ));
            }
            let missing =
                life.between(here.partition, seat.channel, here.offset.number(), u64::MAX);
            if let Some(first) = missing
                .first()
                .filter(|first| first.known_at + BOUND_MS < until)
            {
                found = Some(format!(
                    "shown live at t={until} at {here}, and lacks {first:?}"
                ));
            }
        }
        if let Some(text) = found {
            self.seats[at].hushed = true;
            self.accuse(Some(at), Kind::UnmarkedStale, text);
        }
    }
}
